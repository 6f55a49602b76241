"""A menu of which one entry holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from PySide6.QtGui import QAction, QActionGroup
from PySide6.QtWidgets import QMenu

#: An entry: its text, whether it holds, what choosing it does.
Choice = tuple[str, bool, Callable[[], None]]


class Choices(QMenu):
    """Changes only when what it offers changed: in a panel, every change crosses the bus."""

    def offer(
        self, choices: Sequence[Choice], more: tuple[str, Callable[[], None]] | None = None
    ) -> None:
        """Show these choices, and below them a way to more."""
        # What is shown, for a click ticks an entry that may be refused afterwards.
        shown = [(one.text(), one.isChecked()) for one in self.actions() if one.isCheckable()]
        if shown == [(text, holds) for text, holds, _ in choices]:
            return
        self.clear()
        group = QActionGroup(self)
        for text, holds, choose in choices:
            action = QAction(text, self, checkable=True, checked=holds)
            action.triggered.connect(choose)
            group.addAction(action)
            self.addAction(action)
        if more is not None:
            self.addSeparator()
            self.addAction(more[0]).triggered.connect(more[1])


def with_value(call: Callable[..., None], value: object) -> Callable[[], None]:
    """`call` with a value, without the `checked` that Qt passes on."""
    return lambda *_: call(value)
