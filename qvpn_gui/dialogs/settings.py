"""Settings of the chosen profile and of the app: a change holds at once, there is nothing to apply.

What somebody edits in the files meanwhile is seen. Names, help and meanings are in
`settings_words.py`; what a setting does is elsewhere.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from PySide6.QtCore import Qt
from PySide6.QtWidgets import (
    QCheckBox,
    QComboBox,
    QDialog,
    QDialogButtonBox,
    QFrame,
    QScrollArea,
    QVBoxLayout,
    QWidget,
)

from qvpn_core.errors import QvpnError
from qvpn_gui import settings, theme
from qvpn_gui.actions import Actions
from qvpn_gui.dialogs.settings_words import Setting, SettingWords
from qvpn_gui.watching import FileWatch
from qvpn_gui.widgets.card import Card
from qvpn_gui.widgets.texts import Dim, Heading, Text, Told
from qvpn_gui.words import Words, sentence


class SettingsDialog(QDialog):
    """Two cards: the profile's and the app's."""

    def __init__(self, actions: Actions, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._actions = actions
        words = SettingWords(self)
        self._sentences = Words(self)
        self._tasks: set[asyncio.Task[None]] = set()
        self._turn = asyncio.Lock()
        self._profile_title, self._problem = Heading(), Told()
        self.profile_rows = {it.key: _Row(it, self._set_profile) for it in words.of_profile()}
        self.app_rows = {it.key: _Row(it, self._set_app) for it in words.of_app()}
        file = settings.settings_file()
        self._watch = FileWatch(file.parent, file.name, self)
        self._watch.changed.connect(self.refresh)
        self._build()
        actions.profiles_changed.connect(self.refresh)
        actions.failed.connect(self._failed)
        self.refresh()

    def _build(self) -> None:
        self.setWindowTitle(self.tr("Settings"))
        self._profile_card = Card()
        self._profile_card.rows.addWidget(self._profile_title)
        self._profile_card.rows.addWidget(
            Dim(
                self.tr(
                    "The kill switch and the local network apply at once, the rest from the "
                    "next connection."
                )
            )
        )
        app_card = Card()
        app_card.rows.addWidget(Heading(self.tr("This app")))
        for card, rows in ((self._profile_card, self.profile_rows), (app_card, self.app_rows)):
            card.rows.setSpacing(theme.SPACE + 4)
            for row in rows.values():
                card.rows.addWidget(row)
        page = QWidget()
        column = QVBoxLayout(page)
        column.setContentsMargins(theme.MARGIN, theme.MARGIN, theme.MARGIN, theme.SPACE)
        column.setSpacing(theme.SPACE * 2)
        for widget in (self._profile_card, app_card):
            column.addWidget(widget)
        column.addStretch(1)
        area = QScrollArea()
        area.setWidget(page)
        area.setWidgetResizable(True)
        area.setFrameShape(QFrame.Shape.NoFrame)
        area.setFocusPolicy(Qt.FocusPolicy.NoFocus)
        area.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        close = QDialogButtonBox(QDialogButtonBox.StandardButton.Close)
        close.rejected.connect(self.reject)
        close.setContentsMargins(theme.MARGIN, 0, theme.MARGIN, theme.SPACE * 2)
        problem = QVBoxLayout()
        problem.setContentsMargins(theme.MARGIN, 0, theme.MARGIN, 0)
        problem.addWidget(self._problem)
        outer = QVBoxLayout(self)
        outer.setContentsMargins(0, 0, 0, 0)
        outer.addWidget(area)
        outer.addLayout(problem)
        outer.addWidget(close)
        self.setMinimumWidth(400)
        self.resize(520, min(840, round(self.screen().availableGeometry().height() * 0.9)))

    def refresh(self) -> None:
        """Show what holds now, and what is wrong with the file."""
        profile = self._actions.stored_profile()
        self._profile_card.setVisible(profile is not None)
        if profile is not None:
            self._profile_title.setText(self.tr("Gateway {name}").format(name=profile.name))
            for key, row in self.profile_rows.items():
                row.show_value(profile.policy.lan if key == "lan" else getattr(profile, key))
                row.setEnabled(key == "transport" or not profile.proxy.enabled)
        app, problems = settings.examine_settings()
        for key, row in self.app_rows.items():
            row.show_value(getattr(app, key))
        self._say("\n".join(map(sentence, problems)))

    def _set_profile(self, key: str, value: Any) -> None:
        if key == "lan":
            self._actions.set_lan(value)
        elif key == "kill_switch":
            self._actions.set_kill_switch(value)
        else:
            self._actions.change_profile(lambda profile: replace(profile, **{key: value}))

    def _set_app(self, key: str, value: Any) -> None:
        task = asyncio.get_running_loop().create_task(self._save(key, value))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _save(self, key: str, value: Any) -> None:
        try:
            async with self._turn:  # in the order of the clicks
                await asyncio.to_thread(lambda: settings.edit_settings(**{key: value}))
        except QvpnError as error:
            self._failed(error)
        else:
            self.refresh()

    async def settled(self) -> None:
        """Wait until what was changed is stored."""
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self._actions.settled()

    def _failed(self, error: QvpnError) -> None:
        self.refresh()  # what was not stored is not shown as if it were
        self._say(self._sentences.problem(error))

    def _say(self, text: str) -> None:
        self._problem.tell(text)
        self._problem.setVisible(bool(text))


class _Row(QWidget):
    """A setting: its name, its control, and what it means as it is set."""

    def __init__(self, setting: Setting, changed: Callable[[str, Any], None]) -> None:
        super().__init__()
        self._setting = setting
        self._changed = changed
        self.check: QCheckBox | None = None
        self.choice: QComboBox | None = None
        self._help = Dim(setting.help)
        rows = QVBoxLayout(self)
        rows.setContentsMargins(0, 0, 0, 0)
        rows.setSpacing(4)
        if isinstance(setting.values[0].value, bool):
            self.check = QCheckBox(setting.name)
            self.check.clicked.connect(lambda on: changed(setting.key, on))
            self.check.setAccessibleDescription(setting.help)
            rows.addWidget(self.check)
        else:
            label = Text(setting.name)
            self.choice = QComboBox()
            label.setBuddy(self.choice)
            for value in setting.values:
                self.choice.addItem(value.name, value.value)
            self.choice.activated.connect(self._chosen)
            rows.addWidget(label)
            rows.addWidget(self.choice, alignment=Qt.AlignmentFlag.AlignLeading)
        rows.addWidget(self._help)

    def show_value(self, value: Any) -> None:
        """Show what holds."""
        if self.check is not None:
            self.check.setChecked(bool(value))
        elif self.choice is not None:
            at = next((n for n, it in enumerate(self._setting.values) if it.value == value), 0)
            self.choice.setCurrentIndex(at)
            self._help.setText(self._setting.values[at].meaning or self._setting.help)
            self.choice.setAccessibleDescription(self._help.text())

    def _chosen(self, at: int) -> None:
        self._changed(self._setting.key, self._setting.values[at].value)
