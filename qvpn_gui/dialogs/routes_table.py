"""The two tables of the route dialog: the lines, which can be edited, and the routes they make."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Final

from PySide6.QtCore import (
    QAbstractTableModel,
    QModelIndex,
    QObject,
    QPersistentModelIndex,
    Qt,
    Signal,
)
from PySide6.QtGui import QGuiApplication

from qvpn_core.client.route_list import Entry, Finding, parse_destination
from qvpn_core.client.route_preview import Row
from qvpn_core.errors import UsageError
from qvpn_gui import icons, theme
from qvpn_gui.dialogs.routes_words import RouteWords

DESTINATION: Final = 0
EXCEPTION: Final = 1
COMMENT: Final = 2

_Index = QModelIndex | QPersistentModelIndex
_Role = Qt.ItemDataRole
_NOWHERE: Final = QModelIndex()


class LinesTable(QAbstractTableModel):
    """The entries of a list. What cannot be meant is not taken, and `rejected` says why."""

    edited = Signal()
    rejected = Signal(object)

    def __init__(self, words: RouteWords, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._words = words
        self.entries: list[Entry] = []
        self._findings: dict[int, Finding] = {}

    def show(self, entries: Iterable[Entry]) -> None:
        """Show other entries."""
        self.beginResetModel()
        self.entries = list(entries)
        self._findings = {}
        self.endResetModel()

    def show_findings(self, findings: Sequence[Finding]) -> None:
        """Mark what is odd; the first of a line counts."""
        self._findings = {finding.row: finding for finding in reversed(findings)}
        if self.entries:
            last = self.index(len(self.entries) - 1, DESTINATION)
            self.dataChanged.emit(self.index(0, DESTINATION), last)

    def finding(self, row: int) -> Finding | None:
        """What is odd about a line."""
        return self._findings.get(row)

    def add(self, entries: Iterable[Entry]) -> None:
        """More entries at the end."""
        more = list(entries)
        if more:
            first = len(self.entries)
            self.beginInsertRows(QModelIndex(), first, first + len(more) - 1)
            self.entries += more
            self.endInsertRows()
            self.edited.emit()

    def remove(self, rows: Iterable[int]) -> None:
        """Fewer entries."""
        for row in sorted(set(rows), reverse=True):
            self.beginRemoveRows(QModelIndex(), row, row)
            del self.entries[row]
            self.endRemoveRows()
        self._findings = {}
        self.edited.emit()

    def rowCount(self, parent: _Index = _NOWHERE) -> int:
        return 0 if parent.isValid() else len(self.entries)

    def columnCount(self, parent: _Index = _NOWHERE) -> int:
        return 0 if parent.isValid() else 3

    def headerData(self, section: int, orientation: Qt.Orientation, role: int = 0) -> Any:
        if orientation is Qt.Orientation.Horizontal and role == _Role.DisplayRole:
            return (self.tr("Destination"), self.tr("Exception"), self.tr("Comment"))[section]
        return None

    def flags(self, index: _Index) -> Qt.ItemFlag:
        flags = super().flags(index)
        if index.column() == EXCEPTION:
            return flags | Qt.ItemFlag.ItemIsUserCheckable
        return flags | Qt.ItemFlag.ItemIsEditable

    def data(self, index: _Index, role: int = _Role.DisplayRole) -> Any:
        entry, finding = self.entries[index.row()], self._findings.get(index.row())
        column = index.column()
        if role == _Role.AccessibleTextRole:
            return self._spoken(entry, column, finding)
        if column == EXCEPTION:
            if role == _Role.CheckStateRole and entry.text:
                return Qt.CheckState.Checked if entry.exception else Qt.CheckState.Unchecked
            return None
        if column == COMMENT:
            return entry.comment if role in (_Role.DisplayRole, _Role.EditRole) else None
        if role == _Role.EditRole:
            return entry.text
        if role == _Role.DisplayRole:
            return self._words.destination(entry)
        if finding is not None and role == _Role.DecorationRole:
            drawing, color = theme.VERDICTS["warning"]
            return icons.icon(drawing, theme.seen(color, QGuiApplication.palette()))
        if finding is not None and role == _Role.ToolTipRole:
            return self._words.finding(finding)
        return None

    def setData(self, index: _Index, value: Any, role: int = _Role.EditRole) -> bool:
        row, column = index.row(), index.column()
        entry = self.entries[row]
        if column == EXCEPTION and role == _Role.CheckStateRole:
            changed = replace(entry, exception=Qt.CheckState(value) is Qt.CheckState.Checked)
        elif column == COMMENT and role == _Role.EditRole:
            changed = replace(entry, comment=" ".join(str(value).replace("#", " ").split()))
        elif column == DESTINATION and role == _Role.EditRole:
            try:
                changed = replace(entry, text=parse_destination(str(value)))
            except UsageError as error:
                self.rejected.emit(error)
                return False
        else:
            return False
        if changed != entry:
            self.entries[row] = changed
            self.dataChanged.emit(self.index(row, 0), self.index(row, COMMENT))
            self.edited.emit()
        return True

    def _spoken(self, entry: Entry, column: int, finding: Finding | None) -> str:
        if column == DESTINATION:
            text = self._words.destination(entry) or self.tr("a comment")
            return f"{text}. {self._words.finding(finding)}" if finding is not None else text
        if column == EXCEPTION:
            return self.tr("an exception") if entry.exception else self.tr("no exception")
        return entry.comment or self.tr("no comment")


class RoutesTable(QAbstractTableModel):
    """The resulting routes."""

    def __init__(self, words: RouteWords, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._words = words
        self._rows: tuple[Row, ...] = ()

    def show(self, rows: tuple[Row, ...]) -> None:
        """Show other routes."""
        if rows != self._rows:
            self.beginResetModel()
            self._rows = rows
            self.endResetModel()

    def rowCount(self, parent: _Index = _NOWHERE) -> int:
        return 0 if parent.isValid() else len(self._rows)

    def columnCount(self, parent: _Index = _NOWHERE) -> int:
        return 0 if parent.isValid() else 3

    def headerData(self, section: int, orientation: Qt.Orientation, role: int = 0) -> Any:
        if orientation is Qt.Orientation.Horizontal and role == _Role.DisplayRole:
            return (self.tr("Network"), self.tr("Goes"), self.tr("Why"))[section]
        return None

    def data(self, index: _Index, role: int = _Role.DisplayRole) -> Any:
        if role in (_Role.DisplayRole, _Role.ToolTipRole):
            return self._words.row(self._rows[index.row()])[index.column()]
        return None
