"""A menu of which one entry holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from PySide6.QtGui import QAction, QActionGroup
from PySide6.QtWidgets import QMenu, QWidget

#: An entry: its text, whether it holds, what choosing it does.
Choice = tuple[str, bool, Callable[[], None]]


class Choices(QMenu):
    """Changes only when what it offers changed: in a panel, every change crosses the bus."""

    def __init__(self, title: str, parent: QWidget) -> None:
        super().__init__(title, parent)
        self._offered: list[tuple[str, bool]] = []

    def offer(
        self, choices: Sequence[Choice], more: tuple[str, Callable[[], None]] | None = None
    ) -> None:
        """Show these choices, and below them a way to more."""
        offered = [(text, holds) for text, holds, _ in choices]
        if offered == self._offered:
            return
        self._offered = offered
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
