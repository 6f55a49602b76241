"""Every window of the app in every state, by name: for pictures, and for what must hold in all.

A scene returns its window, filled and not yet shown. `Stage.run` runs what needs the app's loop.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, Final

from msgspec.structs import replace
from PySide6.QtCore import Qt
from PySide6.QtGui import QColor, QFont, QPainter, QPaintEvent
from PySide6.QtWidgets import QMessageBox, QWidget

from qvpn_core.auth.invite import Gateway, Invite
from qvpn_core.client import paths, profiles, report
from qvpn_core.client.doctor import Facts, examine
from qvpn_core.client.planner import GatewayOffer
from qvpn_core.client.profiles import LAN_WORD
from qvpn_core.client.route_list import Entry
from qvpn_core.client.states import State
from qvpn_core.client.status import Proxy, Status
from qvpn_core.errors import UsageError
from qvpn_gui import icons, settings, theme
from qvpn_gui.actions import Actions
from qvpn_gui.dialogs.defect import DefectDialog
from qvpn_gui.dialogs.diagnostics import DiagnosticsDialog
from qvpn_gui.dialogs.opener import Opener
from qvpn_gui.dialogs.profiles import ProfilesDialog
from qvpn_gui.dialogs.proxy import ProxyDialog
from qvpn_gui.dialogs.routes import RoutesDialog
from qvpn_gui.dialogs.settings import SettingsDialog
from qvpn_gui.session_model import SessionModel
from qvpn_gui.tray.menu import TrayMenu
from qvpn_gui.versions import versions
from qvpn_gui.window.main_window import MainWindow
from qvpn_gui.words import Words
from tests.gui.samples import STATUSES, traffic

_LONG_NAME: Final = "the-office-in-llanfairpwllgwyngyllgogerychwyrndrobwllllantysi"
_LONG_HOST: Final = "gateway-7.vpn.department-of-very-long-names.subsidiary.example.org"
_PIN: Final = "sha256/" + "A" * 43 + "="
_LOG: Final = """\
2026-11-23 09:41:00,123 INFO qvpn.session: connected to 203.0.113.9:443 over quic
2026-11-23 09:44:12,007 WARNING qvpn.session: the gateway is silent; reconnecting
2026-11-23 09:44:13,450 INFO qvpn.session: connected to 203.0.113.9:443 over tls
2026-11-23 09:59:30,901 ERROR qvpn.app: a defect
Traceback (most recent call last):
  File "qvpn_gui/actions.py", line 1, in _connect
ZeroDivisionError: division by zero
"""


@dataclass(frozen=True, slots=True)
class Stage:
    """What windows are made of, with the profiles ``home`` and ``work``."""

    run: Callable[[Coroutine[Any, Any, None]], None]
    words: Words
    model: SessionModel
    actions: Actions
    #: What has to live as long as what is shown.
    kept: list[object] = field(default_factory=list)


@contextmanager
def stage(run: Callable[[Coroutine[Any, Any, None]], None]) -> Iterator[Stage]:
    """A stage with fresh profiles, settings and logs, in the directories of the environment."""
    for name in profiles.names():
        profiles.remove(name)
    for name in ("work", "home"):
        profiles.save(profiles.make_profile(name, "vpn.example.org", "x" * 40))
    settings.settings_file().unlink(missing_ok=True)
    (paths.make_private(paths.state_dir()) / "app.log").write_text(_LOG)
    model = SessionModel()
    actions = Actions(model)
    _choose(run, actions, "work")
    yield Stage(run, Words(), model, actions)


def _choose(run: Callable[[Coroutine[Any, Any, None]], None], actions: Actions, name: str) -> None:
    async def choose() -> None:
        actions.choose(name)

    run(choose())


# The main window


def _window(stage: Stage, status: Status | None = None) -> MainWindow:
    window = MainWindow(stage.model, stage.actions, stage.words)
    menu = TrayMenu(stage.model, stage.actions, stage.words, window)
    Opener(stage.model, stage.actions, window, menu)
    if status is not None:
        if status.transport:
            stage.model.samples.extend(traffic())
        stage.model.show(status)
    return window


def _state(name: str) -> Callable[[Stage], QWidget]:
    return lambda stage: _window(stage, STATUSES[name])


def _warned(stage: Stage) -> QWidget:
    return _window(
        stage,
        replace(
            STATUSES["connected"],
            transport="tls",
            warnings=(
                "UDP does not reach the gateway, so TLS over TCP is used: slower on lossy networks",
            ),
        ),
    )


def _note(stage: Stage) -> QWidget:
    window = _window(stage, STATUSES["connected"])
    stage.actions.failed.emit(UsageError("the disk is full", "remove something"))
    return window


def _long(stage: Stage) -> QWidget:
    profiles.save(profiles.make_profile(_LONG_NAME, _LONG_HOST, "x" * 40))
    stage.actions.profiles_moved()
    _choose(stage.run, stage.actions, _LONG_NAME)
    return _window(
        stage,
        replace(
            STATUSES["failed"],
            profile=_LONG_NAME,
            gateway=_LONG_HOST,
            error=f"no answer from {_LONG_HOST}:443 within 10 seconds: check the address, that "
            "the gateway runs, and that UDP is not blocked. /a/path/without/any/space/that/is/"
            "longer/than/every/window/is/wide/and/has/to/go/somewhere",
        ),
    )


def _long_proxies(stage: Stage) -> QWidget:
    return _window(
        stage,
        replace(
            STATUSES["proxy"],
            gateway=_LONG_HOST,
            proxies=(
                Proxy(kind="socks", listen="[2001:db8:86:9484:1234:5678:9abc:def0]:1080"),
                Proxy(kind="http", listen="127.0.0.1:3128"),
                Proxy(kind="forward", listen="127.0.0.1:2222", target=f"{_LONG_HOST}:22"),
            ),
        ),
    )


def _other_user(stage: Stage) -> QWidget:
    return _window(stage, Status(other_user="margarethe"))


# First start


def _without_profiles(stage: Stage) -> MainWindow:
    for name in profiles.names():
        profiles.remove(name)
    stage.actions.profiles_moved()
    return _window(stage)


def _invite(expires: float) -> str:
    moment = int(time.time() + expires)
    return Invite((Gateway("vpn.example.org", 443),), b"s" * 16, (_PIN,), expires=moment).link


def _with_text(text: Callable[[], str]) -> Callable[[Stage], QWidget]:
    def scene(stage: Stage) -> QWidget:
        window = _without_profiles(stage)
        window.first_run.form.text.setPlainText(text())
        return window

    return scene


# Dialogs


def _profiles(stage: Stage) -> ProfilesDialog:
    return ProfilesDialog(stage.model, stage.actions, stage.words)


def _profiles_in_use(stage: Stage) -> QWidget:
    stage.model.show(STATUSES["connected"])
    return _profiles(stage)


def _profiles_add(stage: Stage) -> QWidget:
    dialog = _profiles(stage)
    dialog.show_form()
    dialog.form.text.setPlainText(_invite(3600))
    return dialog


def _profiles_long(stage: Stage) -> QWidget:
    profiles.save(profiles.make_profile(_LONG_NAME, _LONG_HOST, "x" * 40))
    stage.actions.profiles_moved()
    _choose(stage.run, stage.actions, _LONG_NAME)
    return _profiles(stage)


def _profiles_delete(stage: Stage) -> QWidget:
    dialog = _profiles(stage)
    dialog.delete.click()
    box = dialog.findChild(QMessageBox)
    assert box is not None
    box.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose, False)
    box.hide()
    stage.kept.append(dialog)
    return box


_LIST: Final = (
    Entry("10.0.0.0/8", comment="the office"),
    Entry("10.1.0.0/16", exception=True, comment="guests"),
    Entry("10.1.2.0/24", comment="their printers"),
    Entry("192.168.1.7", exception=True),
)


def _routes(
    mode: Any = "only",
    entries: tuple[Entry, ...] = _LIST,
    *,
    where: str = "10.1.2.9",
    typed: str = "",
    offer: GatewayOffer | None = None,
    width: int = 0,
) -> Callable[[Stage], QWidget]:
    def scene(stage: Stage) -> QWidget:
        dialog = RoutesDialog(stage.model, stage.actions)

        async def show() -> None:
            await dialog.start()
            dialog._offer = offer
            dialog.view.show_mode(mode)
            dialog.lines.show(entries)
            dialog.view.where.setText(where)
            dialog.view.add_text.setText(typed)
            await dialog._compute()
            await dialog._answer()
            dialog.done(0)  # it is only looked at

        stage.run(show())
        dialog.resize(width or 940, 620)
        return dialog

    return scene


def _settings(stage: Stage) -> QWidget:
    return SettingsDialog(stage.actions)


def _settings_problem(stage: Stage) -> QWidget:
    file = settings.settings_file()
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text('notifications = "maybe"\n')
    return SettingsDialog(stage.actions)


def _proxy(*, on: bool, forwards: str = "") -> Callable[[Stage], QWidget]:
    def scene(stage: Stage) -> QWidget:
        dialog = ProxyDialog(stage.actions)
        dialog.start()
        if on:
            dialog.proxy.click()
            dialog.forwards.setPlainText(forwards)
        return dialog

    return scene


def _diagnostics(page: int) -> Callable[[Stage], QWidget]:
    def scene(stage: Stage) -> QWidget:
        dialog = DiagnosticsDialog(stage.actions)
        facts = Facts(datetime(2026, 11, 23, 9, 41, tzinfo=UTC), tun=False, synchronised=False)
        findings = examine(facts)
        dialog.checks.show_findings(findings)
        dialog.log.refresh()
        dialog.report.show_parts(report.compose(findings, STATUSES["connected"], versions()))
        dialog.pages.setCurrentIndex(page)
        return dialog

    return scene


def _diagnostics_busy(stage: Stage) -> QWidget:
    dialog = DiagnosticsDialog(stage.actions)
    dialog.checks.show_busy()
    return dialog


def _defect(stage: Stage) -> QWidget:
    return DefectDialog(
        "Traceback (most recent call last):\n"
        '  File "qvpn_gui/actions.py", line 233, in _connect\n'
        "    await self._hold(name)\n"
        "ZeroDivisionError: division by zero"
    )


# Menus and icons


def _tray_menu(name: str) -> Callable[[Stage], QWidget]:
    def scene(stage: Stage) -> QWidget:
        stage.model.show(STATUSES[name])
        return TrayMenu(stage.model, stage.actions, stage.words)

    return scene


def _window_menu(stage: Stage) -> QWidget:
    window = _window(stage)
    window.menu.setParent(None, window.menu.windowFlags())
    stage.kept.append(window)
    return window.menu


class _Icons(QWidget):
    """Each state as panels draw it: light, dark, black, and without colour."""

    _GROUNDS = ("#ffffff", "#efefef", "#2b2b2d", "#000000")
    _SIZES = (16, 22, 24)

    def __init__(self) -> None:
        super().__init__()
        self.setFixedSize(86 + 104 * 2 * len(self._GROUNDS), 34 * len(State) + 26)

    def paintEvent(self, event: QPaintEvent) -> None:  # noqa: N802  # Qt's name
        painter = QPainter(self)
        painter.fillRect(self.rect(), QColor("#c8c8c8"))
        font = QFont(self.font())
        for row, state in enumerate(State):
            top = 26 + 34 * row
            painter.setFont(theme.scaled(font, 0.8))
            painter.setPen(QColor("black"))
            painter.drawText(4, top + 20, str(state))
            for column, (ground, grey) in enumerate(
                (ground, grey) for grey in (False, True) for ground in self._GROUNDS
            ):
                left = 86 + 104 * column
                painter.fillRect(left, top, 100, 32, QColor(ground))
                color = theme.color(state)
                if grey:
                    level = round(
                        0.299 * color.red() + 0.587 * color.green() + 0.114 * color.blue()
                    )
                    color = QColor(level, level, level)
                at = left + 6
                for size in self._SIZES:
                    drawing = theme.DRAWINGS[state][0]
                    ratio = self.devicePixelRatioF()
                    painter.drawPixmap(
                        at, top + (32 - size) // 2, icons.pixmap(drawing, size, color, ratio)
                    )
                    at += size + 8


def _icons(_stage: Stage) -> QWidget:
    return _Icons()


#: By the name that a picture of it has.
SCENES: Final[Mapping[str, Callable[[Stage], QWidget]]] = MappingProxyType(
    {
        "first-run": _without_profiles,
        "first-run-invite": _with_text(lambda: _invite(3600)),
        "first-run-cut-off": _with_text(lambda: _invite(3600)[:-20]),
        **{f"window-{name}": _state(name) for name in STATUSES},
        "window-warning": _warned,
        "window-note": _note,
        "window-long": _long,
        "window-long-proxies": _long_proxies,
        "window-other-user": _other_user,
        "window-menu": _window_menu,
        "tray-menu": _tray_menu("connected-only"),
        "tray-menu-blocked": _tray_menu("blocked"),
        "tray-icons": _icons,
        "profiles": _profiles,
        "profiles-in-use": _profiles_in_use,
        "profiles-long": _profiles_long,
        "profiles-add": _profiles_add,
        "profiles-delete": _profiles_delete,
        "routes": _routes(),
        "routes-all": _routes("all", (), where=""),
        "routes-empty": _routes("only", (), where=""),
        "routes-except": _routes(
            "all-except", (Entry(LAN_WORD), Entry("198.51.100.0/24", comment="x" * 60)),
            where="192.168.1.9",
        ),
        "routes-wrong": _routes(typed="10.0.0.1/8"),
        "routes-narrow": _routes(width=520),
        "settings": _settings,
        "settings-problem": _settings_problem,
        "proxy": _proxy(on=True),
        "proxy-tunnel": _proxy(on=False),
        "proxy-wrong": _proxy(on=True, forwards="2222:host.example.org"),
        "diagnostics": _diagnostics(0),
        "diagnostics-busy": _diagnostics_busy,
        "diagnostics-log": _diagnostics(1),
        "diagnostics-report": _diagnostics(2),
        "defect": _defect,
    }
)  # fmt: skip
