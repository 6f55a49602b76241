"""How controls are drawn where the desktop brings no style of its own.

Qt's own fallback, Fusion, is a bevelled look whose boxes cannot be told from a dark window. This
keeps what Fusion knows (sizes of parts, directions, what a click hits) and draws flat controls in
the desktop's colours, with edges of at least 3:1 (WCAG 2.2, 1.4.11) and a ring where the focus is.
It remembers no colour: a palette that changes is followed by painting again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from PySide6.QtCore import QPointF, QRect, QRectF, QSize, Qt
from PySide6.QtGui import QColor, QPainter, QPalette, QPen, QPolygonF
from PySide6.QtWidgets import (
    QApplication,
    QLineEdit,
    QProxyStyle,
    QPushButton,
    QStyle,
    QStyleHintReturn,
    QStyleOption,
    QStyleOptionComplex,
    QWidget,
)

from qvpn_gui import theme

_RADIUS: Final = 6.0
_BOX_RADIUS: Final = 4.0
_Primitive = QStyle.PrimitiveElement
_Control = QStyle.ControlElement
_Contents = QStyle.ContentsType
_State = QStyle.StateFlag
#: Least heights, and what is added to the widths, in device-independent pixels.
_HEIGHT: Final = 32
_ROW: Final = 30
#: Between an edge and the text within it.
_INSET: Final = 4
_CELL: Final = 6


class Style(QProxyStyle):
    """Fusion's measures, our drawing."""

    def __init__(self) -> None:
        super().__init__("fusion")

    def drawPrimitive(
        self,
        element: QStyle.PrimitiveElement,
        option: QStyleOption,
        painter: QPainter,
        widget: QWidget | None = None,
    ) -> None:
        match element:
            case _Primitive.PE_IndicatorCheckBox | _Primitive.PE_IndicatorItemViewItemCheck:
                _draw(painter, _check_box, option)
            case _Primitive.PE_IndicatorRadioButton:
                _draw(painter, _radio_button, option)
            case _Primitive.PE_PanelButtonCommand:
                default = isinstance(widget, QPushButton) and widget.isDefault()
                _draw(painter, _default_button if default else _button, option)
            case _Primitive.PE_PanelLineEdit:
                _draw(painter, _field, option)
            case _Primitive.PE_FrameLineEdit:
                pass  # the panel has its frame
            case _Primitive.PE_Frame:
                _draw(painter, _frame, option)
            case _Primitive.PE_FrameFocusRect:
                _draw(painter, _ring, option)
            case _:
                super().drawPrimitive(element, option, painter, widget)

    def drawControl(
        self,
        element: QStyle.ControlElement,
        option: QStyleOption,
        painter: QPainter,
        widget: QWidget | None = None,
    ) -> None:
        match element:
            case _Control.CE_HeaderSection | _Control.CE_HeaderEmptyArea:
                _draw(painter, _header, option)
            case _Control.CE_PushButtonLabel | _Control.CE_MenuItem if not _has(
                option, _State.State_Enabled
            ):
                option.palette = _readable(option.palette)
                super().drawControl(element, option, painter, widget)
            case _Control.CE_TabBarTabShape:
                _draw(painter, _tab, option)
            case _:
                super().drawControl(element, option, painter, widget)

    def drawComplexControl(
        self,
        control: QStyle.ComplexControl,
        option: QStyleOptionComplex,
        painter: QPainter,
        widget: QWidget | None = None,
    ) -> None:
        if control is not QStyle.ComplexControl.CC_ScrollBar:
            super().drawComplexControl(control, option, painter, widget)
            return
        slider = self.subControlRect(control, option, QStyle.SubControl.SC_ScrollBarSlider, widget)
        hot = bool(option.state & (_State.State_MouseOver | _State.State_Sunken))
        _scroll_bar(painter, option, QRectF(slider), hot=hot)

    def subControlRect(
        self,
        control: QStyle.ComplexControl,
        option: QStyleOptionComplex,
        part: QStyle.SubControl,
        widget: QWidget | None = None,  # Qt has none for some
    ) -> QRect:
        found = super().subControlRect(control, option, part, widget)  # type: ignore[arg-type]
        edited = QStyle.SubControl.SC_ComboBoxEditField
        if control is QStyle.ComplexControl.CC_ComboBox and part == edited:
            return found.adjusted(_INSET, 0, -_INSET // 2, 0)
        return found

    def polish(self, widget: QWidget) -> None:  # type: ignore[override]
        super().polish(widget)
        if isinstance(widget, QLineEdit):
            widget.setTextMargins(_INSET, 0, _INSET, 0)

    def styleHint(
        self,
        hint: QStyle.StyleHint,
        option: QStyleOption | None = None,
        widget: QWidget | None = None,
        returnData: QStyleHintReturn | None = None,  # noqa: N803  # Qt's name
    ) -> int:
        if hint is QStyle.StyleHint.SH_DialogButtonBox_ButtonsHaveIcons:
            return 0  # as the others, which have none
        return super().styleHint(hint, option, widget, returnData)

    def pixelMetric(
        self,
        metric: QStyle.PixelMetric,
        option: QStyleOption | None = None,
        widget: QWidget | None = None,
    ) -> int:
        if metric in (
            QStyle.PixelMetric.PM_FocusFrameHMargin,  # at both sides of the text of a cell
            QStyle.PixelMetric.PM_HeaderMargin,
        ):
            return _CELL
        return super().pixelMetric(metric, option, widget)

    def sizeFromContents(
        self,
        kind: QStyle.ContentsType,
        option: QStyleOption,
        size: QSize,
        widget: QWidget | None = None,
    ) -> QSize:
        found = super().sizeFromContents(kind, option, size, widget)  # type: ignore[arg-type]
        match kind:
            case _Contents.CT_PushButton:
                return QSize(found.width() + 12, max(_HEIGHT, found.height()))
            case _Contents.CT_ComboBox | _Contents.CT_LineEdit:
                return QSize(found.width() + 2 * _INSET, max(_HEIGHT, found.height()))
            case _Contents.CT_ItemViewItem:
                return QSize(found.width(), max(_ROW, found.height()))
            case _Contents.CT_MenuItem if found.height() > _HEIGHT // 2:  # and no separator
                return QSize(found.width() + 2 * _INSET, found.height() + 8)
            case _Contents.CT_TabBarTab:
                return QSize(found.width() + 12, max(_HEIGHT + 4, found.height()))
            case _:
                return found


def install(qt: QApplication) -> None:
    """Draw like this, unless the desktop has a style."""
    if qt.style().name() == "fusion":
        qt.setStyle(Style())


def edge(palette: QPalette) -> QColor:
    """The edge of what can be filled in or ticked: at least 3:1 on either side of it."""
    text, share = palette.windowText().color(), 0.3
    grounds = (palette.base().color(), palette.window().color(), theme.card(palette))
    found = theme.mixed(palette.window().color(), text, share)
    while share < 1 and min(theme.contrast(found, ground) for ground in grounds) < 3:
        share += 0.02
        found = theme.mixed(palette.window().color(), text, share)
    return found


def _readable(palette: QPalette) -> QPalette:
    """Words of what cannot be pressed now, which a person still wants to read."""
    made = QPalette(palette)
    active = palette.color(QPalette.ColorGroup.Active, QPalette.ColorRole.WindowText)
    color = theme.mixed(active, palette.window().color(), 0.45)
    role = QPalette.ColorRole
    for name in (role.ButtonText, role.Text, role.WindowText):
        made.setColor(QPalette.ColorGroup.Disabled, name, color)
    return made


_Drawing = Callable[[QPainter, QStyleOption], None]


def _draw(painter: QPainter, what: _Drawing, option: QStyleOption) -> None:
    painter.save()
    painter.setRenderHint(QPainter.RenderHint.Antialiasing)
    what(painter, option)
    painter.restore()


def _has(option: QStyleOption, flag: QStyle.StateFlag) -> bool:
    return bool(option.state & flag)


def _line(option: QStyleOption) -> QColor:
    """The edge of a control in the state that it is in."""
    if not _has(option, _State.State_Enabled):
        return theme.line(option.palette)
    if _has(option, _State.State_HasFocus):
        return theme.accent(option.palette)
    return edge(option.palette)


def _square(rect: QRect) -> QRectF:
    """The middle of it, on whole pixels so that edges are not blurred."""
    side = min(rect.width(), rect.height(), 18)
    left = rect.left() + (rect.width() - side) // 2
    top = rect.top() + (rect.height() - side) // 2
    return QRectF(left, top, side, side)


def _mark(painter: QPainter, option: QStyleOption, width: float) -> bool:
    """Set the colours of a box or a circle; whether it is chosen."""
    palette = option.palette
    enabled = _has(option, _State.State_Enabled)
    chosen = _has(option, _State.State_On) or _has(option, _State.State_NoChange)
    if chosen:
        fill = theme.accent(palette) if enabled else theme.dim(palette)
        painter.setPen(Qt.PenStyle.NoPen)
    else:
        fill = palette.base().color() if enabled else palette.window().color()
        painter.setPen(QPen(edge(palette) if enabled else theme.line(palette), width))
    if enabled and _has(option, _State.State_MouseOver):
        fill = theme.mixed(fill, palette.windowText().color(), 0.08)
    painter.setBrush(fill)
    return chosen


def _check_box(painter: QPainter, option: QStyleOption) -> None:
    box = _square(option.rect).adjusted(0.5, 0.5, -0.5, -0.5)
    chosen = _mark(painter, option, 1)
    painter.drawRoundedRect(box, _BOX_RADIUS, _BOX_RADIUS)
    if not chosen:
        return
    painter.setPen(
        QPen(QColor("white"), 2, Qt.PenStyle.SolidLine, Qt.PenCapStyle.RoundCap,
             Qt.PenJoinStyle.RoundJoin)
    )  # fmt: skip
    side, left, top = box.width(), box.left(), box.top()
    if _has(option, _State.State_NoChange):
        painter.drawLine(
            QPointF(left + 0.28 * side, top + side / 2), QPointF(left + 0.72 * side, top + side / 2)
        )
        return
    painter.drawPolyline(
        QPolygonF(
            [
                QPointF(left + 0.25 * side, top + 0.52 * side),
                QPointF(left + 0.43 * side, top + 0.70 * side),
                QPointF(left + 0.76 * side, top + 0.32 * side),
            ]
        )
    )


def _radio_button(painter: QPainter, option: QStyleOption) -> None:
    circle = _square(option.rect).adjusted(0.75, 0.75, -0.75, -0.75)
    chosen = _mark(painter, option, 1.5)
    painter.drawEllipse(circle)
    if chosen:
        painter.setBrush(QColor("white"))
        painter.drawEllipse(circle.center(), circle.width() * 0.21, circle.width() * 0.21)


def _button(painter: QPainter, option: QStyleOption) -> None:
    _panel(painter, option, theme.mixed(theme.card(option.palette), _text(option), 0.06))


def _default_button(painter: QPainter, option: QStyleOption) -> None:
    """The one that Return presses."""
    plain = theme.mixed(theme.card(option.palette), _text(option), 0.06)
    _panel(painter, option, theme.mixed(plain, theme.accent(option.palette), 0.16))


def _text(option: QStyleOption) -> QColor:
    return option.palette.windowText().color()


def _panel(painter: QPainter, option: QStyleOption, fill: QColor) -> None:
    text = _text(option)
    if not _has(option, _State.State_Enabled):
        fill = theme.mixed(option.palette.window().color(), text, 0.02)
    elif _has(option, _State.State_Sunken) or _has(option, _State.State_On):
        fill = theme.mixed(fill, text, 0.14)
    elif _has(option, _State.State_MouseOver):
        fill = theme.mixed(fill, text, 0.06)
    focus = _has(option, _State.State_HasFocus) and _has(option, _State.State_Enabled)
    line = theme.accent(option.palette) if focus else theme.mixed(theme.line(option.palette), text,
                                                                  0.12)  # fmt: skip
    painter.setPen(QPen(line, 2 if focus else 1))
    painter.setBrush(fill)
    inset = 1.0 if focus else 0.5
    painter.drawRoundedRect(
        QRectF(option.rect).adjusted(inset, inset, -inset, -inset), _RADIUS, _RADIUS
    )


def _field(painter: QPainter, option: QStyleOption) -> None:
    enabled = _has(option, _State.State_Enabled)
    focus = enabled and _has(option, _State.State_HasFocus)
    palette = option.palette
    painter.setPen(QPen(_line(option), 2 if focus else 1))
    painter.setBrush(palette.base().color() if enabled else palette.window().color())
    inset = 1.0 if focus else 0.5
    painter.drawRoundedRect(
        QRectF(option.rect).adjusted(inset, inset, -inset, -inset), _RADIUS, _RADIUS
    )


def _frame(painter: QPainter, option: QStyleOption) -> None:
    """Around lists, tables and texts, whose own surface has square corners."""
    painter.setPen(QPen(_line(option), 1.5))
    painter.setBrush(Qt.BrushStyle.NoBrush)
    painter.drawRoundedRect(QRectF(option.rect).adjusted(0.75, 0.75, -0.75, -0.75), 2, 2)


def _ring(painter: QPainter, option: QStyleOption) -> None:
    painter.setPen(QPen(theme.accent(option.palette), 1.5))
    painter.setBrush(Qt.BrushStyle.NoBrush)
    painter.drawRoundedRect(
        QRectF(option.rect).adjusted(0.75, 0.75, -0.75, -0.75), _BOX_RADIUS, _BOX_RADIUS
    )


def _header(painter: QPainter, option: QStyleOption) -> None:
    painter.fillRect(option.rect, theme.mixed(option.palette.base().color(), _text(option), 0.05))
    line = QRect(option.rect.left(), option.rect.bottom(), option.rect.width(), 1)
    painter.fillRect(line, theme.line(option.palette))


def _tab(painter: QPainter, option: QStyleOption) -> None:
    """Only the one that is shown, and where the pointer is, look different."""
    rect = QRectF(option.rect)
    if _has(option, _State.State_Selected):
        bar = QRectF(rect.left() + 6, rect.bottom() - 3, rect.width() - 12, 3)
        painter.setPen(Qt.PenStyle.NoPen)
        painter.setBrush(theme.accent(option.palette))
        painter.drawRoundedRect(bar, 1.5, 1.5)
    elif _has(option, _State.State_MouseOver):
        painter.setPen(Qt.PenStyle.NoPen)
        painter.setBrush(theme.mixed(option.palette.window().color(), _text(option), 0.06))
        painter.drawRoundedRect(rect.adjusted(2, 2, -2, -4), _RADIUS, _RADIUS)
    if _has(option, _State.State_HasFocus):
        painter.setPen(QPen(theme.accent(option.palette), 1.5))
        painter.setBrush(Qt.BrushStyle.NoBrush)
        painter.drawRoundedRect(rect.adjusted(3, 3, -3, -6), _BOX_RADIUS, _BOX_RADIUS)


def _scroll_bar(painter: QPainter, option: QStyleOption, slider: QRectF, *, hot: bool) -> None:
    painter.save()
    painter.setRenderHint(QPainter.RenderHint.Antialiasing)
    share = 0.65 if hot else 0.42
    painter.setPen(Qt.PenStyle.NoPen)
    painter.setBrush(theme.mixed(option.palette.window().color(), _text(option), share))
    if _has(option, _State.State_Horizontal):
        thin = slider.adjusted(2, slider.height() / 2 - 3, -2, -(slider.height() / 2 - 3))
    else:
        thin = slider.adjusted(slider.width() / 2 - 3, 2, -(slider.width() / 2 - 3), -2)
    painter.drawRoundedRect(thin, 3, 3)
    painter.restore()
