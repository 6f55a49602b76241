"""Real connections without sockets, and their exporters: aioquic's and OpenSSL's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.tls import CipherSuite, Direction, Epoch, SessionTicket
from cryptography.hazmat.primitives.hashes import SHA256
from OpenSSL import SSL

from qvpn_core.auth.exporter import Exporter, tls_exporter
from tests.unit.transport.helpers import Identity

CLIENT, SERVER = ("192.0.2.1", 1111), ("192.0.2.2", 443)


def exporter_from(secret: bytes) -> Exporter:
    """The exporter of a connection of which only the exporter master secret is known."""
    return partial(tls_exporter, secret, SHA256())


class ExportingConnection(QuicConnection):
    """aioquic's connection, which takes the exporter master secret when it is due.

    RFC 8446 section 7.1 derives it, like the first application traffic secrets, from the transcript
    up to the server's Finished. That is the transcript at the first installation of a 1-RTT secret:
    the server's sending and the client's receiving one. At the second the client's Finished is in.
    """

    exporter: Exporter | None = None
    #: (secret that is installed, the same one derived again from the transcript) at that moment.
    witness: tuple[bytes, bytes] | None = None

    def _update_traffic_key(
        self, direction: Direction, epoch: Epoch, cipher_suite: CipherSuite, secret: bytes
    ) -> None:
        if epoch is Epoch.ONE_RTT and self.exporter is None:
            schedule = self.tls.key_schedule
            assert schedule is not None
            exporter_master_secret = schedule.derive_secret(b"exp master")
            self.exporter = partial(tls_exporter, exporter_master_secret, schedule.algorithm)
            self.witness = (secret, schedule.derive_secret(b"s ap traffic"))
        super()._update_traffic_key(direction, epoch, cipher_suite, secret)


@dataclass
class Tickets:
    """What a client and a server keep for resumption."""

    client: list[SessionTicket] = field(default_factory=list)
    server: dict[bytes, SessionTicket] = field(default_factory=dict)

    def add(self, ticket: SessionTicket) -> None:
        """The server's store."""
        self.server[ticket.ticket] = ticket

    def pop(self, label: bytes) -> SessionTicket | None:
        """The server takes one out."""
        return self.server.pop(label, None)


def quic_pair(
    identity: Identity, suite: CipherSuite, tickets: Tickets | None = None
) -> tuple[ExportingConnection, ExportingConnection]:
    """A client and a server that have finished their handshake, resuming if there is a ticket."""
    tickets = tickets or Tickets()
    client_side = QuicConfiguration(alpn_protocols=["h3"], server_name="localhost")
    client_side.load_verify_locations(str(identity.certificate_file))
    client_side.cipher_suites = [suite]
    client_side.session_ticket = tickets.client.pop() if tickets.client else None
    server_side = QuicConfiguration(is_client=False, alpn_protocols=["h3"])
    server_side.load_cert_chain(str(identity.certificate_file), str(identity.key_file))
    client = ExportingConnection(
        configuration=client_side, session_ticket_handler=tickets.client.append
    )
    server = ExportingConnection(
        configuration=server_side,
        original_destination_connection_id=client.original_destination_connection_id,
        session_ticket_handler=tickets.add,
        session_ticket_fetcher=tickets.pop,
    )
    client.connect(SERVER, now=1.0)
    for _ in range(4):
        for packet, _address in client.datagrams_to_send(now=1.0):
            server.receive_datagram(packet, CLIENT, now=1.0)
        for packet, _address in server.datagrams_to_send(now=1.0):
            client.receive_datagram(packet, SERVER, now=1.0)
    assert client._handshake_confirmed
    return client, server


@dataclass(frozen=True)
class OpensslPair:
    """Two ends of a TLS 1.3 connection in OpenSSL, and the secret that its key log told."""

    client: SSL.Connection
    server: SSL.Connection
    exporter_master_secret: bytes


def openssl_pair(identity: Identity, suite: bytes) -> OpensslPair:
    """Handshake in memory with one cipher suite, such as ``TLS_AES_128_GCM_SHA256``."""
    log: list[bytes] = []
    client_side, server_side = SSL.Context(SSL.TLS_METHOD), SSL.Context(SSL.TLS_METHOD)
    server_side.use_certificate_file(str(identity.certificate_file))
    server_side.use_privatekey_file(str(identity.key_file))
    client_side.set_tls13_ciphersuites(suite)
    client_side.set_keylog_callback(lambda _connection, line: log.append(line))
    client, server = SSL.Connection(client_side), SSL.Connection(server_side)
    client.set_connect_state()
    server.set_accept_state()
    for _ in range(3):
        for end, other in ((client, server), (server, client)):
            _try(end.do_handshake)
            while data := _try(partial(end.bio_read, 1 << 16)):
                other.bio_write(data)
    assert client.get_protocol_version_name() == "TLSv1.3"
    (secret,) = (line.split()[2] for line in log if line.startswith(b"EXPORTER_SECRET "))
    return OpensslPair(client, server, bytes.fromhex(secret.decode()))


def _try(action: Callable[[], Any]) -> Any:
    """The action's result, or None when it waits for the other end."""
    try:
        return action()
    except SSL.WantReadError:
        return None
