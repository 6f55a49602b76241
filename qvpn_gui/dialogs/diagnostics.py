"""Diagnostics: what the doctor finds, the log, and a report whose every line is shown first.

It judges nothing: the checks are `qvpn_core.client.doctor`'s, the redaction is
`qvpn_core.client.report`'s. Both run in a thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from PySide6.QtCore import Qt, QTimer
from PySide6.QtGui import QFontDatabase, QTextCursor
from PySide6.QtWidgets import (
    QComboBox,
    QDialog,
    QFileDialog,
    QFrame,
    QGridLayout,
    QHBoxLayout,
    QLabel,
    QPlainTextEdit,
    QPushButton,
    QScrollArea,
    QTabWidget,
    QVBoxLayout,
    QWidget,
)

from qvpn_core.client import doctor, doctor_facts, paths, report
from qvpn_core.client.doctor import Finding
from qvpn_core.errors import QvpnError
from qvpn_gui import icons, theme
from qvpn_gui.actions import Actions
from qvpn_gui.dialogs.diagnostics_words import DiagnosticsWords
from qvpn_gui.versions import versions
from qvpn_gui.widgets.fields import ClearableLine
from qvpn_gui.widgets.texts import Dim, Heading, Text
from qvpn_gui.words import sentence

_LOGS: Final = ("app.log", "agent.log")
#: Bytes of a log that are shown, from its end.
_LOG_BYTES: Final = 256 << 10
_LOG_INTERVAL: Final = 2000  # milliseconds
_LEVELS: Final = ("DEBUG", "INFO", "WARNING", "ERROR")


class DiagnosticsDialog(QDialog):
    """Three pages. Open it with `start`, on a running loop; a closed one has no task left."""

    def __init__(self, actions: Actions, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._actions = actions
        self._words = DiagnosticsWords(self)
        self._task: asyncio.Task[None] | None = None
        self._parts: Mapping[str, str] = {}
        self.checks = ChecksPage(self._words)
        self.log = LogPage()
        self.report = ReportPage()
        self.pages = QTabWidget(documentMode=True)
        self._build()
        self.checks.again.clicked.connect(self.start)
        self.report.save.clicked.connect(self._choose_place)

    def _build(self) -> None:
        self.setWindowTitle(self.tr("Diagnostics"))
        self.pages.setAccessibleName(self.tr("Diagnostics"))
        self.pages.addTab(self.checks, self.tr("&Checks"))
        self.pages.addTab(self.log, self.tr("&Log"))
        self.pages.addTab(self.report, self.tr("&Report"))
        close = QPushButton(self.tr("Cl&ose"))
        close.setAutoDefault(False)
        close.clicked.connect(self.reject)
        line = QHBoxLayout()
        line.addStretch(1)
        line.addWidget(close)
        rows = QVBoxLayout(self)
        rows.setContentsMargins(theme.SPACE * 2, theme.SPACE * 2, theme.SPACE * 2, theme.SPACE * 2)
        rows.setSpacing(theme.SPACE + 4)
        rows.addWidget(self.pages, 1)
        rows.addLayout(line)
        height = min(640, round(self.screen().availableGeometry().height() * 0.9))
        self.resize(680, height)

    def start(self) -> asyncio.Task[None]:
        """Look; the task ends when everything is shown."""
        if self._task is None or self._task.done():
            self.checks.show_busy()
            self.log.follow()
            self._task = asyncio.get_running_loop().create_task(self._look())
        return self._task

    async def _look(self) -> None:
        name, more = self._actions.profile, versions()

        def work() -> tuple[tuple[Finding, ...], dict[str, str]]:
            facts = doctor_facts.gather(name)
            found = doctor.examine(facts)
            return found, report.compose(found, facts.status, more)

        findings, self._parts = await asyncio.to_thread(work)
        self.checks.show_findings(findings)
        self.report.show_parts(self._parts)

    def _choose_place(self) -> None:
        name, _ = QFileDialog.getSaveFileName(self, self.tr("Save the report"), "qvpn-report.txt")
        if name:
            self._task = asyncio.get_running_loop().create_task(self.write(Path(name)))

    async def write(self, path: Path) -> None:
        """Write what is shown."""
        try:
            await asyncio.to_thread(report.write, path, self._parts)
        except QvpnError as error:
            self.report.say(sentence(str(error)))
        else:
            self.report.say(self.tr("Saved as {file}.").format(file=path.name))

    def done(self, result: int) -> None:
        """Close; what is still being looked at is not waited for."""
        if self._task is not None:
            self._task.cancel()
        self.log.rest()
        super().done(result)


class ChecksPage(QWidget):
    """A line for each check, the worst first."""

    def __init__(self, words: DiagnosticsWords, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._words = words
        self._summary = Heading()
        self.again = QPushButton(self.tr("Check a&gain"))
        self.again.setAutoDefault(False)
        self._list = QWidget()
        self._grid = QGridLayout(self._list)
        self._grid.setContentsMargins(0, 0, theme.SPACE, 0)
        self._grid.setHorizontalSpacing(theme.SPACE + 4)
        self._grid.setVerticalSpacing(theme.SPACE + 4)
        self._grid.setColumnStretch(1, 1)
        area = QScrollArea()
        area.setWidget(self._list)
        area.setWidgetResizable(True)
        area.setFrameShape(QFrame.Shape.NoFrame)
        for surface in (area.viewport(), self._list):
            surface.setAutoFillBackground(False)  # the page's own colour
        area.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        area.setAccessibleName(self.tr("Results"))
        head = QHBoxLayout()
        head.addWidget(self._summary, 1)
        head.addWidget(self.again)
        rows = QVBoxLayout(self)
        rows.setSpacing(theme.SPACE * 2)
        rows.addLayout(head)
        rows.addWidget(area, 1)

    def show_busy(self) -> None:
        """While it is being looked."""
        self._summary.setText(self.tr("Checking…"))
        self.again.setEnabled(False)

    def show_findings(self, findings: tuple[Finding, ...]) -> None:
        """Show the results."""
        self._summary.setText(self._words.summary(findings))
        self.again.setEnabled(True)
        while (item := self._grid.takeAt(0)) is not None:
            if (widget := item.widget()) is not None:
                widget.deleteLater()
        for row, finding in enumerate(sorted(findings, key=_weight)):
            self._show(row, finding)
        self._grid.setRowStretch(len(findings), 1)

    def _show(self, row: int, finding: Finding) -> None:
        verdict = self._words.verdict(finding.verdict)
        mark = QLabel()
        drawing, color = theme.VERDICTS[finding.verdict]
        color = theme.seen(color, self.palette())
        mark.setPixmap(icons.pixmap(drawing, 16, color, self.devicePixelRatioF()))
        mark.setAccessibleName(verdict)
        words = QWidget()
        lines = QVBoxLayout(words)
        lines.setContentsMargins(0, 0, 0, 0)
        lines.setSpacing(2)
        title = self._words.check(finding)
        if finding.verdict != "good":
            title += f": {verdict}"
        lines.addWidget(Heading(title))
        lines.addWidget(Dim(sentence(finding.words) + "."))
        if finding.remedy:
            lines.addWidget(Text("→ " + sentence(finding.remedy) + "."))
        self._grid.addWidget(mark, row, 0, Qt.AlignmentFlag.AlignTop)
        self._grid.addWidget(words, row, 1)


def _weight(finding: Finding) -> int:
    """What needs somebody comes before what is well and what is not known."""
    return ("bad", "warning", "good", "unknown").index(finding.verdict)


class LogPage(QWidget):
    """The end of a log as it grows, of a level and with a word."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.file, self.level, self.filter = QComboBox(), QComboBox(), ClearableLine()
        self.file.addItem(self.tr("This app"), _LOGS[0])
        self.file.addItem(self.tr("qvpn up"), _LOGS[1])
        names = (self.tr("All"), self.tr("Normal"), self.tr("Warnings"), self.tr("Errors"))
        for name, level in zip(names, _LEVELS, strict=True):
            self.level.addItem(name, level)
        self.filter.setPlaceholderText(self.tr("Filter"))
        self.filter.setAccessibleName(self.tr("Filter"))
        self.text = _monospaced(self.tr("Log"))
        self._shown: tuple[str, str, str, str] | None = None
        self._timer = QTimer(self, interval=_LOG_INTERVAL)
        self._timer.timeout.connect(self.refresh)
        self.file.currentIndexChanged.connect(self.refresh)
        self.level.currentIndexChanged.connect(self.refresh)
        self.filter.textChanged.connect(self.refresh)
        head = QHBoxLayout()
        # A screen reader asks a combo box for its label, not for its name.
        for words, choice in ((self.tr("So&urce"), self.file), (self.tr("Le&vel"), self.level)):
            label = QLabel(words)
            label.setTextFormat(Qt.TextFormat.PlainText)
            label.setBuddy(choice)
            head.addWidget(label)
            head.addWidget(choice)
            head.addSpacing(theme.SPACE)
        head.addWidget(self.filter, 1)
        rows = QVBoxLayout(self)
        rows.addLayout(head)
        rows.addWidget(self.text, 1)

    def follow(self) -> None:
        """Show the log and what comes."""
        self.refresh()
        self._timer.start()

    def rest(self) -> None:
        """Look no more."""
        self._timer.stop()

    def refresh(self) -> None:
        """Show the lines that are wanted; who reads further up is not scrolled away."""
        text = _tail(paths.state_dir() / self.file.currentData())
        wanted = (text, self.file.currentData(), self.level.currentData(), self.filter.text())
        if wanted == self._shown:
            return
        self._shown = wanted
        bar = self.text.verticalScrollBar()
        at_end = bar.value() == bar.maximum()
        lines = chosen_lines(text, self.level.currentData(), self.filter.text())
        self.text.setPlainText(lines or self.tr("No entries."))
        if at_end:
            self.text.moveCursor(QTextCursor.MoveOperation.End)


def chosen_lines(text: str, level: str, word: str) -> str:
    """The entries of a log from `level` on that contain `word`, with what follows each."""
    least, word = _LEVELS.index(level), word.casefold()
    chosen: list[str] = []
    taken = False
    for line in text.splitlines():
        parts = line.split(maxsplit=3)
        if len(parts) > 2 and parts[2] in (*_LEVELS, "CRITICAL"):
            rank = _LEVELS.index(parts[2]) if parts[2] in _LEVELS else len(_LEVELS)
            taken = rank >= least and word in line.casefold()
        if taken:
            chosen.append(line)
    return "\n".join(chosen)


class ReportPage(QWidget):
    """Every line of the report, before anybody gets it."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.text = _monospaced(self.tr("Report"))
        self.save = QPushButton(self.tr("&Save…"))
        self.save.setAutoDefault(False)
        self.save.setEnabled(False)
        self._said = Text()
        about = Text(
            self.tr(
                "This is the whole report. Placeholders stand for names, addresses and keys, "
                "the same one each time. It goes nowhere but where you save it."
            )
        )
        line = QHBoxLayout()
        line.addWidget(self._said, 1)
        line.addWidget(self.save)
        rows = QVBoxLayout(self)
        rows.addWidget(about)
        rows.addWidget(self.text, 1)
        rows.addLayout(line)

    def show_parts(self, parts: Mapping[str, str]) -> None:
        """Show the report."""
        self.text.setPlainText(report.as_text(parts))
        self.save.setEnabled(True)

    def say(self, text: str) -> None:
        """What became of it."""
        self._said.setText(text)


def _monospaced(name: str) -> QPlainTextEdit:
    text = QPlainTextEdit()
    text.setReadOnly(True)
    text.setTabChangesFocus(True)
    text.setFont(QFontDatabase.systemFont(QFontDatabase.SystemFont.FixedFont))
    text.setAccessibleName(name)
    text.setLineWrapMode(QPlainTextEdit.LineWrapMode.NoWrap)
    return text


def _tail(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _LOG_BYTES))
            return file.read(_LOG_BYTES).decode(errors="replace")
    except OSError:
        return ""
