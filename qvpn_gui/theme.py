"""How states look: drawing, motion, colour. Everything else is the desktop's palette and font.

No colour alone carries a meaning: every state has a shape of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Final

from PySide6.QtGui import QColor, QFont, QPalette
from PySide6.QtWidgets import QApplication, QWidget

from qvpn_core.client.doctor import Verdict
from qvpn_core.client.states import State

#: The drawings of a state; several are shown one after the other.
DRAWINGS: Final[Mapping[State, tuple[str, ...]]] = MappingProxyType(
    {
        State.DISCONNECTED: ("qvpn-disconnected",),
        State.CONNECTING: tuple(f"qvpn-connecting-{frame}" for frame in (1, 2, 3, 4)),
        State.CONNECTED: ("qvpn-connected",),
        State.RECONNECTING: tuple(f"qvpn-reconnecting-{frame}" for frame in (1, 2, 3)),
        State.DISCONNECTING: tuple(f"qvpn-connecting-{frame}" for frame in (4, 3, 2, 1)),
        State.BLOCKED: ("qvpn-blocked",),
        State.FAILED: ("qvpn-failed",),
    }
)
#: Milliseconds between two drawings.
FRAME: Final = 300

_GREY, _BLUE, _GREEN, _AMBER, _RED = "#83878d", "#3584e4", "#259a64", "#b87c00", "#d9333f"
#: Of middle lightness: at least 3:1 against white and against the near-black of dark panels
#: (WCAG 2.2, 1.4.11).
_COLORS: Final[Mapping[State, str]] = MappingProxyType(
    {
        State.DISCONNECTED: _GREY,
        State.CONNECTING: _BLUE,
        State.CONNECTED: _GREEN,
        State.RECONNECTING: _AMBER,
        State.DISCONNECTING: _GREY,
        State.BLOCKED: _RED,
        State.FAILED: _RED,
    }
)

#: The drawing and the colour of what a check finds.
VERDICTS: Final[Mapping[Verdict, tuple[str, QColor]]] = MappingProxyType(
    {
        "good": ("check", QColor(_GREEN)),
        "unknown": ("unknown", QColor(_GREY)),
        "warning": ("warning", QColor(_AMBER)),
        "bad": ("cross", QColor(_RED)),
    }
)

#: Distances in device-independent pixels.
SPACE: Final = 8
MARGIN: Final = 24
RADIUS: Final = 10


def color(state: State) -> QColor:
    """The colour of a state, on light and on dark."""
    return QColor(_COLORS[state])


def seen(color: QColor, palette: QPalette) -> QColor:
    """A colour on this palette's windows, cards and lists: at least 3:1, by a little text's colour.

    The colours of the states are made for panels, which are black or white; windows are not.
    """
    parts = (
        palette.window().color(), card(palette), palette.base().color(),
        palette.windowText().color(),
    )  # fmt: skip
    return QColor.fromRgba(_seen(color.rgba(), *(part.rgba() for part in parts)))


@lru_cache(maxsize=256)
def _seen(color: int, window: int, surface: int, base: int, text: int) -> int:
    grounds = [QColor.fromRgba(ground) for ground in (window, surface, base)]
    found, share = QColor.fromRgba(color), 0.0
    while share < 1 and min(contrast(found, ground) for ground in grounds) < 3:
        share += 0.04
        found = mixed(QColor.fromRgba(color), QColor.fromRgba(text), share)
    return found.rgba()


def is_dark(palette: QPalette) -> bool:
    """Whether text is lighter than what it is written on."""
    return palette.windowText().color().lightness() > palette.window().color().lightness()


def mixed(one: QColor, other: QColor, share: float) -> QColor:
    """`one` with `share` (0 to 1) of `other`."""
    return QColor.fromRgbF(
        one.redF() + (other.redF() - one.redF()) * share,
        one.greenF() + (other.greenF() - one.greenF()) * share,
        one.blueF() + (other.blueF() - one.blueF()) * share,
    )


def card(palette: QPalette) -> QColor:
    """What cards are filled with: a little lighter than the window, in light and in dark."""
    window = palette.window().color()
    return mixed(window, QColor("white"), 0.06 if is_dark(palette) else 0.7)


def line(palette: QPalette) -> QColor:
    """Borders and separators."""
    return mixed(palette.window().color(), palette.windowText().color(), 0.16)


def dim(palette: QPalette) -> QColor:
    """Secondary text: still 4.5:1 against the window (WCAG 2.2, 1.4.3)."""
    return mixed(palette.windowText().color(), palette.window().color(), 0.34)


def dark_palette() -> QPalette:
    """For desktops that are dark where Qt is not."""
    role, disabled = QPalette.ColorRole, QPalette.ColorGroup.Disabled
    palette = QPalette(QColor("#323232"))
    for name, color in (
        (role.Window, "#2b2b2d"),
        (role.WindowText, "#f0f0f0"),
        (role.Base, "#232325"),
        (role.AlternateBase, "#2e2e30"),
        (role.Text, "#f0f0f0"),
        (role.Button, "#3a3a3d"),
        (role.ButtonText, "#f0f0f0"),
        (role.PlaceholderText, "#909094"),
        (role.Highlight, "#3584e4"),
        (role.HighlightedText, "#ffffff"),
        (role.Accent, "#3584e4"),
        (role.ToolTipBase, "#3a3a3d"),
        (role.ToolTipText, "#f0f0f0"),
    ):
        palette.setColor(role(name), QColor(color))
    for name in (role.WindowText, role.Text, role.ButtonText):
        palette.setColor(disabled, name, QColor("#7c7c80"))
    return palette


def scaled(font: QFont, factor: float, *, bold: bool = False) -> QFont:
    """The desktop's font in another size."""
    made = QFont(font)
    if font.pointSizeF() > 0:
        made.setPointSizeF(font.pointSizeF() * factor)
    else:
        made.setPixelSize(round(font.pixelSize() * factor))
    if bold:
        made.setWeight(QFont.Weight.DemiBold)
    return made


def emphasise(widget: QWidget, factor: float) -> None:
    """Write a widget in the desktop's font of today, larger and heavier."""
    font = scaled(QApplication.font(), factor, bold=True)
    if font != widget.font():  # which would be another change of its font
        widget.setFont(font)


def accent(palette: QPalette) -> QColor:
    """What asks to be pressed: the desktop's accent colour, dark enough for white text."""
    found = palette.color(QPalette.ColorRole.Accent)
    while contrast(found, QColor("white")) < 4.5:
        found = found.darker(106)
    return found


def contrast(one: QColor, other: QColor) -> float:
    """The contrast ratio of two colours (WCAG 2.2, relative luminance)."""
    low, high = sorted((_luminance(one), _luminance(other)))
    return (high + 0.05) / (low + 0.05)


def _luminance(color: QColor) -> float:
    red, green, blue = (
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4
        for part in (color.redF(), color.greenF(), color.blueF())
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
