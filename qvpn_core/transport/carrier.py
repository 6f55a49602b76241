"""What HTTP on a byte stream needs of what carries it, and what that needs of HTTP. Types only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from qvpn_core.errors import QvpnError
from qvpn_core.transport.interface import Address


class Carrier(Protocol):
    """A TLS connection on a loop; tests have one without either."""

    @property
    def peer(self) -> Address:
        """The peer's address."""

    @property
    def rtt(self) -> float:
        """Smoothed round-trip time in seconds; 0.0 before the first sample."""

    @property
    def silence(self) -> float:
        """Seconds for which the peer has owed an acknowledgement; 0.0 while it owes none."""

    def now(self) -> float:
        """Seconds on a clock that never goes back."""

    def wake(self) -> None:
        """`Speaker.pull` may have something. Never calls it at once from within the speaker."""

    def soon(self, callback: Callable[..., object], *arguments: Any) -> object:
        """Call back when what happens now is over."""

    def export_keying_material(self, label: bytes, context: bytes, length: int) -> bytes:
        """The TLS exporter (RFC 8446 section 7.5)."""


class Speaker(Protocol):
    """HTTP of one version on one connection, sans-IO."""

    #: Nothing is received any more; what `pull` still has is the last.
    over: bool

    def receive(self, data: bytes) -> None:
        """The next plaintext."""

    def pull(self) -> bytes:
        """The next plaintext to send, some 16 KiB at most; empty when there is none now."""

    def close(self) -> None:
        """End in order what goes on, and be `over`."""

    def lost(self, error: QvpnError) -> None:
        """The connection is gone."""
