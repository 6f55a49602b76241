"""Files that are edited while the app runs, by whomever: seen, and nothing of it lost."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import keyring
import pytest
from keyring.backend import KeyringBackend
from PySide6.QtWidgets import QApplication, QLabel
from pytestqt.qtbot import QtBot

from qvpn_core.client import keys, profiles
from qvpn_core.client.control import RefusedByAgent
from qvpn_core.client.proxy import session as _session  # noqa: F401 - importing takes a while too
from qvpn_core.client.proxy.options import ProxyOptions
from qvpn_core.client.states import State
from qvpn_gui import settings
from qvpn_gui.actions import Actions
from qvpn_gui.app import App
from qvpn_gui.dialogs.profiles import ProfilesDialog
from qvpn_gui.dialogs.settings import SettingsDialog
from qvpn_gui.instance import Start
from qvpn_gui.session_model import SessionModel
from qvpn_gui.settings import Settings
from qvpn_gui.window.main_window import MainWindow
from qvpn_gui.words import Words
from tests.gui.conftest import Play, until

_EDIT = """\
import sys
from dataclasses import replace
from qvpn_core.client import profiles
for number in range(40):
    profiles.edit("home", lambda it: replace(it, lookups=(*it.lookups, f"n{sys.argv[1]}-{number}")))
"""


def file(tmp_path: Path, name: str = "home") -> Path:
    return tmp_path / "config" / "profiles" / f"{name}.toml"


def texts(window: MainWindow) -> str:
    return "\n".join(it.text() for it in window.findChildren(QLabel) if it.isVisibleTo(window))


def test_an_editor_that_writes_into_a_profile_is_seen(
    qtbot: QtBot, actions: Actions, tmp_path: Path
) -> None:
    first = actions.stored_profile()
    assert first is not None
    for host in ("one.example.org", "two.example.org"):
        text = file(tmp_path).read_text()
        before = actions.stored_profile()
        assert before is not None
        file(tmp_path).write_text(text.replace(before.host, host))

        def followed(host: str = host) -> bool:
            now = actions.stored_profile()
            return now is not None and now.host == host

        qtbot.waitUntil(followed, timeout=5000)


def test_a_profile_that_somebody_broke_is_told_and_left_alone(
    qtbot: QtBot, model: SessionModel, actions: Actions, words: Words, tmp_path: Path, play: Play
) -> None:
    window = MainWindow(model, actions, words)
    qtbot.addWidget(window)
    window.show()
    broken = file(tmp_path).read_text() + "\nthis is no TOML\n"
    file(tmp_path).write_text(broken)
    qtbot.waitUntil(lambda: "'home' is damaged" in texts(window), timeout=5000)

    async def story() -> None:
        actions.set_kill_switch("on")
        actions.set_proxy("home", ProxyOptions(enabled=True))
        await actions.settled()

    play(story())
    assert "This cannot be done: profile 'home' is damaged" in texts(window)
    assert file(tmp_path).read_text() == broken


def test_what_two_programs_change_at_once_is_all_kept(actions: Actions) -> None:
    others = [subprocess.Popen([sys.executable, "-c", _EDIT, str(number)]) for number in range(2)]
    for number in range(40):
        profiles.edit("home", lambda it, n=number: replace(it, lookups=(*it.lookups, f"app-{n}")))
    assert [other.wait(60) for other in others] == [0, 0]
    assert len(profiles.load("home").lookups) == 120


def test_clicks_that_come_faster_than_the_disk_are_all_stored(
    qtbot: QtBot, actions: Actions, play: Play
) -> None:
    dialog = SettingsDialog(actions)
    qtbot.addWidget(dialog)
    check, choice = dialog.app_rows["notifications"].check, dialog.app_rows["log_level"].choice
    assert check is not None
    assert choice is not None

    async def story() -> None:
        check.click()
        for level in ("warning", "debug"):
            at = choice.findData(level)
            choice.setCurrentIndex(at)
            choice.activated.emit(at)
        await dialog.settled()

    play(story())
    assert settings.load_settings() == Settings(notifications=False, log_level="debug")


def test_settings_that_are_edited_hold_without_their_window(qapp: QApplication, play: Play) -> None:
    logger = logging.getLogger("qvpn")
    before = logger.level

    async def story() -> None:
        app = App(qapp, Start(minimized=True))
        life = asyncio.create_task(app.run())
        for level in ("debug", "warning"):
            settings.settings_file().write_text(f'log_level = "{level}"\n')
            await until(lambda level=level: logger.level == getattr(logging, level.upper()))
        app.quit()
        await life

    play(story())
    logger.setLevel(before)


def test_what_an_agent_refuses_is_told_by_the_agents_reason(words: Words) -> None:
    refused = RefusedByAgent("nft said no", "see the log", "network-setup")
    assert words.problem(refused).startswith(words.failure("network-setup"))


class Slow(KeyringBackend):
    """A password store whose owner is asked first."""

    priority = 9  # type: ignore[assignment]
    seconds = 3.0
    kept: ClassVar[dict[tuple[str, str], str]] = {}

    def get_password(self, service: str, username: str) -> str | None:
        time.sleep(self.seconds)
        return self.kept.get((service, username))

    def set_password(self, service: str, username: str, password: str) -> None:
        time.sleep(self.seconds)
        self.kept[service, username] = password

    def delete_password(self, service: str, username: str) -> None:
        time.sleep(self.seconds)
        del self.kept[service, username]


@pytest.fixture
def slow_store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Slow]:
    """As for a user with a desktop: root's keys are never there."""
    from qvpn_core.auth.device_key import DeviceKey

    backend, before = Slow(), keyring.get_keyring()
    Slow.kept = {(keys.SERVICE, "home"): DeviceKey.generate().to_pem().decode()}
    monkeypatch.setattr(keys.paths, "is_root", lambda: False)
    keyring.set_keyring(backend)
    yield backend
    keyring.set_keyring(before)


def test_a_password_store_that_takes_its_time_does_not_freeze_the_app(
    qtbot: QtBot, model: SessionModel, actions: Actions, words: Words, slow_store: Slow, play: Play
) -> None:
    enabled = ProxyOptions(True, "127.0.0.1:0")
    profiles.edit(
        "home",
        lambda it: replace(
            it, token=None, key="secret-service", host="127.0.0.1", port=9, proxy=enabled
        ),
    )
    actions.profiles_moved()
    dialog = ProfilesDialog(model, actions, words)
    qtbot.addWidget(dialog)
    longest = 0.0

    async def watch() -> None:
        nonlocal longest
        while True:
            begin = time.monotonic()
            await asyncio.sleep(0.01)
            longest = max(longest, time.monotonic() - begin)

    async def story() -> None:
        watching = asyncio.create_task(watch())
        following = asyncio.create_task(model.run())
        begin = time.monotonic()
        actions.connect_to("home")
        await until(lambda: model.state is State.FAILED)
        assert model.status.reason == "unreachable", model.status.error
        assert time.monotonic() - begin > slow_store.seconds
        dialog._work(lambda: profiles.remove("home"))
        await until(lambda: dialog._task is None)
        for task in (watching, following):
            task.cancel()
        await asyncio.wait((watching, following))

    level = logging.getLogger("qvpn").level
    play(story())
    logging.getLogger("qvpn").setLevel(level)
    assert profiles.names() == ["work"]
    assert slow_store.kept == {}
    assert longest < slow_store.seconds / 2, "the loop waited for the password store"
