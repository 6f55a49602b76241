"""What a person who sees nothing, or uses no mouse, finds in a window."""

from __future__ import annotations

import re
from typing import TypeVar

from PySide6.QtCore import Qt
from PySide6.QtGui import QAccessible
from PySide6.QtWidgets import (
    QAbstractButton,
    QAbstractScrollArea,
    QApplication,
    QLabel,
    QLineEdit,
    QRadioButton,
    QTabBar,
    QWidget,
)

_Kind = TypeVar("_Kind", bound=QWidget)
_MNEMONIC = re.compile(r"&(\w)")
_CONTROLS = (QAbstractButton, QLineEdit, QAbstractScrollArea)


def controls(window: QWidget) -> list[QWidget]:
    """Everything visible that can be used or takes the focus."""
    return [
        widget
        for widget in window.findChildren(QWidget)
        if widget.isVisibleTo(window)
        and not widget.objectName().startswith("qt_")
        and widget.focusPolicy() != Qt.FocusPolicy.NoFocus
        and isinstance(widget, (*_CONTROLS, QLabel))
    ]


def name(widget: QWidget) -> str:
    """The name that a screen reader says."""
    interface = QAccessible.queryAccessibleInterface(widget)
    return interface.text(QAccessible.Text.Name)


def mnemonics(window: QWidget) -> list[tuple[str, str]]:
    """The letters that Alt presses something with, and what that is."""
    labels = [label for label in _seen(window, QLabel) if label.buddy() is not None]
    texts = [one.text() for one in (*labels, *_seen(window, QAbstractButton))]
    for tabs in _seen(window, QTabBar):
        texts += [tabs.tabText(number) for number in range(tabs.count())]
    return [
        (found[1].casefold(), text)
        for text in texts
        if (found := _MNEMONIC.search(text.replace("&&", "")))
    ]


def _seen(window: QWidget, kind: type[_Kind]) -> list[_Kind]:
    return [widget for widget in window.findChildren(kind) if widget.isVisibleTo(window)]


def unnamed(window: QWidget) -> list[QWidget]:
    """The controls that a screen reader has no name for."""
    return [widget for widget in controls(window) if not name(widget)]


def reachable(window: QWidget) -> list[QWidget]:
    """What Tab reaches, in its order, from whatever has the focus."""
    seen: list[QWidget] = []
    window.activateWindow()
    QApplication.processEvents()
    while window.focusNextPrevChild(True):
        widget = QApplication.focusWidget()
        assert widget is not None, "the window is not active"
        if widget in seen:
            break
        seen.append(widget)
    return seen


def unreachable(window: QWidget) -> list[QWidget]:
    """The controls that Tab does not reach."""
    found = reachable(window)
    # Tab comes to the chosen one of a group, and arrows go to the others.
    for button in window.findChildren(QRadioButton):
        if any(it in found for it in button.group().buttons()):
            found.append(button)
    return [
        widget
        for widget in controls(window)
        if isinstance(widget, _CONTROLS) and widget.isEnabled() and widget not in found
    ]
