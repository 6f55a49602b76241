"""Windows without a display, in directories of their own, on the app's own loop."""

from __future__ import annotations

import asyncio
import os
import socket
import tempfile
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")

from PySide6.QtCore import QLocale, QTranslator
from PySide6.QtWidgets import QApplication, QWidget
from pytestqt.qtbot import QtBot

from qvpn_core.client import profiles
from qvpn_gui import languages
from qvpn_gui.actions import Actions
from qvpn_gui.loop import Loop
from qvpn_gui.session_model import SessionModel
from qvpn_gui.settings import Language
from qvpn_gui.window.main_window import MainWindow
from qvpn_gui.words import Words
from tests.gui.scenes import SCENES, stage

#: Runs a story on the app's loop.
Play = Callable[[Coroutine[Any, Any, None]], None]


@pytest.fixture(autouse=True)
def directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Nothing is read from, or left on, this machine's own account."""
    # A unix socket's path is short (108 bytes): not below a test's deep directory.
    with tempfile.TemporaryDirectory(prefix="qvpn-run-") as runtime:
        monkeypatch.setenv("QVPN_CONFIG_DIR", str(tmp_path / "config"))
        monkeypatch.setenv("QVPN_STATE_DIR", str(tmp_path / "state"))
        monkeypatch.setenv("QVPN_RUNTIME_DIR", runtime)
        monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
        monkeypatch.setenv("DBUS_SESSION_BUS_ADDRESS", f"unix:path={tmp_path}/no-bus")
        yield tmp_path


@pytest.fixture(autouse=True)
def no_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names that nobody may have are looked up on this machine only."""
    found = socket.getaddrinfo

    def getaddrinfo(name: str, *rest: Any, **more: Any) -> Any:
        if name.endswith((".invalid", ".example.org")):
            raise socket.gaierror(socket.EAI_NONAME, "not known")
        return found(name, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


@pytest.fixture
def loop(qapp: QApplication) -> Iterator[Loop]:
    """The app's loop."""
    qapp.setQuitOnLastWindowClosed(False)
    with Loop(qapp) as loop:
        yield loop
    asyncio.set_event_loop(None)


@pytest.fixture
def play(loop: Loop) -> Play:
    """Run a coroutine on the app's loop to its end; no task outlives it."""

    async def bounded(story: Coroutine[Any, Any, None]) -> None:
        async with asyncio.timeout(30):
            await story
        left = asyncio.all_tasks() - {asyncio.current_task()}
        if ending := [task for task in left if task.cancelling()]:
            await asyncio.wait(ending, timeout=5)
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert not left, left

    return lambda story: loop.run_until_complete(bounded(story))


@pytest.fixture
def words(qapp: QApplication) -> Words:
    """The words."""
    return Words()


@pytest.fixture
def model(qapp: QApplication) -> SessionModel:
    """A model that nobody feeds; a test shows it statuses."""
    return SessionModel()


@pytest.fixture
def actions(model: SessionModel) -> Actions:
    """Two profiles, ``home`` and ``work``, and what can be done with them."""
    for name in ("home", "work"):
        profiles.save(profiles.make_profile(name, f"{name}.example.org", "token"))
    return Actions(model)


@pytest.fixture
def scene(
    qtbot: QtBot, loop: Loop, qapp: QApplication, directories: Path
) -> Iterator[Callable[[str], QWidget]]:
    """Shows a scene and returns its window."""
    with ExitStack() as stack:

        def show(name: str) -> QWidget:
            def run(story: Coroutine[Any, Any, None]) -> None:
                loop.run_until_complete(story)

            on = stack.enter_context(stage(run))
            window = SCENES[name](on)
            stack.callback(on.kept.clear)
            qtbot.addWidget(window)
            if isinstance(window, MainWindow):
                window.resize(440, 840)
            window.show()
            qapp.processEvents()
            return window

        yield show


@pytest.fixture
def spoken(qapp: QApplication) -> Iterator[Callable[[Language], None]]:
    """Takes a language; afterwards the app speaks its own again."""
    before, direction = QLocale(), qapp.layoutDirection()
    yield lambda language: languages.install(qapp, language)
    for translator in qapp.findChildren(QTranslator):
        qapp.removeTranslator(translator)
        translator.deleteLater()
    QLocale.setDefault(before)
    qapp.setLayoutDirection(direction)


async def until(condition: Callable[[], object]) -> None:
    """Wait for what no event tells; the story is bounded in time."""
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0.005)
