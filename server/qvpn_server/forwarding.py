"""The packet path: from a device to the TUN, and from the TUN to the device that is meant.

Plain functions over bytes, batch in and batch out, no object per packet. The kernel is the router:
it decrements the hop limit of everything it forwards between the TUN and the other interfaces, in
both directions, answers with Time Exceeded (so that traceroute shows the gateway as one hop) and
does the NAT. What the kernel cannot know is decided here: whether a source address is the device's
own (RFC 9484 section 7), where a device may send, and what fits into its tunnel. Refusals are
answered with ICMP where the RFCs allow one, at a limited rate. Time is passed in, in seconds of a
clock that never goes back.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence

from qvpn_core.packet import (
    Unreachable,
    destination_of,
    is_multicast,
    packet_too_big,
    unreachable,
    well_formed,
)
from qvpn_server.destinations import Verdict
from qvpn_server.fragment import fragment, may_fragment
from qvpn_server.ratelimit import TokenBucket
from qvpn_server.sessions import ICMP_BURST, ICMP_RATE, Session, SessionTable

#: Packets read from the TUN in one go.
BATCH = 64

_ANSWERS = {
    Verdict.PROHIBITED: Unreachable.PROHIBITED,
    Verdict.NO_ROUTE: Unreachable.NO_ROUTE,
}


class Forwarder:
    """Moves packets between one TUN and the live sessions.

    `write_tun` writes a batch and returns how many packets the kernel took. `own` holds the
    gateway's addresses inside the tunnel by IP version, the source of its ICMP errors; a family
    that it leaves out gets none.
    """

    def __init__(
        self,
        *,
        sessions: SessionTable,
        own: Mapping[int, bytes],
        write_tun: Callable[[Sequence[bytes]], int],
    ) -> None:
        self._by_address = sessions.by_address
        self._own = own
        self._write_tun = write_tun
        self._icmp_to_tun = TokenBucket(ICMP_RATE, ICMP_BURST)
        #: Packets that belong to no session, and those that the TUN refused, by reason.
        self.drops: dict[str, int] = {}

    def from_device(self, session: Session, packets: Sequence[bytes], now: float) -> None:
        """Forward what a device sent; drop, count and answer what it must not send."""
        accepted: list[bytes] = []
        accept = accepted.append
        source4, source6 = session.source4, session.source6
        ipv4, ipv6 = session.destinations.ipv4, session.destinations.ipv6
        starts4, verdicts4 = ipv4.starts, ipv4.verdicts
        starts6, verdicts6 = ipv6.starts, ipv6.verdicts
        forward = Verdict.FORWARD
        for packet in packets:
            if not well_formed(packet):
                session.drop("malformed")
                continue
            if packet[0] >> 4 == 4:
                own = packet[12:16] == source4
                verdict = verdicts4[bisect_right(starts4, packet[16:20]) - 1]
            else:
                own = packet[8:24] == source6
                verdict = verdicts6[bisect_right(starts6, packet[24:40]) - 1]
            if own and verdict is forward:
                accept(packet)
            else:
                self._refuse(session, packet, verdict, own, now)
        if accepted:
            self._to_tun(accepted)

    def from_tun(self, packets: Sequence[bytes], now: float) -> None:
        """Send what the kernel routed into the TUN to the sessions that hold the destinations."""
        find = self._by_address.get
        groups: dict[Session, list[bytes]] = {}
        for packet in packets:
            session = find(packet[16:20] if packet[0] >> 4 == 4 else packet[24:40])
            if session is None:
                self._no_session(packet, now)
            elif len(packet) <= session.mtu:
                group = groups.get(session)
                if group is None:
                    groups[session] = [packet]
                else:
                    group.append(packet)
            elif may_fragment(packet):
                groups.setdefault(session, []).extend(fragment(packet, session.mtu))
            else:
                session.drop("too-big")
                self.too_big(session, packet, session.mtu, now)
        for session, group in groups.items():
            session.tunnel.send_packets(group)

    def too_big(self, session: Session, packet: bytes, mtu: int, now: float) -> None:
        """Answer a dropped packet that exceeds a device's tunnel with Packet Too Big."""
        source = self._own.get(packet[0] >> 4)
        if source is not None and session.icmp.take(now):
            self._answer_tun(packet_too_big(packet, mtu, source))

    def _refuse(
        self, session: Session, packet: bytes, verdict: Verdict, own: bool, now: float
    ) -> None:
        if verdict is Verdict.DISCARD:
            # First, since a device's own link-local chatter is no spoofing.
            session.drop(verdict.value)
            return
        if own:
            session.drop(verdict.value)
            reason = _ANSWERS[verdict]
        else:
            session.drop("bad-source")
            reason = Unreachable.BAD_SOURCE
        source = self._own.get(packet[0] >> 4)
        if source is not None and session.icmp.take(now):
            answer = unreachable(packet, reason, source)
            if answer is not None:
                session.tunnel.send_packets([answer])

    def _no_session(self, packet: bytes, now: float) -> None:
        if is_multicast(destination_of(packet)):
            self._drop("multicast")  # the kernel's own chatter on its new interface
            return
        self._drop("no-session")
        source = self._own.get(packet[0] >> 4)
        if source is not None and self._icmp_to_tun.take(now):
            self._answer_tun(unreachable(packet, Unreachable.HOST, source))

    def _answer_tun(self, answer: bytes | None) -> None:
        if answer is not None:
            self._to_tun([answer])

    def _to_tun(self, packets: Sequence[bytes]) -> None:
        written = self._write_tun(packets)
        if written < len(packets):
            self._drop("tun-refused", len(packets) - written)

    def _drop(self, reason: str, count: int = 1) -> None:
        self.drops[reason] = self.drops.get(reason, 0) + count
