"""What the user sees of a defect: that it is one, what to do, and the report to pass on."""

from __future__ import annotations

from PySide6.QtCore import Qt, Signal
from PySide6.QtGui import QFontDatabase, QGuiApplication
from PySide6.QtWidgets import QDialog, QDialogButtonBox, QPlainTextEdit, QVBoxLayout, QWidget

from qvpn_gui import theme
from qvpn_gui.widgets.texts import Text, Title


class DefectDialog(QDialog):
    """Does not block: the session goes on behind it."""

    quit = Signal()

    def __init__(self, report: str, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setWindowTitle(self.tr("qvpn has a defect"))
        self.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        title = Title(self.tr("Something went wrong in qvpn"))
        text = Text(
            self.tr(
                "This is a defect of the app. Your session goes on if it was up. If something "
                "no longer works, quit qvpn: your network is put back as it was."
            )
        )
        self.report = QPlainTextEdit(report)
        self.report.setReadOnly(True)
        self.report.setFont(QFontDatabase.systemFont(QFontDatabase.SystemFont.FixedFont))
        self.report.setAccessibleName(self.tr("Report"))
        self.report.setLineWrapMode(QPlainTextEdit.LineWrapMode.NoWrap)
        buttons = QDialogButtonBox()
        role = QDialogButtonBox.ButtonRole
        copy = buttons.addButton(self.tr("&Copy report"), role.ActionRole)
        end = buttons.addButton(self.tr("&Quit qvpn"), role.DestructiveRole)
        go_on = buttons.addButton(self.tr("C&ontinue"), role.AcceptRole)
        go_on.setDefault(True)
        copy.clicked.connect(lambda: QGuiApplication.clipboard().setText(report))
        end.clicked.connect(self.quit)
        buttons.accepted.connect(self.close)
        rows = QVBoxLayout(self)
        rows.setContentsMargins(theme.MARGIN, theme.MARGIN, theme.MARGIN, theme.MARGIN)
        rows.setSpacing(theme.SPACE + 4)
        for widget in (title, text, self.report, buttons):
            rows.addWidget(widget)
        self.resize(640, 420)
        go_on.setFocus()
