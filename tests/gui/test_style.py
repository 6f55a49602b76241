"""Controls as the app draws them: seen on every ground, and told apart in every state."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from PySide6.QtGui import QColor, QPalette
from PySide6.QtWidgets import (
    QAbstractButton,
    QApplication,
    QCheckBox,
    QComboBox,
    QLineEdit,
    QPushButton,
    QRadioButton,
    QStyleFactory,
    QWidget,
)
from pytestqt.qtbot import QtBot

from qvpn_gui import style, theme
from tests.gui.samples import dark


@pytest.fixture
def drawn(qapp: QApplication, qtbot: QtBot) -> Iterator[None]:
    """The app's own style for this test."""
    qapp.setStyle(style.Style())
    yield
    qapp.setStyle(QStyleFactory.create("fusion"))


def on(widget: QWidget, palette: QPalette, qtbot: QtBot) -> QWidget:
    """A control in colours, shown."""
    qtbot.addWidget(widget)
    widget.setPalette(palette)
    widget.resize(widget.sizeHint())
    widget.show()
    return widget


def strongest(widget: QWidget, ground: QColor, width: int = 0) -> float:
    """The best contrast of a pixel with the ground, within the first columns or everywhere."""
    image = widget.grab().toImage()
    columns = width or image.width()
    return max(
        theme.contrast(QColor(image.pixelColor(x, y)), ground)
        for y in range(image.height())
        for x in range(min(columns, image.width()))
    )


@pytest.mark.parametrize("kind", [QCheckBox, QRadioButton])
@pytest.mark.parametrize("colours", [dark, QPalette])
def test_an_empty_box_is_seen_on_light_and_on_dark(
    drawn: None,
    qtbot: QtBot,
    kind: Callable[[], QAbstractButton],
    colours: Callable[[], QPalette],
) -> None:
    box = on(kind(), colours(), qtbot)
    assert strongest(box, box.palette().window().color(), 18) >= 3


@pytest.mark.parametrize("kind", [QCheckBox, QRadioButton])
def test_a_chosen_box_differs_in_shape(
    drawn: None, qtbot: QtBot, kind: Callable[[], QAbstractButton]
) -> None:
    box = on(kind(), QPalette(), qtbot)
    empty = box.grab().toImage()
    assert isinstance(box, QAbstractButton)
    box.setChecked(True)
    chosen = box.grab().toImage()
    middle = empty.rect().center()
    assert theme.contrast(QColor("white"), QColor(empty.pixelColor(6, middle.y()))) < 1.3
    assert any(
        theme.contrast(QColor("white"), QColor(chosen.pixelColor(x, middle.y()))) >= 4.4
        for x in range(18)
    ), "filled, with a mark in white"


def test_a_field_has_an_edge_and_another_with_the_focus(drawn: None, qtbot: QtBot) -> None:
    field = on(QLineEdit(), dark(), qtbot)
    assert strongest(field, field.palette().base().color(), 3) >= 3
    field.activateWindow()
    field.setFocus()
    qtbot.waitUntil(field.hasFocus)
    focused = field.grab().toImage()
    field.clearFocus()
    assert field.grab().toImage() != focused


def test_what_cannot_be_pressed_now_can_be_read(drawn: None, qtbot: QtBot) -> None:
    for palette in (QPalette(), dark()):
        button = on(QPushButton("Add"), palette, qtbot)
        button.setEnabled(False)
        assert strongest(button, palette.window().color()) >= 2.5


def test_default_buttons_and_those_with_the_focus_look_different(drawn: None, qtbot: QtBot) -> None:
    plain = on(QPushButton("OK"), QPalette(), qtbot)
    other = QPushButton("OK")
    other.setDefault(True)
    on(other, QPalette(), qtbot)
    middle = plain.rect().center()
    at = (6, middle.y())
    assert plain.grab().toImage().pixelColor(*at) != other.grab().toImage().pixelColor(*at)


def test_colours_that_change_are_followed(drawn: None, qtbot: QtBot) -> None:
    box = on(QComboBox(), QPalette(), qtbot)
    light = box.grab().toImage().pixelColor(box.rect().center())
    box.setPalette(dark())
    assert box.grab().toImage().pixelColor(box.rect().center()).lightness() < light.lightness()


def test_a_style_of_the_desktop_is_left_alone(qapp: QApplication) -> None:
    before = qapp.style().name()
    qapp.setStyle(QStyleFactory.create("windows"))
    try:
        style.install(qapp)
        assert not isinstance(qapp.style(), style.Style)
        assert qapp.style().name() == "windows"
    finally:
        qapp.setStyle(QStyleFactory.create(before))
    style.install(qapp)
    assert isinstance(qapp.style(), style.Style)
    qapp.setStyle(QStyleFactory.create("fusion"))
