"""What the session is made of: addresses, name servers, quality of the path."""

from __future__ import annotations

from PySide6.QtCore import Qt
from PySide6.QtWidgets import QGridLayout, QWidget

from qvpn_core.client.status import Status
from qvpn_gui import theme
from qvpn_gui.session_model import SessionModel
from qvpn_gui.widgets.card import Card
from qvpn_gui.widgets.texts import Dim, Value
from qvpn_gui.words import Words, sentence


class DetailsCard(Card):
    """One line for each fact; what is not known is not there."""

    def __init__(self, model: SessionModel, words: Words, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._model = model
        self._words = words
        self._grid = QGridLayout()
        self._grid.setHorizontalSpacing(16)
        self._grid.setVerticalSpacing(theme.SPACE)
        self._grid.setColumnStretch(1, 1)
        self.rows.addLayout(self._grid)
        self._lines: dict[str, tuple[Dim, Value]] = {}
        model.changed.connect(self.refresh)
        self.refresh()

    def refresh(self) -> None:
        """Show the latest status."""
        facts = self._facts(self._model.status)
        for label, text in facts.items():
            name, value = self._line(label)
            value.setText(text)
            value.setAccessibleName(self.tr("{name}: {value}").format(name=label, value=text))
            for part in (name, value):
                part.setVisible(bool(text))
        resolver = sentence(self._model.status.resolver or "")
        self._line(self.tr("Name servers"))[1].setToolTip(resolver)

    def _line(self, label: str) -> tuple[Dim, Value]:
        if label not in self._lines:
            row = len(self._lines)
            name, value = Dim(label), Value()
            name.setWordWrap(False)
            top = Qt.AlignmentFlag.AlignTop
            self._grid.addWidget(name, row, 0, top)
            self._grid.addWidget(value, row, 1, top)
            self._lines[label] = name, value
        return self._lines[label]

    def _facts(self, status: Status) -> dict[str, str]:
        loss = self._model.loss
        return {
            self.tr("Your addresses"): "  ".join(
                address.partition("/")[0] for address in status.addresses
            ),
            self.tr("Name servers"): "  ".join(status.dns),
            self.tr("Round trip"): (
                self._words.milliseconds(status.rtt_ms) if status.rtt_ms is not None else ""
            ),
            self.tr("Lost packets"): self._words.share(loss) if loss is not None else "",
            self.tr("Largest packet"): (
                self.tr("{number} bytes").format(number=status.mtu) if status.mtu else ""
            ),
            self.tr("Transport"): self._transport(status),
            self.tr("Good to know"): "\n".join(map(self._words.warning, status.warnings)),
        }

    def _transport(self, status: Status) -> str:
        if status.transport is None:
            return ""
        name = {"quic": self.tr("QUIC over UDP"), "tls": self.tr("TLS over TCP")}[status.transport]
        return f"{name} ({status.datapath}, {status.interface})"
