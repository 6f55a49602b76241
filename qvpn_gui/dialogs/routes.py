"""What uses the tunnel: a list that a person edits, beside what the planner would make of it.

It holds no logic: `qvpn_core.client.route_list` reads and judges the list, `route_preview` asks the
planner. Applying stores the list and has a live session follow at once. Nothing is read or looked
up on the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path
from typing import Final

from PySide6.QtCore import QModelIndex, QTimer, Signal
from PySide6.QtGui import QKeySequence, QShortcut
from PySide6.QtWidgets import QDialog, QFileDialog, QWidget

from qvpn_core.client import control, remote
from qvpn_core.client.lookup import look_up
from qvpn_core.client.planner import GatewayOffer, SystemState
from qvpn_core.client.profiles import LAN_WORD
from qvpn_core.client.route_list import (
    PRIVATE,
    Entry,
    Finding,
    RouteList,
    compile_policy,
    format_lines,
    names,
    parse_destination,
    parse_lines,
    stored,
)
from qvpn_core.client.route_preview import Preview, oddities, preview
from qvpn_core.client.states import State
from qvpn_core.errors import QvpnError, UsageError
from qvpn_core.net.plan import Network
from qvpn_core.net.survey import Survey, survey
from qvpn_gui.actions import Actions
from qvpn_gui.dialogs.routes_table import LinesTable, RoutesTable
from qvpn_gui.dialogs.routes_view import RoutesView
from qvpn_gui.dialogs.routes_words import RouteWords
from qvpn_gui.session_model import SessionModel
from qvpn_gui.words import Words, sentence

#: Milliseconds without a key after which what is typed is looked at.
_PAUSE: Final = 200
#: Bytes of a file that is imported.
_MAX_FILE: Final = 1 << 20
#: Addresses of a name that are answered for.
_ANSWERS: Final = 4


class RoutesDialog(QDialog):
    """Open it with `start`, on a running loop; a closed one has no task left."""

    #: The list was applied.
    applied = Signal()

    def __init__(
        self,
        model: SessionModel,
        actions: Actions,
        parent: QWidget | None = None,
    ) -> None:
        super().__init__(parent)
        self._model = model
        self._actions = actions
        self._words, self._failures = RouteWords(self), Words(self)
        self.lines = LinesTable(self._words, self)
        self.view = RoutesView(self.lines, RoutesTable(self._words, self), self)
        self.preview: Preview | None = None
        self._name = ""
        #: What the names were when the list was stored, and what they are now.
        self._known: dict[str, tuple[Network, ...]] = {}
        self._lookups: dict[str, tuple[Network, ...]] = {}
        self._offer: GatewayOffer | None = None
        self._mtu = 0
        self._survey = Survey()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._pause = QTimer(self, singleShot=True, interval=_PAUSE)
        self._where_pause = QTimer(self, singleShot=True, interval=2 * _PAUSE)
        self._connect()

    def _connect(self) -> None:
        view = self.view
        view.mode_chosen.connect(self._edited)
        view.add_text.textChanged.connect(self._check_addition)
        view.add_text.returnPressed.connect(self._add)
        view.add.clicked.connect(self._add)
        view.remove.clicked.connect(self._remove)
        view.private.triggered.connect(lambda: self._add_texts(PRIVATE))
        view.lan.triggered.connect(lambda: self._add_texts((LAN_WORD,)))
        view.offered.triggered.connect(self._add_offer)
        view.import_.clicked.connect(self._import)
        view.export.clicked.connect(self._export)
        view.where.textChanged.connect(self._ask_soon)
        view.apply.clicked.connect(self._apply)
        view.ok.clicked.connect(lambda: self._apply(close=True))
        view.cancel.clicked.connect(self.reject)
        view.table.selectionModel().currentRowChanged.connect(self._show_finding)
        view.table.selectionModel().selectionChanged.connect(self._choose)
        self.lines.edited.connect(self._edited)
        self.lines.rejected.connect(self._rejected)
        self._pause.timeout.connect(lambda: self._run("preview", self._compute()))
        self._where_pause.timeout.connect(lambda: self._run("where", self._answer()))
        delete = QShortcut(QKeySequence(QKeySequence.StandardKey.Delete), view.table)
        delete.activated.connect(self._remove)

    def start(self) -> asyncio.Task[None]:
        """Show the list of the chosen profile; the task ends when all is seen and looked up."""
        profile = self._actions.stored_profile()
        self._name = profile.name if profile is not None else ""
        self.setWindowTitle(self.tr("What uses the tunnel: {name}").format(name=self._name))
        self.setEnabled(profile is not None)
        if profile is not None:
            routes, lookups = stored(profile)
            self._lookups = {}  # a name may mean something else by now
            self._known = dict(lookups)
            self.view.show_mode(routes.mode)
            self.lines.show(routes.entries)
        self.view.show_changed(False)
        return self._run("begin", self._begin())

    @property
    def routes(self) -> RouteList:
        """The list as it is shown."""
        return RouteList(self.view.mode, tuple(self.lines.entries))

    async def _begin(self) -> None:
        try:
            self._survey = await asyncio.to_thread(survey)
        except OSError:
            self._survey = Survey()  # the preview does without the LAN
        self._offer, self._mtu = await self._ask_offer()
        self.view.offered.setEnabled(bool(self._offer_texts()))
        await self._compute()

    async def _ask_offer(self) -> tuple[GatewayOffer | None, int]:
        """What the gateway of the live session carries."""
        if self._model.status.profile != self._name or self._model.state is not State.CONNECTED:
            return None, 0
        try:
            reply = await remote.ask(control.OfferRequest())
        except QvpnError:
            return None, 0
        if not isinstance(reply, control.OfferReply) or not reply.addresses:
            return None, 0
        addresses = tuple(map(ip_interface, reply.addresses))
        return GatewayOffer(addresses, tuple(map(ip_network, reply.routes))), reply.mtu

    async def _compute(self) -> None:
        """Judge the list; look up names that are new, and judge it again."""
        await self._judge()
        if missing := names(self.routes) - self._lookups.keys():
            self.view.say_names(self.tr("Looking up names…"))
            self._lookups |= await look_up(missing)
            await self._judge()

    async def _judge(self) -> None:
        routes = self.routes
        lookups = {**self._known, **self._lookups}
        again = self.tr("Names are looked up again each time you connect.")
        self.view.say_names(again if names(routes) else "")
        found, made = await asyncio.to_thread(self._judged, routes, lookups)
        self.lines.show_findings(found)
        self.preview = made if isinstance(made, Preview) else None
        self.view.show_preview(made)
        self._show_finding()
        if self.view.where.text().strip():
            self._run("where", self._answer())

    def _judged(
        self, routes: RouteList, lookups: dict[str, tuple[Network, ...]]
    ) -> tuple[tuple[Finding, ...], Preview | QvpnError]:
        """In a thread: thousands of lines take a moment."""
        found = oddities(routes, lookups, self._offer)
        profile = self._actions.stored_profile()
        state = SystemState((), self._survey.attached, self._survey.rules_before)
        try:
            return found, preview(
                routes,
                lookups,
                self._offer,
                state,
                mtu=self._mtu,
                kill_switch=profile.kill_switch if profile is not None else "off",
            )
        except QvpnError as error:
            return found, error

    async def _answer(self) -> None:
        text = self.view.where.text().strip()
        if not text or self.preview is None:
            self.view.say_where("")
            return
        try:
            wanted = parse_destination(text)
            addresses = [ip_network(wanted).network_address]
        except UsageError as error:
            self.view.say_where(str(error))
            return
        except ValueError:
            self.view.say_where(self.tr("Looking up {name}…").format(name=text))
            found = (await look_up([wanted]))[wanted]
            addresses = [network.network_address for network in found[:_ANSWERS]]
        if not addresses:
            self.view.say_where(self.tr("{name} has no address.").format(name=text))
            return
        answers = [self._words.answer(self.preview.where(ip_address(it))) for it in addresses]
        self.view.say_where("\n".join(answers))

    def _ask_soon(self) -> None:
        self._where_pause.start()

    # The list

    def _edited(self) -> None:
        self.view.show_changed(True)
        self.view.say("")
        self._pause.start()

    def _typed(self) -> tuple[tuple[Entry, ...], str]:
        """What is typed for an addition, and what is wrong with it."""
        text = self.view.add_text.text()
        comment = text.partition("#")[2]
        texts = text.partition("#")[0].replace(",", " ").split()
        try:
            entries, wrong = parse_lines("\n".join(texts))
        except UsageError as error:
            return (), sentence(str(error))
        if wrong:
            return (), sentence(str(wrong[0][1]))
        if comment.strip():
            entries = tuple(
                Entry(it.text, it.exception, " ".join(comment.split())) for it in entries
            )
        return entries, ""

    def _check_addition(self) -> None:
        entries, wrong = self._typed()
        self.view.add.setEnabled(bool(entries))
        self.view.say(wrong)

    def _add(self) -> None:
        entries, wrong = self._typed()
        if entries and not wrong:
            self.view.add_text.clear()
            self.lines.add(entries)
            self.view.table.scrollToBottom()

    def _add_texts(self, texts: tuple[str, ...]) -> None:
        present = {entry.text for entry in self.lines.entries}
        self.lines.add(Entry(text) for text in texts if text not in present)

    def _offer_texts(self) -> tuple[str, ...]:
        if self._offer is None:
            return ()
        return tuple(str(network) for network in self._offer.routes if network.prefixlen)

    def _add_offer(self) -> None:
        self._add_texts(self._offer_texts())

    def _remove(self) -> None:
        rows = [index.row() for index in self.view.table.selectionModel().selectedIndexes()]
        self.lines.remove(rows)

    def _choose(self) -> None:
        self.view.remove.setEnabled(self.view.table.selectionModel().hasSelection())

    def _rejected(self, error: UsageError) -> None:
        self.view.say(sentence(str(error)))

    def _show_finding(self, current: QModelIndex | None = None, _before: object = None) -> None:
        """Explain the chosen line when it is odd, else the first that is."""
        rows = range(len(self.lines.entries))
        chosen = current.row() if current is not None else self.view.table.currentIndex().row()
        if self.lines.finding(chosen) is None:
            chosen = next((row for row in rows if self.lines.finding(row) is not None), -1)
        finding = self.lines.finding(chosen)
        if finding is None or self.view.mode == "all":
            self.view.say_finding("")
        else:
            text = self.lines.entries[chosen].text
            self.view.say_finding(f"{text}: {self._words.finding(finding)}")

    # Files

    def _import(self) -> None:
        name, _ = QFileDialog.getOpenFileName(self, self.tr("Import destinations"))
        if name:
            self._run("file", self.import_file(Path(name)))

    async def import_file(self, path: Path) -> None:
        """Add the lines of a file, all or none."""

        def read() -> str:
            with path.open("rb") as file:
                return file.read(_MAX_FILE).decode()

        try:
            entries, wrong = parse_lines(await asyncio.to_thread(read))
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else self.tr("it is not a text file")
            self.view.say(
                self.tr("{file} cannot be read: {why}").format(file=path.name, why=why or "")
            )
            return
        except UsageError as error:
            self.view.say(sentence(str(error)))
            return
        if wrong:
            line, error_in_line = wrong[0]
            self.view.say(
                self.tr("Line {line} of {file}: {why}").format(
                    line=line, file=path.name, why=error_in_line
                )
            )
            return
        self.lines.add(entries)

    def _export(self) -> None:
        name, _ = QFileDialog.getSaveFileName(
            self, self.tr("Export destinations"), f"{self._name}-routes.txt"
        )
        if name:
            self._run("file", self.export_file(Path(name)))

    async def export_file(self, path: Path) -> None:
        """Write the lines to a file."""
        text = format_lines(self.lines.entries)
        try:
            await asyncio.to_thread(path.write_text, text)
        except OSError as error:
            why = error.strerror or ""
            self.view.say(
                self.tr("{file} cannot be written: {why}").format(file=path.name, why=why)
            )

    # The end

    def _apply(self, _checked: bool = False, *, close: bool = False) -> None:
        self._run("apply", self.apply(close=close))

    async def apply(self, *, close: bool = False) -> None:
        """Store the list; a live session of this profile follows at once."""
        self.view.set_busy(True)
        routes = self.routes
        try:
            if missing := names(routes) - self._lookups.keys():
                self._lookups |= await look_up(missing)
            # Where a name is not found just now, what it was is better than nothing.
            known = {
                name: self._lookups.get(name) or self._known.get(name, ()) for name in names(routes)
            }
            await asyncio.to_thread(compile_policy, routes, known)
            await self._actions.apply_routes(self._name, routes, known)
        except QvpnError as error:
            # What is wrong with the list speaks for itself.
            typed = isinstance(error, UsageError)
            self.view.say(sentence(str(error)) if typed else self._failures.problem(error))
            return
        finally:
            self.view.set_busy(False)
        self.view.show_changed(self.routes != routes)
        self.applied.emit()
        if close:
            self._tasks.pop("apply", None)  # the end of this dialog does not cancel what ends it
            self.accept()

    def done(self, result: int) -> None:
        """Close; what is still being looked up is not waited for."""
        for task in self._tasks.values():
            task.cancel()
        self._tasks.clear()
        self._pause.stop()
        self._where_pause.stop()
        super().done(result)

    def _run(self, kind: str, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        """One task of a kind at a time: the latest."""
        if (before := self._tasks.get(kind)) is not None:
            before.cancel()
        task = asyncio.get_running_loop().create_task(work)
        self._tasks[kind] = task
        return task
