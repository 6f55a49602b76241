"""Every window without eyes, without a mouse, and with weak eyes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import pytest
from PySide6.QtCore import QPoint, Qt
from PySide6.QtGui import QAction, QColor, QPalette
from PySide6.QtTest import QTest
from PySide6.QtWidgets import QApplication, QDialog, QMenu, QPushButton, QWidget

from qvpn_core.client.states import State
from qvpn_gui import style, theme
from qvpn_gui.settings import Language
from qvpn_gui.widgets.graph import RECEIVED, SENT
from qvpn_gui.window.main_window import MainWindow
from tests.gui.controls import mnemonics, reachable, unnamed, unreachable
from tests.gui.desktop import Desktop, unavailable
from tests.gui.samples import dark
from tests.gui.scenes import SCENES
from tests.gui.talker import Talker
from tests.world.vpn import until

REPOSITORY: Final = Path(__file__).parents[2]
#: Debian's own, for which pyatspi is packaged.
PYTHON: Final = "/usr/bin/python3"
#: Menus belong to a panel or to another window, and a sheet of drawings to nobody.
WINDOWS: Final = [name for name in SCENES if "menu" not in name and name != "tray-icons"]
MENUS: Final = [name for name in SCENES if name.endswith(("menu", "menu-blocked"))]

# Without eyes: what a screen reader finds


Node = dict[str, Any]


class Reader:
    """Shows windows on a desktop of its own, and reads what a screen reader would."""

    def __init__(self, showing: Talker, tree: Talker) -> None:
        self._showing = showing
        self._tree = tree

    def window(self, scene: str) -> Node:
        """A scene as a tree."""
        assert self._showing.ask(scene) == scene
        # The app tells the bus of itself when it is asked for the first time.
        (window,) = until(lambda: json.loads(self._tree.ask("tree")), f"{scene} on the bus")
        assert isinstance(window, dict)
        return window


def nodes(window: Node) -> Iterator[Node]:
    """A tree, flat."""
    yield window
    for child in window["children"]:
        yield from nodes(child)


def living(home: Path) -> list[int]:
    """The processes that were started on the desktop with this directory."""
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            environment = (directory / "environ").read_bytes()
            state = (directory / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if f"HOME={home}".encode() in environment.split(b"\0") and state != "Z":
            found.append(int(directory.name))
    return found


def has_pyatspi() -> bool:
    done = subprocess.run(
        [PYTHON, "-c", "import pyatspi"], stderr=subprocess.DEVNULL, timeout=20, check=False
    )
    return done.returncode == 0


@pytest.fixture(scope="module")
def reader() -> Iterator[Reader]:
    if reason := unavailable():
        pytest.skip(reason)
    if not shutil.which(PYTHON) or not has_pyatspi():
        pytest.skip("a screen reader's view needs at-spi2-core and python3-pyatspi")
    with ExitStack() as stack:
        own = stack.enter_context(tempfile.TemporaryDirectory(prefix="qvpn-reader-"))
        with Desktop() as desktop:
            environment = desktop.environment | {
                "QT_LINUX_ACCESSIBILITY_ALWAYS_ON": "1",
                "QVPN_CONFIG_DIR": f"{own}/config",
                "QVPN_STATE_DIR": f"{own}/state",
                "QVPN_RUNTIME_DIR": f"{own}/run",
                "TZ": "UTC",
            }
            module = (sys.executable, "-m", "tests.gui.showing")
            program = str(REPOSITORY / "tests/gui/accessible_tree.py")
            with Talker(*module, env=environment) as showing:
                with Talker(PYTHON, program, str(showing.pid), env=environment) as tree:
                    yield Reader(showing, tree)
        until(lambda: not living(desktop.home), "an end of everything on that desktop")


@pytest.mark.timeout(120)
@pytest.mark.parametrize("scene", WINDOWS)
def test_a_screen_reader_has_a_name_and_a_role_for_every_control(
    reader: Reader, scene: str
) -> None:
    window = reader.window(scene)
    assert window["role"] in ("frame", "dialog", "alert")
    assert window["name"]
    roles = Counter(node["role"] for node in nodes(window))
    assert not roles.keys() & {"unknown", "invalid", "redundant object"}
    for node in nodes(window):
        what = f"{node['role']} {node['name']!r}"
        if node["focusable"] or node["role"] in ("push button", "image"):
            assert node["name"].strip(), f"{what} has no name"
            assert "&" not in node["name"], what
        if node["role"] == "combo box":
            assert node["label"].strip(), f"{what} does not say what it chooses"
        if node["focusable"] and node["role"] in ("filler", "panel"):
            # Qt has no better role for pages and for areas that scroll.
            assert node["children"], what


def test_a_screen_reader_reads_what_eyes_see(reader: Reader) -> None:
    said = {node["name"] for node in nodes(reader.window("window-connected"))}
    assert {
        "Protected", "Disconnect", "What uses the tunnel: Everything", "Kill switch: Off",
        "Your addresses: 10.86.0.7  fd86:9484::7", "Round trip: 23.4 ms",
        "Received in this session: 1.3 GB", "Receiving 10.1 Mbit/s",
    } <= said  # fmt: skip
    said = {node["name"] for node in nodes(reader.window("routes"))}
    assert "192.168.1.7. Nothing in the list covers this, so it is no exception." in said
    assert {"an exception", "no exception", "their printers", "Where would this go?"} <= said
    said = {node["name"] for node in nodes(reader.window("window-proxy"))}
    assert "SOCKS proxy: 127.0.0.1:1080" in said


# Without a mouse


@pytest.mark.parametrize("name", WINDOWS)
def test_every_control_is_named_and_reached_by_tab(
    scene: Callable[[str], QWidget], name: str
) -> None:
    window = scene(name)
    assert unnamed(window) == []
    assert unreachable(window) == []


@pytest.mark.parametrize(
    "name",
    [it for it in WINDOWS if it.startswith(("window", "first", "settings", "proxy", "defect"))],
)
def test_tab_goes_down_the_window(scene: Callable[[str], QWidget], name: str) -> None:
    window = scene(name)
    order = [widget.mapTo(window, QPoint(0, 0)) for widget in reachable(window)]
    start = order.index(min(order, key=lambda at: (at.y() // 16, at.x())))
    heights = [at.y() for at in order[start:] + order[:start]]
    for above, below in pairwise(heights):
        assert below >= above - 8, f"up from {above} to {below} of {heights}"


@pytest.mark.parametrize("language", ["en", "de", "zh_CN"])
@pytest.mark.parametrize("name", WINDOWS)
def test_a_letter_means_one_thing_in_a_window(
    scene: Callable[[str], QWidget],
    spoken: Callable[[Language], None],
    name: str,
    language: Language,
) -> None:
    spoken(language)
    window = scene(name)
    letters = Counter(letter for letter, _ in mnemonics(window))
    twice = {letter for letter, count in letters.items() if count > 1}
    assert not twice, [(letter, text) for letter, text in mnemonics(window) if letter in twice]


@pytest.mark.parametrize("language", ["en", "de", "zh_CN"])
@pytest.mark.parametrize("name", MENUS)
def test_a_letter_means_one_thing_in_a_menu(
    scene: Callable[[str], QWidget],
    spoken: Callable[[Language], None],
    name: str,
    language: Language,
) -> None:
    spoken(language)
    menu = scene(name)
    assert isinstance(menu, QMenu)
    for one in (menu, *menu.findChildren(QMenu)):
        shown = [it for it in one.actions() if it.isVisible() and not it.isSeparator()]
        letters = Counter(filter(None, map(letter, shown)))
        assert all(count == 1 for count in letters.values()), [it.text() for it in shown]
        assert all(it.text() for it in shown)


def letter(action: QAction) -> str:
    _, mark, after = action.text().partition("&")
    return after[:1].casefold() if mark else ""


@pytest.mark.parametrize(
    "name", [it for it in WINDOWS if not it.startswith(("window", "first", "profiles-delete"))]
)
def test_escape_closes_dialogs(scene: Callable[[str], QWidget], name: str) -> None:
    window = scene(name)
    assert isinstance(window, QDialog)
    closed: list[int] = []
    window.finished.connect(closed.append)
    QTest.keyClick(window, Qt.Key.Key_Escape)
    assert closed == [QDialog.DialogCode.Rejected.value]


def test_return_presses_what_has_the_focus_in_the_window(
    scene: Callable[[str], QWidget],
) -> None:
    window = scene("window-connected")
    assert isinstance(window, MainWindow)
    row = window.session.kill_switch_row
    row.setFocus()
    QTest.keyClick(row, Qt.Key.Key_Return)
    menu = window.session._kill_switch
    assert menu.isVisible()
    menu.hide()


def test_return_in_a_form_does_what_its_default_button_does(
    scene: Callable[[str], QWidget],
) -> None:
    dialog = scene("proxy")
    assert isinstance(dialog, QDialog)
    assert defaults(dialog) == ["OK"]
    assert defaults(scene("defect")) == ["Continue"]
    assert defaults(scene("profiles-delete")) == ["Cancel"], "what cannot be undone is not near"


def defaults(window: QWidget) -> list[str]:
    buttons = window.findChildren(QPushButton)
    return [button.text().replace("&", "") for button in buttons if button.isDefault()]


# With weak eyes: contrast (WCAG 2.2)

TEXT: Final = 4.5  # 1.4.3
DRAWING: Final = 3.0  # 1.4.11


def palettes() -> dict[str, QPalette]:
    """Qt's own, the gallery's dark one, and others that desktops have."""
    warm = QPalette(QColor("#e8e0d4"))
    slate = QPalette(QColor("#2e3440"))
    black = QPalette(QColor("#101010"))
    for palette in (slate, black):
        for role in (QPalette.ColorRole.WindowText, QPalette.ColorRole.Text):
            palette.setColor(role, QColor("#eceff4"))
    return {"dark": dark(), "warm": warm, "slate": slate, "black": black}


@pytest.fixture(params=["light", *palettes()])
def palette(qapp: QApplication, request: pytest.FixtureRequest) -> QPalette:
    return palettes().get(request.param) or QPalette(qapp.palette())


def test_text_can_be_read(palette: QPalette) -> None:
    role = QPalette.ColorRole
    grounds = [palette.window().color(), theme.card(palette), palette.base().color()]
    for ground in grounds:
        assert theme.contrast(palette.windowText().color(), ground) >= TEXT
        assert theme.contrast(theme.dim(palette), ground) >= TEXT
    assert theme.contrast(QColor("white"), theme.accent(palette)) >= TEXT
    assert theme.contrast(palette.color(role.Text), palette.color(role.AlternateBase)) >= TEXT


def test_what_is_drawn_can_be_seen(palette: QPalette) -> None:
    grounds = {
        "window": palette.window().color(),
        "card": theme.card(palette),
        "list": palette.base().color(),
    }
    drawn = {f"{state}": theme.color(state) for state in State}
    drawn |= dict(theme.VERDICTS.values())
    drawn |= {"received": QColor(RECEIVED), "sent": QColor(SENT)}
    for what, color in drawn.items():
        for where, ground in grounds.items():
            shown = theme.seen(color, palette)
            assert theme.contrast(shown, ground) >= DRAWING, f"{what} on {where}"


def test_what_can_be_ticked_or_filled_in_has_an_edge_that_is_seen(palette: QPalette) -> None:
    edge = style.edge(palette)
    for ground in (palette.window().color(), theme.card(palette), palette.base().color()):
        assert theme.contrast(edge, ground) >= DRAWING
