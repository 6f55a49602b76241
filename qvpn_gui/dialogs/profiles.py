"""The gateways that this machine knows: add, rename, delete, export, connect at start."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PySide6.QtCore import Qt, Signal
from PySide6.QtGui import QAction, QKeySequence
from PySide6.QtWidgets import (
    QCheckBox,
    QDialog,
    QDialogButtonBox,
    QFileDialog,
    QHBoxLayout,
    QLabel,
    QListWidget,
    QListWidgetItem,
    QMessageBox,
    QPushButton,
    QStackedWidget,
    QVBoxLayout,
    QWidget,
)

from qvpn_core.client import profiles
from qvpn_core.errors import QvpnError
from qvpn_gui import autostart, settings, theme
from qvpn_gui.actions import Actions
from qvpn_gui.session_model import SessionModel
from qvpn_gui.widgets.invite_form import InviteForm
from qvpn_gui.widgets.texts import Dim, Heading, Told
from qvpn_gui.words import Words


class ProfilesDialog(QDialog):
    """A list and what can be done with the chosen one; or the form for a further invite."""

    #: A profile was added by an invite: its name.
    enrolled = Signal(str)

    def __init__(
        self,
        model: SessionModel,
        actions: Actions,
        words: Words,
        parent: QWidget | None = None,
    ) -> None:
        super().__init__(parent)
        self._model = model
        self._actions = actions
        self._words = words
        self._task: asyncio.Task[None] | None = None
        self.list = QListWidget()
        self.add = QPushButton(self.tr("&Add…"))
        self.rename = QPushButton(self.tr("&Rename"))
        self.export = QPushButton(self.tr("&Export…"))
        self.delete = QPushButton(self.tr("&Delete…"))
        self.at_start = QCheckBox(self.tr("&Connect this profile when qvpn starts"))
        self.with_session = QCheckBox(self.tr("&Start qvpn when I log in"))
        self.about, self.verdict = Dim(), Told()
        self.form = InviteForm(words)
        self._pages = QStackedWidget()
        self._build()
        self._connect()
        self.refresh()

    def _build(self) -> None:
        self.setWindowTitle(self.tr("Profiles"))
        self.list.setAccessibleName(self.tr("Profiles"))
        self.list.setEditTriggers(QListWidget.EditTrigger.EditKeyPressed)
        self.list.setAlternatingRowColors(False)
        buttons = QVBoxLayout()
        for button in (self.add, self.rename, self.export, self.delete):
            button.setAutoDefault(False)
            buttons.addWidget(button)
        buttons.addStretch(1)
        self.list.setTextElideMode(Qt.TextElideMode.ElideMiddle)
        self.list.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        top = QHBoxLayout()
        top.setSpacing(theme.SPACE + 4)
        top.addWidget(self.list, 1)
        top.addLayout(buttons)
        self._pages.addWidget(_column(top, self.about, self.at_start, self.with_session))
        heading = Heading(self.tr("Paste the invite for another gateway"))
        back = QPushButton(self.tr("&Back"))
        back.setAutoDefault(False)
        back.clicked.connect(self._show_list)
        self._pages.addWidget(_column(heading, self.form))
        self._back = back
        close = QDialogButtonBox(QDialogButtonBox.StandardButton.Close)
        close.rejected.connect(self.reject)
        end = QHBoxLayout()
        end.addWidget(back)
        end.addWidget(close)
        back.hide()
        rows = QVBoxLayout(self)
        rows.setContentsMargins(theme.MARGIN, theme.MARGIN, theme.MARGIN, theme.MARGIN)
        rows.setSpacing(theme.SPACE)
        rows.addWidget(self._pages, 1)
        rows.addWidget(self.verdict)
        rows.addSpacing(theme.SPACE)
        rows.addLayout(end)
        self.verdict.hide()
        self.resize(520, 500)

    def _connect(self) -> None:
        self.list.currentItemChanged.connect(self._show_chosen)
        self.list.itemChanged.connect(self._renamed)
        self.list.itemActivated.connect(lambda item: self._actions.choose(item.text()))
        self.add.clicked.connect(self.show_form)
        self.rename.clicked.connect(lambda: self.list.editItem(self.list.currentItem()))
        self.export.clicked.connect(self._export)
        self.delete.clicked.connect(self._delete)
        self.at_start.clicked.connect(self._set_at_start)
        self.with_session.clicked.connect(self._set_with_session)
        self.form.enrolled.connect(self._enrolled)
        self._actions.profiles_changed.connect(self.refresh)
        self._model.moved.connect(self._show_chosen)
        remove = QAction(self.list, shortcut=QKeySequence(QKeySequence.StandardKey.Delete))
        remove.setShortcutContext(Qt.ShortcutContext.WidgetShortcut)
        remove.triggered.connect(self._delete)
        self.list.addAction(remove)

    @property
    def chosen(self) -> str | None:
        """The profile that the buttons are about."""
        item = self.list.currentItem()
        return str(item.data(Qt.ItemDataRole.UserRole)) if item is not None else None

    def refresh(self) -> None:
        """Show the profiles there are."""
        chosen = self.chosen or self._actions.profile
        self.list.blockSignals(True)
        self.list.clear()
        for name in self._actions.profile_names():
            item = QListWidgetItem(name)
            item.setData(Qt.ItemDataRole.UserRole, name)
            item.setFlags(item.flags() | Qt.ItemFlag.ItemIsEditable)
            self.list.addItem(item)
            if name == chosen:
                self.list.setCurrentItem(item)
        if self.list.currentItem() is None:
            self.list.setCurrentRow(0)
        self.list.blockSignals(False)
        self._show_chosen()

    def show_form(self) -> None:
        """Ask for an invite."""
        self._say("")
        self._pages.setCurrentIndex(1)
        self._back.setVisible(self.list.count() > 0)
        self.form.text.setFocus()

    def _show_list(self) -> None:
        self._say("")
        self._pages.setCurrentIndex(0)
        self._back.hide()
        self.list.setFocus()

    def _show_chosen(self) -> None:
        name = self.chosen
        busy = self._task is not None
        in_use = name is not None and self._model.wanted and self._model.status.profile == name
        for button in (self.rename, self.delete):
            button.setEnabled(name is not None and not in_use and not busy)
            button.setToolTip(self.tr("Disconnect first") if in_use else "")
        self.export.setEnabled(name is not None and not busy)
        self.at_start.setEnabled(name is not None and not busy)
        self.with_session.setEnabled(not busy)
        self.at_start.setChecked(
            name is not None and settings.load_settings().connect_at_start == name
        )
        self.with_session.setChecked(autostart.is_on())
        self.about.setText(self._about(name) if name is not None else "")

    def _about(self, name: str) -> str:
        try:
            profile = profiles.load(name)
        except QvpnError as error:
            return str(error)
        lines = [self.tr("Gateway: {gateway}").format(gateway=profile.gateway)]
        if profile.device:
            lines.append(self.tr("This device is called {name} there").format(name=profile.device))
        if profile.key is None:
            lines.append(self.tr("Signs in with a token"))
        elif profile.key == "file":
            lines.append(self.tr("The key is in a file that only you can read"))
        else:
            lines.append(self.tr("The key is in the desktop's password store"))
        return "\n".join(lines)

    def _renamed(self, item: QListWidgetItem) -> None:
        old, new = item.data(Qt.ItemDataRole.UserRole), item.text().strip()
        if new != old:
            self._work(lambda: _rename(old, new))

    def _delete(self) -> None:
        name = self.chosen
        if name is None or not self.delete.isEnabled():
            return
        box = QMessageBox(self)
        box.setIcon(QMessageBox.Icon.Question)
        for label in box.findChildren(QLabel, "qt_msgboxex_icon_label"):
            label.setAccessibleName(self.tr("Question"))
        box.setWindowTitle(self.tr("Delete profile"))
        box.setText(self.tr("Delete {name} and its key?").format(name=name))
        box.setInformativeText(
            self.tr("To connect again you need a new invite from whoever runs the gateway.")
        )
        box.setTextFormat(Qt.TextFormat.PlainText)
        delete = box.addButton(self.tr("&Delete"), QMessageBox.ButtonRole.DestructiveRole)
        box.addButton(QMessageBox.StandardButton.Cancel)
        box.setDefaultButton(QMessageBox.StandardButton.Cancel)
        box.buttonClicked.connect(
            lambda button: self._work(lambda: profiles.remove(name)) if button is delete else None
        )
        box.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        box.open()

    def _export(self) -> None:
        name = self.chosen
        if name is None:
            return
        file, _ = QFileDialog.getSaveFileName(
            self, self.tr("Export without the key"), f"{name}.toml", "TOML (*.toml)"
        )
        if file:
            self._work(lambda: _export(name, Path(file)))

    def _set_at_start(self, on: bool) -> None:
        name = self.chosen or ""

        def change() -> None:
            settings.edit_settings(connect_at_start=name if on else "")

        self._work(change)

    def _set_with_session(self, on: bool) -> None:
        self._work(lambda: autostart.set_on(on))

    def _enrolled(self, name: str) -> None:
        self._show_list()
        self._actions.profiles_moved()
        self.enrolled.emit(name)

    def _work(self, work: Callable[[], Any]) -> None:
        """Do what may wait for a disk or a password store, one at a time."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._worked(work))
            self._show_chosen()

    async def _worked(self, work: Callable[[], Any]) -> None:
        words = ""
        try:
            await asyncio.to_thread(work)
        except QvpnError as error:
            words = self._words.problem(error)
        finally:
            self._task = None
        self._say(words)
        self._actions.profiles_moved()

    def _say(self, words: str) -> None:
        self.verdict.tell(words)
        self.verdict.setVisible(bool(words))


def _rename(old: str, new: str) -> None:
    profiles.rename(old, new)
    if settings.load_settings().connect_at_start == old:
        settings.edit_settings(connect_at_start=new)


def _export(name: str, file: Path) -> None:
    try:
        file.write_text(profiles.exported(profiles.load(name)))
    except OSError as error:
        raise QvpnError(f"{file} cannot be written", error.strerror or "the disk refuses") from None


def _column(*parts: QWidget | QHBoxLayout) -> QWidget:
    page = QWidget()
    rows = QVBoxLayout(page)
    rows.setContentsMargins(0, 0, 0, 0)
    rows.setSpacing(theme.SPACE)
    for part in parts:
        if isinstance(part, QWidget):
            rows.addWidget(part)
        else:
            rows.addLayout(part)
    return page
