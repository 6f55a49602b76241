"""Every text is there in every language, with the same gaps to fill; and right to left works."""

from __future__ import annotations

import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

import pytest
from PySide6.QtCore import QLocale, Qt, QTranslator
from PySide6.QtGui import QColor
from PySide6.QtWidgets import QApplication

from qvpn_core.client.doctor import CHECKS, Finding
from qvpn_core.client.states import State
from qvpn_core.client.status import Status
from qvpn_gui import languages, theme
from qvpn_gui.dialogs.diagnostics_words import DiagnosticsWords
from qvpn_gui.settings import Language
from qvpn_gui.words import Words
from tools.translate import DIRECTORY, LANGUAGES, ROOT

_GAP = re.compile(r"\{\w+\}|%n")
#: A mnemonic, at the letter or behind the words, where a script has no such letter.
_MNEMONIC = re.compile(r"&\w")


def test_nothing_is_missing_or_out_of_date() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tools.translate", "--check"],
        cwd=ROOT, capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, f"run make translations, and translate: {done.stderr}"


def messages(language: str) -> Iterator[tuple[str, str, list[str]]]:
    tree = ElementTree.parse(DIRECTORY / f"qvpn_{language}.ts")
    for context in tree.getroot().iter("context"):
        for message in context.iter("message"):
            translation = message.find("translation")
            assert translation is not None
            forms = [form.text or "" for form in translation.iter("numerusform")]
            source = message.findtext("source") or ""
            yield context.findtext("name") or "", source, forms or [translation.text or ""]


@pytest.mark.parametrize("language", LANGUAGES)
def test_translations_have_the_gaps_and_mnemonics_of_their_sources(language: str) -> None:
    for context, source, forms in messages(language):
        for form in forms:
            where = f"{context}: {source!r} -> {form!r}"
            assert form.strip(), where
            assert set(_GAP.findall(source)) == set(_GAP.findall(form)), where
            assert len(_MNEMONIC.findall(source)) == len(_MNEMONIC.findall(form)), where


@pytest.fixture
def qt(qapp: QApplication) -> Iterator[QApplication]:
    """The application, in its own language again afterwards."""
    before, direction = QLocale(), qapp.layoutDirection()
    yield qapp
    for translator in qapp.findChildren(QTranslator):
        qapp.removeTranslator(translator)
        translator.deleteLater()
    QLocale.setDefault(before)
    qapp.setLayoutDirection(direction)


@pytest.mark.parametrize(
    ("language", "title", "sentence"),
    [
        ("en", "Not connected", "1 problem found."),
        ("de", "Nicht verbunden", "1 Problem gefunden."),
        ("zh_CN", "未连接", "发现 1 个问题。"),
    ],
)
def test_a_language_that_is_chosen_is_used(
    qt: QApplication, language: Language, title: str, sentence: str
) -> None:
    languages.install(qt, language)
    assert Words().state(Status(state=State.DISCONNECTED)) == title
    assert DiagnosticsWords().summary((Finding("clock", "bad", ""),)) == sentence
    checks = {DiagnosticsWords().check(Finding(check, "good", "")) for check in CHECKS}
    assert len(checks) == len(CHECKS)


def test_own_colours_can_be_seen_on_light_and_on_dark() -> None:
    """At least 3:1 for what is drawn (WCAG 2.2, 1.4.11)."""
    for _drawing, color in theme.VERDICTS.values():
        for ground in ("#fbfbfb", "#2b2b2d"):
            assert theme.contrast(color, QColor(ground)) >= 3


def test_right_to_left_is_the_direction_of_its_languages(qt: QApplication) -> None:
    assert QLocale("ar").textDirection() is Qt.LayoutDirection.RightToLeft
    languages.install(qt, "de")
    assert qt.layoutDirection() is Qt.LayoutDirection.LeftToRight


def test_the_files_are_where_the_package_is() -> None:
    assert Path(languages._DIRECTORY) == DIRECTORY
