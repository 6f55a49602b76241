"""Diagnostics show what the doctor finds, the log that is wanted, and the report before it goes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from PySide6.QtCore import Qt
from PySide6.QtWidgets import QApplication, QLabel
from pytestqt.qtbot import QtBot

from qvpn_core.client import paths
from qvpn_core.client.doctor import CHECKS, Finding
from qvpn_gui.actions import Actions
from qvpn_gui.dialogs.diagnostics import DiagnosticsDialog, chosen_lines
from tests.gui.conftest import Play
from tests.gui.controls import unnamed, unreachable

LOG = """\
2026-11-23 09:41:00,123 INFO qvpn.session: connected
2026-11-23 09:41:01,123 ERROR qvpn.app: a defect
Traceback (most recent call last):
ZeroDivisionError
2026-11-23 09:41:02,123 DEBUG qvpn.app: nothing
2026-11-23 09:41:03,123 WARNING qvpn.tunnel: reconnecting to 203.0.113.77
"""


@pytest.fixture
def dialog(qtbot: QtBot, actions: Actions) -> Iterator[DiagnosticsDialog]:
    paths.make_private(paths.state_dir())
    (paths.state_dir() / "app.log").write_text(LOG)
    dialog = DiagnosticsDialog(actions)
    qtbot.addWidget(dialog)
    dialog.show()
    yield dialog
    dialog.log.rest()


def texts(dialog: DiagnosticsDialog) -> str:
    return "\n".join(it.text() for it in dialog.findChildren(QLabel) if it.isVisibleTo(dialog))


def test_every_check_is_shown_with_words_of_its_own(dialog: DiagnosticsDialog, play: Play) -> None:
    async def story() -> None:
        task = dialog.start()
        assert "Checking…" in texts(dialog)
        assert dialog.start() is task, "one at a time"
        await task
        seen = texts(dialog)
        for check in CHECKS:
            assert dialog._words.check(Finding(check, "good", "")) in seen
            assert dialog._words.check(Finding(check, "good", "")) != check
        dialog.done(0)

    play(story())


def test_a_finding_says_how_it_went_why_and_what_to_do(
    dialog: DiagnosticsDialog, qapp: QApplication
) -> None:
    findings = (
        Finding("clock", "bad", "the clock is wrong", "set it"),
        Finding("dns", "warning", "names are slow"),
        Finding("tun", "good", "it is there"),
    )
    dialog.checks.show_findings(findings)
    qapp.processEvents()
    seen = texts(dialog)
    assert "1 problem(s) found." in seen
    assert "Clock: Problem" in seen
    assert "→ Set it." in seen
    assert "Names (DNS): Needs attention" in seen
    dialog.checks.show_findings(findings[1:])
    qapp.processEvents()
    assert "No problem found, 1 thing(s) to look at." in texts(dialog)
    dialog.checks.show_findings(findings[2:])
    assert "No problem found.\n" in texts(dialog)


@pytest.mark.parametrize(
    ("level", "word", "lines"),
    [
        ("DEBUG", "", 6),
        ("INFO", "", 5),
        ("WARNING", "", 4),
        ("ERROR", "", 3),
        ("DEBUG", "RECONNECTING", 1),
        ("DEBUG", "no such", 0),
    ],
)
def test_the_log_is_filtered_by_entries_with_what_belongs_to_them(
    level: str, word: str, lines: int
) -> None:
    assert len(chosen_lines(LOG, level, word).splitlines()) == lines


def test_the_log_follows_the_file_and_the_filter(dialog: DiagnosticsDialog) -> None:
    log = dialog.log
    log.refresh()
    assert "connected" in log.text.toPlainText()
    log.filter.setText("defect")
    assert "connected" not in log.text.toPlainText()
    assert "ZeroDivisionError" in log.text.toPlainText()
    log.filter.clear()
    with (paths.state_dir() / "app.log").open("a") as file:
        file.write("2026-11-23 09:42:00,123 INFO qvpn.app: more\n")
    log.refresh()
    assert "more" in log.text.toPlainText()
    log.file.setCurrentIndex(1)
    assert log.text.toPlainText() == "No entries."


def test_the_report_is_what_is_shown_and_names_nobody(
    dialog: DiagnosticsDialog, play: Play, tmp_path: Path
) -> None:
    async def story() -> None:
        assert not dialog.report.save.isEnabled()
        await dialog.start()
        await dialog.write(tmp_path / "report.txt")
        assert "Saved as report.txt." in dialog.report._said.text()
        shown = dialog.report.text.toPlainText()
        assert (tmp_path / "report.txt").read_text().rstrip() == shown.rstrip()
        assert "203.0.113.77" not in shown
        assert "example.org" not in shown
        assert "Qt " in shown
        await dialog.write(tmp_path / "no" / "report.txt")
        assert "cannot be written" in dialog.report._said.text()
        dialog.done(0)

    play(story())


@pytest.mark.parametrize("direction", list(Qt.LayoutDirection)[:2])
def test_every_control_has_a_name_is_reached_by_keyboard_and_fits(
    dialog: DiagnosticsDialog, play: Play, qapp: QApplication, direction: Qt.LayoutDirection
) -> None:
    async def story() -> None:
        await dialog.start()
        dialog.setLayoutDirection(direction)
        for page in range(dialog.pages.count()):
            dialog.pages.setCurrentIndex(page)
            assert unnamed(dialog) == []
            assert unreachable(dialog) == []
            assert not dialog.grab().isNull()
        assert dialog.minimumSizeHint().width() <= 680
        dialog.done(0)

    play(story())
