"""CONNECT-UDP (RFC 9298) beside its datagrams: the capsule stream of one proxied UDP flow. Sans-IO.

UDP payloads normally come as HTTP Datagrams with context ID 0 (RFC 9298 section 5). An endpoint may
send them as DATAGRAM capsules instead (RFC 9297 section 3.5), which are taken apart here. No other
capsule and no other context means anything to us: they are skipped.
"""

from __future__ import annotations

from qvpn_core.masque.capsule import CapsuleDecoder, CapsuleType, malformed
from qvpn_core.masque.varint import decode_varint

#: The `:protocol` of the request.
PROTOCOL = "connect-udp"
#: The largest UDP payload in bytes (RFC 9298 section 5).
MAX_PAYLOAD = 65_527
_MAX_CONTEXT = 8  # bytes of a context ID


class UdpCapsules:
    """The peer's capsule stream of one flow."""

    def __init__(self) -> None:
        self._decoder = CapsuleDecoder(MAX_PAYLOAD + _MAX_CONTEXT, (CapsuleType.DATAGRAM,))

    def receive(self, data: bytes) -> list[bytes]:
        """The UDP payloads that `data` completes.

        Raises CapsuleError for a malformed stream, after which the request is to be aborted.
        """
        payloads = []
        for capsule in self._decoder.feed(data):
            with malformed(CapsuleType.DATAGRAM):
                context = decode_varint(capsule.value)
                if context is None:
                    raise ValueError("no context ID")
            if context[0] == 0:
                payloads.append(capsule.value[context[1] :])
        return payloads

    def receive_end(self) -> None:
        """The stream finished. Raises CapsuleError when that was inside a capsule."""
        self._decoder.end()
