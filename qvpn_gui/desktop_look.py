"""Light or dark, accent colour and font, as the desktop has them: from its settings portal.

Qt knows the look of KDE by itself. Of the others it knows that they are dark and stays light all
the same, and it writes in a font of its own. `org.freedesktop.portal.Settings` (XDG Desktop Portal,
version 1 and up) tells both, also when they change. Where there is no portal, Qt decides.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Final

from PySide6.QtCore import QObject
from PySide6.QtGui import QColor, QFont, QPalette
from PySide6.QtWidgets import QApplication

from qvpn_gui import theme

APPEARANCE: Final = "org.freedesktop.appearance"
INTERFACE: Final = "org.gnome.desktop.interface"
_DARK: Final = 1
#: Points; what a portal says beyond them is no font for an app.
_SIZES: Final = (6.0, 40.0)


class DesktopLook(QObject):
    """Follows what the portal tells; what it does not tell stays as Qt has it."""

    def __init__(self, qt: QApplication, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._qt = qt
        self._font = QFont(qt.font())
        self._told: dict[tuple[str, str], Any] = {}
        self._ours = False

    def show(self, settings: Mapping[str, Mapping[str, Any]]) -> None:
        """Take settings, by namespace and key, for those that hold."""
        self._told |= {
            (space, key): value for space, keys in settings.items() for key, value in keys.items()
        }
        if "KDE" not in os.environ.get("XDG_CURRENT_DESKTOP", "").split(":"):
            self._show_colours()
            self._show_font()

    def _show_colours(self) -> None:
        dark = self._told.get((APPEARANCE, "color-scheme")) == _DARK
        accent = _color(self._told.get((APPEARANCE, "accent-color")))
        if self._ours:
            self._qt.setPalette(QPalette())  # what Qt has
            self._ours = False
        palette = QPalette(self._qt.palette())
        if dark and not theme.is_dark(palette):
            palette = theme.dark_palette()
            self._ours = True
        if accent is not None:
            for role in (QPalette.ColorRole.Accent, QPalette.ColorRole.Highlight):
                palette.setColor(role, accent)
            self._ours = True
        if self._ours:
            self._qt.setPalette(palette)

    def _show_font(self) -> None:
        font = _font(self._told.get((INTERFACE, "font-name"))) or self._font
        scale = self._told.get((INTERFACE, "text-scaling-factor"))
        if isinstance(scale, float) and 0.5 <= scale <= 4:
            font = theme.scaled(font, scale)
        if font != self._qt.font():
            self._qt.setFont(font)


def _color(value: Any) -> QColor | None:
    """Red, green and blue from 0 to 1; others mean that there is none."""
    if not isinstance(value, (list, tuple)) or len(value) != 3:
        return None
    if not all(isinstance(part, float) and 0 <= part <= 1 for part in value):
        return None
    return QColor.fromRgbF(*value)


def _font(value: Any) -> QFont | None:
    """A font as GTK writes it: a family, perhaps a style, and a size in points."""
    if not isinstance(value, str):
        return None
    name, _, size = value.strip().rpartition(" ")
    try:
        points = float(size)
    except ValueError:
        return None
    if not name or not _SIZES[0] <= points <= _SIZES[1]:
        return None
    font = QFont(name.removesuffix(" Regular").strip(" ,"))
    font.setPointSizeF(points)
    return font
