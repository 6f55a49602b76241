"""The traffic of the session: rates, graph, totals."""

from __future__ import annotations

from PySide6.QtGui import QShowEvent
from PySide6.QtWidgets import QGridLayout, QWidget

from qvpn_gui import theme
from qvpn_gui.session_model import SessionModel
from qvpn_gui.widgets.card import Card
from qvpn_gui.widgets.graph import RECEIVED, SENT, Legend, TrafficGraph
from qvpn_gui.widgets.texts import Dim, Heading
from qvpn_gui.words import Words


class TrafficCard(Card):
    """Follows the model while it is visible."""

    def __init__(self, model: SessionModel, words: Words, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._model = model
        self._words = words
        self._received, self._sent = Heading(), Heading()
        self._received_total, self._sent_total = Dim(), Dim()
        self.graph = TrafficGraph(words.round_rate, self.tr("last 2 minutes"))
        top = QGridLayout()
        top.setHorizontalSpacing(theme.SPACE)
        top.setVerticalSpacing(2)
        for column, mark, rate, total in (
            (0, Legend(RECEIVED, filled=True), self._received, self._received_total),
            (2, Legend(SENT, filled=False), self._sent, self._sent_total),
        ):
            rate.setWordWrap(False)
            total.setWordWrap(False)
            top.addWidget(mark, 0, column)
            top.addWidget(rate, 0, column + 1)
            top.addWidget(total, 1, column + 1)
            top.setColumnStretch(column + 1, 1)
        self.rows.addLayout(top)
        self.rows.addWidget(self.graph)
        model.sampled.connect(self.refresh)
        self.refresh()

    def refresh(self) -> None:
        """Show the latest samples."""
        samples, status, words = self._model.samples, self._model.status, self._words
        last = samples[-1] if samples else None
        received = words.rate(last.received if last else 0.0)
        sent = words.rate(last.sent if last else 0.0)
        self._received.setText(f"↓ {received}")
        self._sent.setText(f"↑ {sent}")
        self._received_total.setText(words.size(status.rx_bytes))
        self._sent_total.setText(words.size(status.tx_bytes))
        self._received.setAccessibleName(self.tr("Receiving {rate}").format(rate=received))
        self._sent.setAccessibleName(self.tr("Sending {rate}").format(rate=sent))
        for total, name in (
            (self._received_total, self.tr("Received in this session")),
            (self._sent_total, self.tr("Sent in this session")),
        ):
            total.setToolTip(name)
            total.setAccessibleName(
                self.tr("{name}: {value}").format(name=name, value=total.text())
            )
        self.graph.setAccessibleName(self.tr("Traffic of the last two minutes"))
        self.graph.setAccessibleDescription(
            self.tr("Receiving {down}, sending {up}").format(down=received, up=sent)
        )
        if self.isVisible():
            self.graph.set_points([(one.at, one.sent, one.received) for one in samples])

    def showEvent(self, event: QShowEvent) -> None:
        super().showEvent(event)
        self.refresh()
