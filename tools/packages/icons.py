"""The app's icon in the sizes of the hicolor theme, drawn from the one SVG (Icon Theme Spec.)."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from tools.packages.description import PackageError

SIZES: Final = (16, 22, 24, 32, 48, 64, 128, 256, 512)


def write(drawing: Path, theme: Path) -> None:
    """Draw `drawing` into the directories of `theme`. Raises PackageError where Qt cannot run."""
    try:
        from PySide6.QtCore import Qt
        from PySide6.QtGui import QImage, QPainter
        from PySide6.QtSvg import QSvgRenderer
    except ImportError as error:
        raise PackageError(f"icons cannot be drawn ({error}): install libegl1 libgl1") from None
    renderer = QSvgRenderer(str(drawing))
    if not renderer.isValid():
        raise PackageError(f"{drawing} is no drawing")
    for size in SIZES:
        image = QImage(size, size, QImage.Format.Format_ARGB32)
        image.fill(Qt.GlobalColor.transparent)
        painter = QPainter(image)
        renderer.render(painter)
        painter.end()
        target = theme / f"{size}x{size}/apps" / f"{drawing.stem}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        if not image.save(str(target)):
            raise PackageError(f"{target} cannot be written")
