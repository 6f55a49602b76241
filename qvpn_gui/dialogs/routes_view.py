"""How the route dialog looks: the list on one side, what comes of it on the other."""

from __future__ import annotations

from itertools import pairwise
from typing import Final

from PySide6.QtCore import QSize, Qt, Signal
from PySide6.QtGui import QAction, QResizeEvent
from PySide6.QtWidgets import (
    QAbstractItemView,
    QBoxLayout,
    QButtonGroup,
    QDialog,
    QFrame,
    QHBoxLayout,
    QHeaderView,
    QLineEdit,
    QMenu,
    QPushButton,
    QRadioButton,
    QScrollArea,
    QVBoxLayout,
    QWidget,
)

from qvpn_core.client.planner import RouteMode
from qvpn_core.client.route_preview import Preview
from qvpn_core.errors import QvpnError
from qvpn_gui import theme
from qvpn_gui.dialogs.routes_table import COMMENT, DESTINATION, EXCEPTION, LinesTable, RoutesTable
from qvpn_gui.widgets.card import Card
from qvpn_gui.widgets.fields import ClearableLine
from qvpn_gui.widgets.table import Table
from qvpn_gui.widgets.texts import Dim, Heading, Text, Told
from qvpn_gui.words import sentence

#: Pixels below which what comes of the list stands under it.
_NARROW: Final = 620
_ROWS: Final = 5  # of a table that can be seen at least


class RoutesView(QWidget):
    """The widgets, and what they show; what happens is the dialog's."""

    mode_chosen = Signal()

    def __init__(self, lines: LinesTable, routes: RoutesTable, dialog: QDialog) -> None:
        super().__init__(dialog)
        self._routes = routes
        self._modes: dict[RouteMode, QRadioButton] = {
            "all": QRadioButton(self.tr("&Everything")),
            "only": QRadioButton(self.tr("&Only these")),
            "all-except": QRadioButton(self.tr("Everything e&xcept these")),
        }
        self.add_text, self.where = QLineEdit(), ClearableLine()
        self.add = QPushButton(self.tr("&Add"))
        self.remove = QPushButton(self.tr("&Remove"))
        self.import_ = QPushButton(self.tr("&Import…"))
        self.export = QPushButton(self.tr("Ex&port…"))
        self.presets = QPushButton(self.tr("Pre&sets"))
        menu = QMenu(self.presets)
        self.private = QAction(self.tr("&Private networks"), menu)
        self.lan = QAction(self.tr("Your &local network, whatever it is"), menu)
        self.offered = QAction(self.tr("What the &gateway offers"), menu)
        menu.addActions([self.private, self.lan, self.offered])
        self.presets.setMenu(menu)
        # Opened by its letter, Qt would leave it looking pressed.
        menu.aboutToHide.connect(self.presets.update, Qt.ConnectionType.QueuedConnection)
        self.offered.setEnabled(False)
        self.remove.setEnabled(False)
        self.table, self.result = (
            Table(self.tr("Nothing is listed yet. Add a destination above, or choose a preset.")),
            Table(""),
        )
        self.table.setModel(lines)
        self.result.setModel(routes)
        self.ok = QPushButton(self.tr("O&K"))
        self.apply = QPushButton(self.tr("App&ly"))
        self.cancel = QPushButton(self.tr("&Cancel"))
        self._message, self._finding, self._names = Told(), Told(), Dim()
        self._explanation, self._answer, self._note = Dim(), Text(), Dim()
        self._list = QWidget()
        self._sides = QHBoxLayout()
        self._build(dialog)
        self._order()

    # What is shown

    @property
    def mode(self) -> RouteMode:
        """The mode that is chosen."""
        return next(mode for mode, button in self._modes.items() if button.isChecked())

    def show_mode(self, mode: RouteMode) -> None:
        """Choose a mode."""
        self._modes[mode].setChecked(True)
        self._modes[mode].setFocus()
        self._explain()

    def show_changed(self, changed: bool) -> None:
        """Whether there is something to apply."""
        self.apply.setEnabled(changed)

    def set_busy(self, busy: bool) -> None:
        """While the list is being applied."""
        self._list.setEnabled(not busy)
        for button in (self.ok, self.apply):
            button.setEnabled(not busy)

    def show_preview(self, made: Preview | QvpnError) -> None:
        """The resulting routes, or why there are none."""
        if isinstance(made, QvpnError):
            self._routes.show(())
            self._note.setText(sentence(str(made)) + ".")
            return
        self._routes.show(made.rows)
        if made.guessed:
            self._note.setText(
                self.tr("What the gateway carries is known once you are connected. Until then, "
                    "this assumes that it carries everything.")
            )  # fmt: skip
        elif made.policy.mode == "only":
            self._note.setText(self.tr("Everything else goes directly."))
        else:
            self._note.setText(self.tr("The most specific network decides."))

    def say(self, text: str) -> None:
        """What is wrong with what was typed, read or applied."""
        self._message.tell(text, "bad")
        self._message.setVisible(bool(text))

    def say_finding(self, text: str) -> None:
        """What is odd about a line."""
        self._finding.tell(text)
        self._finding.setVisible(bool(text))

    def say_names(self, text: str) -> None:
        """That names are being looked up."""
        self._names.setText(text)
        self._names.setVisible(bool(text))

    def say_where(self, text: str) -> None:
        """Where something would go."""
        self._answer.setText(text)
        self._answer.setAccessibleName(text)

    # How it is made

    def _build(self, dialog: QDialog) -> None:
        self._sides.setContentsMargins(0, 0, 0, 0)
        self._sides.setSpacing(theme.MARGIN - 4)
        self._sides.addLayout(self._left(), 11)
        self._sides.addWidget(self._right(), 9)
        both = QWidget()
        both.setLayout(self._sides)
        area = QScrollArea()  # for small screens and large fonts
        area.setWidget(both)
        area.setWidgetResizable(True)
        area.setFrameShape(QFrame.Shape.NoFrame)
        area.setFocusPolicy(Qt.FocusPolicy.NoFocus)
        buttons = QHBoxLayout()
        buttons.addStretch(1)
        for button in (self.ok, self.apply, self.cancel):
            button.setAutoDefault(False)
            buttons.addWidget(button)
        rows = QVBoxLayout(self)
        rows.setContentsMargins(0, 0, 0, 0)
        rows.setSpacing(theme.SPACE + 4)
        rows.addWidget(area, 1)
        rows.addLayout(buttons)
        outer = QVBoxLayout(dialog)
        outer.setContentsMargins(theme.MARGIN, theme.MARGIN, theme.MARGIN, theme.MARGIN)
        outer.addWidget(self)
        available = dialog.screen().availableGeometry().size()
        dialog.resize(QSize(940, 620).boundedTo(available))

    def resizeEvent(self, event: QResizeEvent) -> None:
        super().resizeEvent(event)
        side = QBoxLayout.Direction
        self._sides.setDirection(side.TopToBottom if self.width() < _NARROW else side.LeftToRight)

    def _left(self) -> QVBoxLayout:
        group = QButtonGroup(self)
        column = QVBoxLayout()
        column.setSpacing(theme.SPACE)
        modes = QHBoxLayout()
        modes.setSpacing(theme.SPACE * 2)
        for button in self._modes.values():
            group.addButton(button)
            modes.addWidget(button)
            button.clicked.connect(self._choose)
        modes.addStretch(1)
        column.addLayout(modes)
        column.addWidget(self._explanation)
        self._build_list()
        column.addWidget(self._list, 1)
        column.addStretch(0)
        self._message.setAccessibleName(self.tr("Problem"))
        column.addWidget(self._message)
        self._message.hide()
        return column

    def _build_list(self) -> None:
        self.add_text.setPlaceholderText(self.tr("Network, address or name, e.g. 10.0.0.0/8"))
        self.add_text.setAccessibleName(self.tr("Destination to add"))
        self.add_text.setMaxLength(1 << 16)
        self.add.setEnabled(False)
        table = self.table
        table.setAccessibleName(self.tr("Destinations"))
        table.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        table.setTabKeyNavigation(False)
        table.verticalHeader().hide()
        table.setShowGrid(False)
        table.setAlternatingRowColors(True)
        head = table.horizontalHeader()
        head.setSectionResizeMode(DESTINATION, QHeaderView.ResizeMode.Stretch)
        head.setSectionResizeMode(EXCEPTION, QHeaderView.ResizeMode.ResizeToContents)
        head.setSectionResizeMode(COMMENT, QHeaderView.ResizeMode.Stretch)
        for header in (head, self.result.horizontalHeader()):
            header.setDefaultAlignment(
                Qt.AlignmentFlag.AlignLeading | Qt.AlignmentFlag.AlignVCenter
            )
            header.setHighlightSections(False)
        table.setMinimumHeight(_ROWS * table.verticalHeader().defaultSectionSize())
        adding, below = QHBoxLayout(), QHBoxLayout()
        adding.addWidget(self.add_text, 1)
        adding.addWidget(self.add)
        for button in (self.remove, self.presets, self.import_, self.export):
            button.setAutoDefault(False)
            below.addWidget(button)
        below.addStretch(1)
        self.add.setAutoDefault(False)
        rows = QVBoxLayout(self._list)
        rows.setContentsMargins(0, 0, 0, 0)
        rows.setSpacing(theme.SPACE)
        rows.addLayout(adding)
        rows.addWidget(table, 1)
        rows.addLayout(below)
        rows.addWidget(self._finding)
        rows.addWidget(self._names)
        for text in (self._finding, self._names):
            text.hide()

    def _right(self) -> QWidget:
        card = Card()
        heading = Heading(self.tr("&Where would this go?"))
        heading.setBuddy(self.where)
        self.where.setPlaceholderText(self.tr("An address or a name"))
        self.where.setAccessibleName(self.tr("Where would this go?"))
        self._answer.setMinimumHeight(3 * self.fontMetrics().lineSpacing())
        self._answer.setAlignment(Qt.AlignmentFlag.AlignTop)
        result = self.result
        result.setAccessibleName(self.tr("Resulting routes"))
        result.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        result.setTabKeyNavigation(False)
        result.verticalHeader().hide()
        result.setShowGrid(False)
        result.setWordWrap(False)
        result.setMinimumHeight(_ROWS * result.verticalHeader().defaultSectionSize())
        head = result.horizontalHeader()
        head.setSectionResizeMode(0, QHeaderView.ResizeMode.ResizeToContents)
        head.setSectionResizeMode(1, QHeaderView.ResizeMode.ResizeToContents)
        head.setStretchLastSection(True)
        for widget in (
            heading, self.where, self._answer, Heading(self.tr("Resulting routes")), result,
            self._note,
        ):  # fmt: skip
            card.rows.addWidget(widget)
        return card

    def _order(self) -> None:
        """Tab goes through the list, then through what comes of it, then to the end."""
        chain: list[QWidget] = [
            *self._modes.values(), self.add_text, self.add, self.table, self.remove, self.presets,
            self.import_, self.export, self.where, self.result, self.ok, self.apply, self.cancel,
        ]  # fmt: skip
        for before, after in pairwise(chain):
            QWidget.setTabOrder(before, after)

    def _choose(self) -> None:
        self._explain()
        self.mode_chosen.emit()

    def _explain(self) -> None:
        mode = self.mode
        self._explanation.setText(
            {
                "all": self.tr("All traffic of this computer uses the tunnel."),
                "only": self.tr(
                    "What is listed uses the tunnel, exceptions do not. The most specific line "
                    "decides, in whatever order."
                ),
                "all-except": self.tr(
                    "What is listed goes directly, exceptions do not. The most specific line "
                    "decides, in whatever order."
                ),
            }[mode]
        )
        self._list.setVisible(mode != "all")
        self.lan_needs(mode)

    def lan_needs(self, mode: RouteMode) -> None:
        """The local network can only be kept out."""
        self.lan.setEnabled(mode == "all-except")
