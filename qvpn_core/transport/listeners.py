"""A gateway's two listeners as one: QUIC on UDP and TLS on TCP, on the same addresses and ports."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from qvpn_core.errors import PortInUse
from qvpn_core.transport.interface import Address, IncomingRequest
from qvpn_core.transport.listen import QuicListener
from qvpn_core.transport.tls_listen import TlsListener

#: How often another port is taken when one that was free on UDP is not on TCP.
_TRIES: Final = 8


class GatewayListener:
    """Both transports of one gateway. Make it with :meth:`start`."""

    def __init__(self, quic: QuicListener, tls: TlsListener) -> None:
        self.quic = quic
        self.tls = tls

    @classmethod
    async def start(
        cls,
        addresses: Sequence[Address],
        *,
        certificate: Path,
        private_key: Path,
        on_request: Callable[[IncomingRequest], None],
    ) -> GatewayListener:
        """Bind and serve. Raises PortInUse, PermissionMissing, NetworkSetupFailed, UsageError.

        A port 0 becomes a free one, the same on TCP as on UDP.
        """
        tries = _TRIES if any(port == 0 for _host, port in addresses) else 1
        while True:
            quic = await QuicListener.start(
                addresses, certificate=certificate, private_key=private_key, on_request=on_request
            )
            try:
                tls = await TlsListener.start(
                    quic.addresses,
                    certificate=certificate,
                    private_key=private_key,
                    on_request=on_request,
                )
            except BaseException as error:
                await quic.close()
                tries -= 1
                if tries and isinstance(error, PortInUse):
                    continue
                raise
            return cls(quic, tls)

    @property
    def addresses(self) -> list[Address]:
        """The bound addresses, with the real ports."""
        return self.quic.addresses

    @property
    def connections(self) -> int:
        """Live connections of both kinds."""
        return self.quic.connections + self.tls.connections

    def use_certificate(self, certificate: Path, private_key: Path) -> None:
        """Show another certificate from now on; live connections stay. Raises UsageError."""
        self.quic.use_certificate(certificate, private_key)
        self.tls.use_certificate(certificate, private_key)

    def forget_tickets(self) -> None:
        """Honour none of the session tickets given so far."""
        self.quic.tickets.clear()

    async def close(self) -> None:
        """Tell every peer, then close the sockets."""
        await self.tls.close()
        await self.quic.close()
