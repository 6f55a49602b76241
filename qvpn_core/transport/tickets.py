"""TLS session tickets (RFC 8446 section 4.6.1): those the gateway honours, and the client's copy.

A ticket spares a handshake its certificate and nothing else: on the new connection a device proves
its key anew. The gateway hands a ticket to everybody, as web servers do, but remembers only those
of connections that carried a tunnel, each for one use, and none for early data, which can be
replayed.
"""

from __future__ import annotations

from collections import OrderedDict
from datetime import UTC, datetime
from typing import Protocol

import msgspec
from aioquic.tls import CipherSuite, SessionTicket

from qvpn_core.transport.trust import Trust

#: Tickets that a gateway remembers; the oldest goes first.
CAPACITY = 4096


class TicketStore:
    """The gateway's side. Memory only: after a restart everybody shakes hands in full."""

    def __init__(self) -> None:
        self._tickets: OrderedDict[bytes, SessionTicket] = OrderedDict()

    def __len__(self) -> int:
        return len(self._tickets)

    def keep(self, ticket: SessionTicket) -> None:
        """Honour `ticket` once."""
        self._tickets[ticket.ticket] = ticket
        if len(self._tickets) > CAPACITY:
            self._tickets.popitem(last=False)

    def take(self, label: bytes) -> SessionTicket | None:
        """The ticket that a client presents, which is thereby used up."""
        return self._tickets.pop(label, None)

    def clear(self) -> None:
        """Honour none of those given so far."""
        self._tickets.clear()


class TicketJar(Protocol):
    """Where a client keeps its newest ticket to one gateway, as bytes that are a secret."""

    def load(self) -> bytes | None:
        """What was saved last, taken out: a ticket is used once."""

    def save(self, data: bytes) -> None:
        """Replace what is there."""


class _Record(msgspec.Struct, frozen=True):
    """A ticket with the trust that its connection was made under."""

    pin: str
    ca_file: str | None
    server_name: str
    age_add: int
    cipher_suite: int
    not_valid_before: float
    not_valid_after: float
    resumption_secret: bytes
    ticket: bytes


def pack_ticket(ticket: SessionTicket, trust: Trust, pin: str) -> bytes:
    """A ticket for a :class:`TicketJar`; `pin` is that of the gateway's key."""
    return msgspec.msgpack.encode(
        _Record(
            pin if trust.pins else "",
            trust.ca_file,
            ticket.server_name,
            ticket.age_add,
            int(ticket.cipher_suite),
            ticket.not_valid_before.timestamp(),
            ticket.not_valid_after.timestamp(),
            ticket.resumption_secret,
            ticket.ticket,
        )
    )


def unpack_ticket(data: bytes, trust: Trust) -> tuple[SessionTicket, str] | None:
    """The ticket and its pin; None when it is damaged, or its gateway no longer trusted."""
    try:
        record = msgspec.msgpack.decode(data, type=_Record)
        suite = CipherSuite(record.cipher_suite)
        times = [
            datetime.fromtimestamp(seconds, UTC)
            for seconds in (record.not_valid_before, record.not_valid_after)
        ]
    except (ValueError, OverflowError, OSError):
        return None
    if (
        (record.pin not in trust.pins)
        if trust.pins
        else (record.pin or record.ca_file != trust.ca_file)
    ):
        return None
    ticket = SessionTicket(
        age_add=record.age_add,
        cipher_suite=suite,
        not_valid_before=times[0],
        not_valid_after=times[1],
        resumption_secret=record.resumption_secret,
        server_name=record.server_name,
        ticket=record.ticket,
    )
    return ticket, record.pin
