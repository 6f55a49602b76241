"""Windows as small as they can be made, in the language with the longest words."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import combinations

import pytest
from PySide6.QtCore import Qt
from PySide6.QtWidgets import QApplication, QScrollArea, QWidget

from qvpn_gui.settings import Language
from qvpn_gui.window.main_window import MainWindow
from tests.gui.scenes import SCENES

MAIN = [it for it in SCENES if it.startswith(("window", "first")) and "menu" not in it]
DIALOGS = [it for it in SCENES if it.startswith(("proxy", "profiles", "settings", "defect"))]


def overlaps(window: QWidget) -> Iterator[tuple[QWidget, QWidget]]:
    """Widgets of one layout that are drawn over each other."""
    for parent in (window, *window.findChildren(QWidget)):
        layout = parent.layout()
        if layout is None:
            continue
        children = [
            it
            for it in parent.findChildren(QWidget, options=_DIRECT)
            if it.isVisibleTo(window) and layout.indexOf(it) >= 0
        ]
        for one, other in combinations(children, 2):
            if one.geometry().intersects(other.geometry()):
                yield one, other


_DIRECT = Qt.FindChildOption.FindDirectChildrenOnly


@pytest.mark.parametrize("language", ["en", "de", "zh_CN"])
@pytest.mark.parametrize("name", MAIN)
def test_nothing_of_the_narrowest_window_is_cut_off_at_the_side(
    scene: Callable[[str], QWidget],
    spoken: Callable[[Language], None],
    qapp: QApplication,
    name: str,
    language: Language,
) -> None:
    spoken(language)
    window = scene(name)
    assert isinstance(window, MainWindow)
    window.resize(window.minimumWidth(), 480)
    qapp.processEvents()
    area = next(it for it in window.findChildren(QScrollArea) if it.isVisible())
    page = area.widget()
    assert page is not None
    assert page.width() <= area.viewport().width()
    assert not list(overlaps(window))


@pytest.mark.parametrize("language", ["en", "de", "zh_CN"])
@pytest.mark.parametrize("name", DIALOGS)
def test_nothing_lies_over_anything_in_the_smallest_window(
    scene: Callable[[str], QWidget],
    spoken: Callable[[Language], None],
    qapp: QApplication,
    name: str,
    language: Language,
) -> None:
    spoken(language)
    window = scene(name)
    for size in (window.size(), window.minimumSizeHint().expandedTo(window.minimumSize())):
        window.resize(size)
        qapp.processEvents()
        assert not list(overlaps(window))
