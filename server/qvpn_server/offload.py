"""The native datapath at a gateway: one engine for all sessions, and the reference for the rest.

The engine moves what `forwarding.py` would move without a word. Everything else, and all sessions
over TLS, still go through the forwarder. When the engine fails by a defect, the forwarder takes
over all of it, and no session ends.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from qvpn_core.datapath.engine import NativeEngine
from qvpn_core.net.tun import Tun
from qvpn_core.transport.listeners import GatewayListener
from qvpn_core.transport.offload import Boundaries, CarriedRules
from qvpn_server.destinations import DestinationTable, Verdict
from qvpn_server.sessions import Session

log = logging.getLogger(__name__)


class Offload:
    """Carries sessions on a native engine, where there is one."""

    def __init__(
        self,
        tun: Tun,
        sessions: Iterable[Session],
        from_tun: Callable[[list[bytes]], None],
        fall_back: Callable[[], None],
        on_gone: Callable[[], None],
    ) -> None:
        self._tun = tun
        self._sessions = sessions
        self._from_tun = from_tun
        self._fall_back = fall_back
        self._on_gone = on_gone
        self._listener: GatewayListener | None = None
        self._engine: NativeEngine | None = None
        self._dropped: dict[str, int] = {}

    def start(self) -> bool:
        """Take over the TUN, if that is possible here."""
        if not NativeEngine.available() or not self._tun.set_offload(True):
            return False
        self._engine = NativeEngine(
            gateway=True,
            tun=self._tun.fileno(),
            on_tun=self._from_tun,
            on_gone=self._on_gone,
            on_failure=self._failed,
        )
        return True

    @contextmanager
    def serving(self, listener: GatewayListener) -> Iterator[None]:
        """While inside, the engine reads the listener's UDP sockets."""
        self._listener = listener
        if self._engine is not None:
            listener.quic.lend(self._engine)
        try:
            yield
        finally:
            self._end()
            self._listener = None

    @property
    def drops(self) -> dict[str, int]:
        """Packets that the engine dropped, by reason."""
        now = self._engine.drops if self._engine is not None else {}
        return {
            reason: now.get(reason, 0) + self._dropped.get(reason, 0)
            for reason in now.keys() | self._dropped.keys()
        }

    def carry(self, session: Session) -> None:
        """Let the engine move a session's packets, if it can."""
        if self._engine is not None:
            session.tunnel.carry(self._engine, _rules(session))

    def follow(self, session: Session) -> None:
        """A session may send elsewhere now."""
        session.tunnel.allow(_rules(session))

    def _failed(self, words: str) -> None:
        log.error("the native datapath failed (%s); Python's goes on", words)
        self._end()
        self._fall_back()

    def _end(self) -> None:
        engine, self._engine = self._engine, None
        if engine is None:
            return
        self._dropped = {
            reason: self._dropped.get(reason, 0) + count for reason, count in engine.drops.items()
        }
        for session in list(self._sessions):
            session.tunnel.uncarry()
        if self._listener is not None:
            self._listener.quic.reclaim()
        engine.close()
        self._tun.set_offload(False)


def _rules(session: Session) -> CarriedRules:
    own = tuple(address.packed for address in session.addresses)
    destinations = session.destinations
    return CarriedRules(own, (_boundaries(destinations.ipv4), _boundaries(destinations.ipv6)))


def _boundaries(table: DestinationTable) -> Boundaries:
    return [
        (start, verdict is Verdict.FORWARD)
        for start, verdict in zip(table.starts, table.verdicts, strict=True)
    ]
