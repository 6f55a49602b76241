"""Every way to fail has words of its own, in every language, and is shown with what helps."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from msgspec.structs import replace
from PySide6.QtCore import QLocale, QTranslator
from PySide6.QtWidgets import QApplication, QLabel, QPushButton
from pytestqt.qtbot import QtBot

import qvpn_core
import qvpn_gui
from qvpn_core.client.states import State
from qvpn_core.errors import QvpnError
from qvpn_gui import languages
from qvpn_gui.actions import Actions
from qvpn_gui.remedies import REMEDIES, Remedy, remedy
from qvpn_gui.session_model import SessionModel
from qvpn_gui.settings import Language
from qvpn_gui.window.main_window import MainWindow
from qvpn_gui.words import Words
from tests.gui.samples import STATUSES

#: Told by a second start of the app, on the terminal that it was started from.
ON_A_TERMINAL = {"app-silent"}


def modules(package: ModuleType) -> Iterator[ModuleType]:
    """Every module of a package; each may bring errors of its own."""
    for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        if not found.name.endswith("__main__"):
            yield importlib.import_module(found.name)


def kinds(of: type[QvpnError] = QvpnError) -> Iterator[type[QvpnError]]:
    """Every kind of error that there is."""
    for kind in of.__subclasses__():
        if kind.__module__.startswith(("qvpn_core", "qvpn_gui")):
            yield kind
        yield from kinds(kind)


def given(file: Path) -> Iterator[str]:
    """The reasons that a module gives by hand, without an error."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.keyword) and node.arg in ("reason", "cause"):
            if isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
                yield node.value.value


def reasons() -> set[str]:
    found: set[str] = set()
    for package in (qvpn_core, qvpn_gui):
        for module in modules(package):
            assert module.__file__ is not None
            found.update(given(Path(module.__file__)))
    return found | {kind.reason for kind in kinds()}


REASONS = sorted(reasons() - ON_A_TERMINAL)


def worded() -> set[str]:
    """The reasons that `Words.failure` has words for."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(Words.failure)))
    (table,) = (node for node in ast.walk(tree) if isinstance(node, ast.Dict))
    return {str(key.value) for key in table.keys if isinstance(key, ast.Constant)}


def test_the_reasons_that_are_known_are_those_that_there_are() -> None:
    assert len(REASONS) > 35
    assert worded() == set(REASONS), "a reason without words, or words without a reason"
    assert REMEDIES.keys() <= set(REASONS), "a remedy for what cannot happen"


def test_every_remedy_is_one_for_something() -> None:
    offered = {remedy(reason, blocked=False) for reason in REASONS} | set(REMEDIES.values())
    offered.add(remedy(None, blocked=True))
    offered.add(remedy("captive-portal", blocked=False, portal=True))
    assert offered == set(Remedy)


@pytest.fixture
def window(qtbot: QtBot, model: SessionModel, actions: Actions, words: Words) -> MainWindow:
    window = MainWindow(model, actions, words)
    qtbot.addWidget(window)
    window.show()
    return window


@pytest.mark.parametrize("state", [State.FAILED, State.RECONNECTING, State.BLOCKED])
@pytest.mark.parametrize("reason", REASONS)
def test_every_failure_is_shown_in_words_with_its_details_and_one_action(
    window: MainWindow, model: SessionModel, words: Words, reason: str, state: State
) -> None:
    line = f"the details of {reason}: do it"
    model.show(replace(STATUSES["failed"], state=state, reason=reason, error=line))
    card = window.session.problem
    seen = [label.text() for label in card.findChildren(QLabel) if label.isVisibleTo(window)]
    assert seen == [words.failure(reason), f"The details of {reason}: do it"]
    assert words.failure(reason) != words.failure("never heard of")
    # After a failure, trying again is the large button.
    large_alone = state is State.FAILED and card.button.text().replace("&", "") == "Try now"
    (button,) = card.findChildren(QPushButton)
    assert button.isVisibleTo(window) is not large_alone
    assert button.text()
    if state is State.BLOCKED:
        assert button.text().replace("&", "") == "Release the block"


@pytest.fixture
def qt(qapp: QApplication) -> Iterator[QApplication]:
    before, direction = QLocale(), qapp.layoutDirection()
    yield qapp
    for translator in qapp.findChildren(QTranslator):
        qapp.removeTranslator(translator)
        translator.deleteLater()
    QLocale.setDefault(before)
    qapp.setLayoutDirection(direction)


@pytest.mark.parametrize("language", ["de", "zh_CN"])
def test_every_failure_has_words_in_every_language(qt: QApplication, language: Language) -> None:
    english = {reason: Words().failure(reason) for reason in REASONS}
    languages.install(qt, language)
    for reason in REASONS:
        told = Words().failure(reason)
        assert told
        assert told != english[reason], reason
