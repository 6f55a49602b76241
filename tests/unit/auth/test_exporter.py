"""Exporter values: ours against OpenSSL's, and aioquic's two ends against each other."""

from __future__ import annotations

import pytest
from aioquic.tls import CipherSuite
from cryptography.hazmat.primitives.hashes import SHA256, SHA384, HashAlgorithm

from qvpn_core.auth.exporter import Exporter, tls_exporter
from tests.unit.auth.connections import (
    ExportingConnection,
    Tickets,
    openssl_pair,
    quic_pair,
)
from tests.unit.transport.helpers import Identity

LABEL = b"EXPORTER-HTTP-Concealed-Authentication"
SUITES = [
    CipherSuite.AES_128_GCM_SHA256,
    CipherSuite.AES_256_GCM_SHA384,
    CipherSuite.CHACHA20_POLY1305_SHA256,
]


def exporter_of(connection: ExportingConnection) -> Exporter:
    assert connection.exporter is not None
    return connection.exporter


@pytest.mark.parametrize(
    ("suite", "algorithm"),
    [(b"TLS_AES_128_GCM_SHA256", SHA256()), (b"TLS_AES_256_GCM_SHA384", SHA384())],
)
def test_openssl_exports_the_same_from_the_same_secret(
    identity: Identity, suite: bytes, algorithm: HashAlgorithm
) -> None:
    pair = openssl_pair(identity, suite)
    for label in (LABEL, b"EXPERIMENTAL", b"EXPORTER-" + b"x" * 200):
        for context in (b"", b"\0", b"context" * 99):
            for length in (1, 32, 48, 255):
                ours = tls_exporter(pair.exporter_master_secret, algorithm, label, context, length)
                assert ours == pair.server.export_keying_material(label, length, context)
                assert ours == pair.client.export_keying_material(label, length, context)


@pytest.mark.parametrize("suite", SUITES, ids=lambda suite: suite.name)
def test_both_ends_of_a_quic_connection_export_the_same(
    identity: Identity, suite: CipherSuite
) -> None:
    client, server = quic_pair(identity, suite)
    value = exporter_of(client)(LABEL, b"context", 48)
    assert value == exporter_of(server)(LABEL, b"context", 48)
    assert value != exporter_of(server)(LABEL, b"Context", 48)
    assert value != exporter_of(server)(LABEL[:-1], b"context", 48)


def test_the_secret_is_taken_at_the_transcript_that_the_rfc_names(identity: Identity) -> None:
    # Ends that both took it too late would agree with each other, but with no other implementation.
    for end in quic_pair(identity, CipherSuite.AES_128_GCM_SHA256):
        assert end.witness is not None
        installed, derived = end.witness
        assert installed == derived


def test_a_resumed_connection_has_an_exporter_of_its_own(identity: Identity) -> None:
    tickets = Tickets()
    first, _ = quic_pair(identity, CipherSuite.AES_256_GCM_SHA384, tickets)
    client, server = quic_pair(identity, CipherSuite.AES_256_GCM_SHA384, tickets)
    assert client.tls.session_resumed
    assert server.tls.session_resumed
    value = exporter_of(client)(LABEL, b"context", 48)
    assert value == exporter_of(server)(LABEL, b"context", 48)
    assert value != exporter_of(first)(LABEL, b"context", 48)
