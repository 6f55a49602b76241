"""The app as a whole: makes the parts, connects them, and ends them in order.

One life: from the first window or tray icon to a network as it was before. It decides what appears
when; how things look and what they do is in the parts.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import sys
from collections.abc import Coroutine
from contextlib import suppress
from typing import TYPE_CHECKING

from PySide6.QtCore import QEvent, QObject, Qt
from PySide6.QtGui import QSessionManager
from PySide6.QtWidgets import QApplication

from qvpn_core.client.states import State
from qvpn_gui import icons, instance, languages, settings, style
from qvpn_gui.actions import Actions
from qvpn_gui.bus import SessionBus
from qvpn_gui.defects import Defects
from qvpn_gui.desktop_look import APPEARANCE, INTERFACE, DesktopLook
from qvpn_gui.dialogs.opener import Opener
from qvpn_gui.instance import Start
from qvpn_gui.notices import Notice, Notices
from qvpn_gui.session_model import SessionModel
from qvpn_gui.tray.menu import TrayMenu
from qvpn_gui.tray.tray import WATCHER, Tray
from qvpn_gui.watching import FileWatch
from qvpn_gui.window.main_window import MainWindow
from qvpn_gui.words import Words

if TYPE_CHECKING:  # windows that most starts do not open
    from qvpn_gui.dialogs.profiles import ProfilesDialog

log = logging.getLogger("qvpn.app")

#: Parts of the core that are imported once the app is there, beside the event loop.
_LATER = (
    "qvpn_core.client.agent",
    "qvpn_core.client.route_preview",
    "qvpn_core.client.doctor_facts",
    "qvpn_core.client.report",
)
#: What the desktop gets to say how it looks before the window appears.
_LOOK_SECONDS = 0.3


class App(QObject):
    """Everything that lives as long as the app. Made on a running loop; `run` is its life."""

    def __init__(self, qt: QApplication, start: Start) -> None:
        super().__init__()
        self._qt = qt
        self._start = start
        self._over = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self.defects = Defects(self._loop, self)
        self.words = Words(self)
        self.model = SessionModel(self)
        self.actions = Actions(self.model, self)
        self.window = MainWindow(self.model, self.actions, self.words)
        self.menu = TrayMenu(self.model, self.actions, self.words)
        self.tray = Tray(self.model, self.menu, self.words, self)
        self.opener = Opener(self.model, self.actions, self.window, self.menu)
        self.bus = SessionBus()
        self.look = DesktopLook(qt, self)
        self._look_known = asyncio.Event()
        file = settings.settings_file()
        self._settings_watch = FileWatch(file.parent, file.name, self)
        self._profiles: ProfilesDialog | None = None
        self._notices = Notices()
        self._messages: set[asyncio.Task[None]] = set()
        self._late: asyncio.TimerHandle | None = None
        self._connect()

    def _connect(self) -> None:
        qt = self._qt
        qt.setQuitOnLastWindowClosed(False)
        qt.installEventFilter(self)
        qt.saveStateRequest.connect(self._save_state, Qt.ConnectionType.DirectConnection)
        self.defects.quit.connect(self.quit)
        self.window.quit.connect(self.quit)
        self.window.closed.connect(self._window_closed)
        self.window.profiles.connect(self.open_profiles)
        self.window.first_run.enrolled.connect(self._enrolled)
        self.menu.quit.connect(self.quit)
        self.menu.open_window.connect(self.window.present)
        self.tray.activated.connect(self._tray_clicked)
        self.model.moved.connect(self._moved)
        self._settings_watch.changed.connect(self._follow_settings)
        self.bus.on_activated = self.window.present
        self._loop.add_signal_handler(signal.SIGINT, self.quit)
        for number in (signal.SIGTERM, signal.SIGHUP):
            self._loop.add_signal_handler(number, self.end_of_session)

    async def run(self) -> None:
        """Live until `quit`; then the network is as it was before."""
        try:
            async with instance.serve(self._started):
                async with asyncio.TaskGroup() as group:
                    lasting = [
                        group.create_task(self._guarded(work))
                        for work in (self.model.run(), self._join_desktop(), self._show_window())
                    ]
                    self._begin()
                    await self._over.wait()
                    self.window.hide()
                    await self.actions.close()
                    for task in lasting:
                        task.cancel()
        finally:
            self._end()

    def quit(self) -> None:
        """End the session, put the network back, leave. Idempotent."""
        self._over.set()

    def end_of_session(self) -> None:
        """The desktop's session ends: quit, and be as now when the next one starts us."""
        if not self._over.is_set():
            self.actions.keep_for_next_session()
        self.quit()

    def open_profiles(self) -> ProfilesDialog:
        """Show the window of profiles."""
        from qvpn_gui.dialogs.profiles import ProfilesDialog

        if self._profiles is None:
            self._profiles = ProfilesDialog(self.model, self.actions, self.words, self.window)
            self._profiles.enrolled.connect(self._enrolled)
        if not self.actions.profile_names():
            self._profiles.show_form()
        self._profiles.show()
        self._profiles.raise_()
        self._profiles.activateWindow()
        return self._profiles

    # The beginning and the end

    def _begin(self) -> None:
        gc.freeze()  # what exists now stays: no collection walks it again
        self._obey(self._start)
        if self._start.connect is None and self.model.state is State.DISCONNECTED:
            name = settings.load_settings().connect_at_start
            if self._start.minimized:  # as the desktop's session starts us, not the user
                name = self.actions.memory.resume or name
            if name in self.actions.profile_names():
                self.actions.connect_to(name)

    async def _join_desktop(self) -> None:
        """Find the panel and the notification service, when there are any."""
        self.tray.renew()
        await self.bus.connect()
        await self.bus.watch_settings((APPEARANCE, INTERFACE), self.look.show)
        self._look_known.set()
        await self.bus.watch_owner(WATCHER, self.tray.host_changed)
        if self._start.minimized and not self.tray.available():
            log.info("no panel takes icons: start qvpn again to see its window")
        # The core is slow to import: the first connection would wait for it, and the first look at
        # some windows would hold up the loop.
        for module in _LATER:
            await asyncio.to_thread(__import__, module)

    async def _show_window(self) -> None:
        """In the desktop's colours and font from the first moment, unless they take long."""
        if self._start.minimized:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(_LOOK_SECONDS):
                await self._look_known.wait()
        self.window.show()

    async def _guarded(self, work: Coroutine[None, None, None]) -> None:
        """A defect in one part does not end the others."""
        try:
            await work
        except Exception as error:
            self.defects.report(error)

    def _end(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            self._loop.remove_signal_handler(number)
        self._qt.removeEventFilter(self)
        if self._late is not None:
            self._late.cancel()
        self.tray.remove()
        self.bus.close()
        self.defects.close()
        self.window.close()

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:
        if event.type() == QEvent.Type.Quit and not self._over.is_set():
            # The end of the desktop's session: Qt may not stop before the network is put back.
            self.end_of_session()
            return True
        return super().eventFilter(watched, event)

    def _save_state(self, manager: QSessionManager) -> None:
        """The desktop's session is saved: come back as we are."""
        command = [sys.argv[0]]
        if not self.window.isVisible():
            command.append("--minimized")
        if self.model.wanted and self.actions.profile is not None:
            command += ["--connect", self.actions.profile]
        manager.setRestartCommand(command)
        manager.setRestartHint(QSessionManager.RestartHint.RestartIfRunning)

    # What happens

    def _started(self, start: Start) -> None:
        """The user started the app a second time."""
        self._obey(start)
        if not start.minimized:
            if start.token:
                # Qt takes it from there when it asks the compositor for the focus.
                os.environ["XDG_ACTIVATION_TOKEN"] = start.token
            self.window.present()

    def _obey(self, start: Start) -> None:
        if start.connect is None:
            return
        name = start.connect or self.actions.profile
        if name is None:
            self.window.present()  # which asks for an invite
        elif start.connect or not self.model.wanted:
            self.actions.connect_to(name)

    def _follow_settings(self) -> None:
        """Somebody edited the settings; the rest of them is read when it is needed."""
        settings.set_log_level(settings.load_settings())

    def _enrolled(self, name: str) -> None:
        self.actions.profiles_moved()
        self.actions.choose(name)

    def _tray_clicked(self) -> None:
        if self.window.isActiveWindow():
            self.window.close()
        else:
            self.window.present()

    def _window_closed(self) -> None:
        """Without a tray icon, an app that holds nothing has no reason to stay."""
        idle = self.model.state in (State.DISCONNECTED, State.FAILED)
        if idle and not self.tray.available():
            self.quit()

    def _moved(self, before: State, after: State) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None
        now = self._loop.time()
        notice = self._notices.moved(before, after, now, seen=self.window.isActiveWindow())
        if self._notices.due is not None:
            self._late = self._loop.call_at(self._notices.due, self._is_late)
        if notice is None and after is not State.RECONNECTING:
            self._tell(self.bus.withdraw())
        self._notify(notice)

    def _is_late(self) -> None:
        self._late = None
        self._notify(self._notices.late(seen=self.window.isActiveWindow()))

    def _notify(self, notice: Notice | None) -> None:
        if notice is None or not settings.load_settings().notifications:
            return
        status = self.model.status
        gateway = status.gateway or status.profile or ""
        title, text = {
            Notice.LOST: (
                self.tr("Connection lost"),
                self.tr("Reconnecting to {gateway}.").format(gateway=gateway),
            ),
            Notice.BACK: (self.tr("Connected again"), self.words.meaning(status)),
            Notice.FAILED: (self.words.failure(status.reason), status.error or ""),
            Notice.BLOCKED: (self.words.state(status), self.words.meaning(status)),
        }[notice]
        urgent = notice in (Notice.FAILED, Notice.BLOCKED)
        self._tell(self.bus.notify(title, text, urgent=urgent))

    def _tell(self, message: Coroutine[None, None, None]) -> None:
        task = self._loop.create_task(self._guarded(message))
        self._messages.add(task)
        task.add_done_callback(self._messages.discard)


def make_qt(arguments: list[str]) -> QApplication:
    """Qt's own application object, named for the desktop."""
    qt = QApplication(arguments)
    qt.setApplicationName("qvpn")
    qt.setDesktopFileName(icons.APP)
    style.install(qt)
    languages.install(qt, settings.load_settings().language)
    qt.setWindowIcon(icons.icon(icons.APP))
    return qt


async def live(qt: QApplication, start: Start) -> None:
    """The life of the app, on the running loop."""
    with suppress(asyncio.CancelledError):
        await App(qt, start).run()
