"""``python -m bench.quic_cost``: what QUIC costs in Python, without sockets.

Both ends are sans-IO aioquic connections in one process, so the figures are pure computation: a
handshake, full and resumed; a 1280-byte DATAGRAM on its way (RFC 9221) with its share of the ACKs;
the memory of an idle connection. They bound what any data path on aioquic can reach on this
machine. It measures no network and no qvpn code.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.events import DatagramFrameReceived, HandshakeCompleted
from aioquic.tls import SessionTicket

from bench.peers.openvpn import make_certificate
from bench.results import markdown, parse_memory

_CLIENT, _SERVER = ("192.0.2.1", 50000), ("192.0.2.2", 443)
_PAYLOAD = bytes(1280)
_BATCH = 32
_HOST = "gateway.example"


@dataclass(slots=True)
class Pair:
    """A client and a server connection whose packets are handed over at once."""

    client: QuicConnection
    server: QuicConnection | None = None
    now: float = 0.0
    #: Seconds of CPU per side, and UDP payloads carried in both directions.
    client_cpu: float = 0.0
    server_cpu: float = 0.0
    packets: int = 0
    bytes: int = 0
    events: set[type] = field(default_factory=set)


class Bench:
    """The two configurations, with a certificate that the client really verifies."""

    def __init__(self, folder: Path) -> None:
        self._certificate, self._key, _ = make_certificate(_HOST, folder)
        self._server = self._configuration(is_client=False)
        self._server.load_cert_chain(self._certificate, self._key)
        self._tickets: dict[bytes, SessionTicket] = {}

    def pair(
        self,
        ticket: SessionTicket | None = None,
        keep_ticket: Callable[[SessionTicket], None] | None = None,
    ) -> Pair:
        """A connected pair: handshake done and confirmed, tickets delivered."""
        begin = time.thread_time()
        configuration = self._configuration(is_client=True)
        configuration.load_verify_locations(str(self._certificate))
        configuration.session_ticket = ticket
        client = QuicConnection(configuration=configuration, session_ticket_handler=keep_ticket)
        client.connect(_SERVER, now=0.0)
        pair = Pair(client, client_cpu=time.thread_time() - begin)
        while self._exchange(pair):
            pair.now += 0.001
        if HandshakeCompleted not in pair.events:
            raise RuntimeError("the handshake did not complete")
        return pair

    def _configuration(self, *, is_client: bool) -> QuicConfiguration:
        return QuicConfiguration(
            is_client=is_client,
            alpn_protocols=["h3"],
            server_name=_HOST,
            max_datagram_frame_size=65535,
            max_datagram_size=1350,
        )

    def _exchange(self, pair: Pair) -> bool:
        """One flight each way; whether anything moved."""
        begin = time.thread_time()
        flight = pair.client.datagrams_to_send(pair.now)
        pair.client_cpu += time.thread_time() - begin
        begin = time.thread_time()
        for data, _ in flight:
            if pair.server is None:
                pair.server = QuicConnection(
                    configuration=self._server,
                    original_destination_connection_id=(
                        pair.client.original_destination_connection_id
                    ),
                    session_ticket_fetcher=lambda label: self._tickets.pop(label, None),
                    session_ticket_handler=self._store,
                )
            pair.server.receive_datagram(data, _CLIENT, pair.now)
        back = pair.server.datagrams_to_send(pair.now) if pair.server else []
        pair.server_cpu += time.thread_time() - begin
        begin = time.thread_time()
        for data, _ in back:
            pair.client.receive_datagram(data, _SERVER, pair.now)
        while (event := pair.client.next_event()) is not None:
            pair.events.add(type(event))
        pair.client_cpu += time.thread_time() - begin
        pair.packets += len(flight) + len(back)
        pair.bytes += sum(len(data) for data, _ in [*flight, *back])
        return bool(flight or back)

    def _store(self, ticket: SessionTicket) -> None:
        self._tickets[ticket.ticket] = ticket


def handshakes(bench: Bench, count: int) -> list[list[str]]:
    """Medians over `count` handshakes, full and resumed (RFC 8446 section 2.2)."""
    rows = [["handshake", "client CPU, ms", "server CPU, ms", "wall, ms", "packets", "bytes"]]
    tickets: list[SessionTicket] = []
    for label in ("full", "resumed"):
        done: list[tuple[Pair, float]] = []
        for _ in range(count):
            ticket = tickets.pop(0) if label == "resumed" else None
            begin = time.perf_counter()
            pair = bench.pair(ticket, tickets.append)
            done.append((pair, time.perf_counter() - begin))
            if pair.client.tls.session_resumed != (label == "resumed"):
                raise RuntimeError(f"the {label} handshake was something else")
        columns = (
            [pair.client_cpu * 1e3 for pair, _ in done],
            [pair.server_cpu * 1e3 for pair, _ in done],
            [wall * 1e3 for _, wall in done],
        )
        last, _ = done[-1]
        rows.append(
            [
                label,
                *(f"{statistics.median(column):.2f}" for column in columns),
                str(last.packets),
                str(last.bytes),
            ]
        )
    return rows


def datagrams(bench: Bench, count: int) -> list[list[str]]:
    """CPU per 1280-byte DATAGRAM on its four legs, and the rate that one core could sustain."""
    pair = bench.pair()
    client, server = pair.client, pair.server
    assert server is not None
    spent = dict.fromkeys(("send", "receive", "ACK out", "ACK in"), 0.0)
    arrived = 0
    while arrived < count:
        # Time far enough apart for the pacer and the congestion window never to hold back a batch.
        pair.now += 0.05
        begin = time.thread_time()
        for _ in range(_BATCH):
            client.send_datagram_frame(_PAYLOAD)
        flight = client.datagrams_to_send(pair.now)
        sent = time.thread_time()
        for data, _ in flight:
            server.receive_datagram(data, _CLIENT, pair.now)
        while (event := server.next_event()) is not None:
            arrived += isinstance(event, DatagramFrameReceived)
        received = time.thread_time()
        acks = server.datagrams_to_send(pair.now)
        acked = time.thread_time()
        for data, _ in acks:
            client.receive_datagram(data, _SERVER, pair.now)
        while client.next_event() is not None:
            pass
        end = time.thread_time()
        for leg, part in zip(
            spent, (sent - begin, received - sent, acked - received, end - acked), strict=True
        ):
            spent[leg] += part
        if not flight:
            raise RuntimeError("aioquic holds back datagrams")
    total = sum(spent.values())
    rate = arrived * len(_PAYLOAD) * 8 / total / 1e6
    return [
        ["1280-byte DATAGRAM", *spent, "both ends", "Mbit/s, one core"],
        [
            f"us per packet, batches of {_BATCH}",
            *(f"{part / arrived * 1e6:.1f}" for part in spent.values()),
            f"{total / arrived * 1e6:.1f}",
            f"{rate:.0f}",
        ],
    ]


def idle_memory(bench: Bench, count: int) -> list[list[str]]:
    """Growth of this process per idle connection, the mean of the client and the server end."""

    def pss() -> float:
        gc.collect()
        return parse_memory(Path("/proc/self/smaps_rollup").read_text())[1]

    # Alive meanwhile: what is loaded once, and the allocator's slack, are no connection's.
    first = [bench.pair() for _ in range(20)]
    before = pss()
    pairs = [bench.pair() for _ in range(count)]
    grown = pss() - before
    del first
    return [
        ["idle connection", "kB per end", "connections"],
        ["PSS growth", f"{grown * 1e3 / len(pairs) / 2:.0f}", str(2 * len(pairs))],
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Print the three tables."""
    parser = argparse.ArgumentParser(prog="python -m bench.quic_cost", description=__doc__)
    parser.add_argument("--handshakes", type=int, default=100, metavar="N")
    parser.add_argument("--datagrams", type=int, default=50_000, metavar="N")
    parser.add_argument("--connections", type=int, default=200, metavar="N")
    chosen = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder))
        for rows in (
            # First, because later on the allocator has memory to spare that nobody would count.
            idle_memory(bench, chosen.connections),
            handshakes(bench, chosen.handshakes),
            datagrams(bench, chosen.datagrams),
        ):
            print(markdown(rows) + "\n")


if __name__ == "__main__":
    main()
