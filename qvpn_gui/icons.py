"""Drawings in any size and colour.

Each drawing is one shape with cut-outs and no colour of its own, so that the same file is a
symbolic icon for a desktop's icon theme, a tray icon in a state's colour, and an ornament in a
window's text colour. It knows nothing about states; that is `theme.py`.
"""

from __future__ import annotations

from functools import lru_cache
from importlib.resources import files
from typing import Final

from PySide6.QtCore import QByteArray, QRectF, Qt
from PySide6.QtGui import QColor, QIcon, QPainter, QPixmap, QPixmapCache
from PySide6.QtSvg import QSvgRenderer

APP: Final = "io.github.qvpn"
#: What panels and windows ask for, at 100 % and at 200 %.
_SIZES: Final = (16, 22, 24, 32, 44, 48, 64)


def pixmap(name: str, size: int, color: QColor | None = None, ratio: float = 1.0) -> QPixmap:
    """A drawing at `size` device-independent pixels; without `color` in its own colours."""
    key = f"qvpn/{name}/{size}/{color.rgba() if color else ''}/{ratio}"
    found = QPixmap()
    if QPixmapCache.find(key, found):
        return found
    pixels = round(size * ratio)
    drawn = QPixmap(pixels, pixels)
    drawn.fill(Qt.GlobalColor.transparent)
    painter = QPainter(drawn)
    painter.setRenderHint(QPainter.RenderHint.Antialiasing)
    _renderer(name).render(painter, QRectF(0, 0, pixels, pixels))
    if color is not None:
        painter.setCompositionMode(QPainter.CompositionMode.CompositionMode_SourceIn)
        painter.fillRect(drawn.rect(), color)
    painter.end()
    drawn.setDevicePixelRatio(ratio)
    QPixmapCache.insert(key, drawn)
    return drawn


def icon(name: str, color: QColor | None = None) -> QIcon:
    """The drawing in all sizes that a panel or a button asks for."""
    made = QIcon()
    for size in _SIZES:
        made.addPixmap(pixmap(name, size, color))
    return made


@lru_cache(maxsize=64)
def _renderer(name: str) -> QSvgRenderer:
    file = name if name == APP else f"{name}-symbolic"
    data = (files("qvpn_gui") / "resources" / "icons" / f"{file}.svg").read_bytes()
    renderer = QSvgRenderer(QByteArray(data))
    if not renderer.isValid():
        raise ValueError(f"the drawing {name} cannot be read")
    return renderer
