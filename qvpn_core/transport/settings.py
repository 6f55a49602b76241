"""Every QUIC setting that we choose, in one place; docs/quic.md says why."""

from __future__ import annotations

import ssl
from pathlib import Path

from aioquic.h3.connection import H3_ALPN
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.packet import QuicProtocolVersion
from aioquic.tls import CipherSuite
from cryptography.x509 import load_pem_x509_certificates

from qvpn_core.transport.trust import Trust

IDLE_TIMEOUT = 30.0  # seconds without a packet until either end gives up
KEEPALIVE = 10.0  # seconds of silence until the client sends a PING
HANDSHAKE_TIMEOUT = 10.0  # seconds that the gateway keeps a half-open connection

MAX_DATAGRAM_FRAME = 65535  # bytes; RFC 9221 section 3 recommends it as "no limit"
MAX_DATA = 1 << 20  # bytes of connection flow control until the peer is known
MAX_STREAM_DATA = 64 << 10  # bytes per stream at first; aioquic_streams lets it grow
MAX_STREAMS = 512  # open streams of a peer that is known; aioquic allows 128 to any
CONNECTION_ID = 8  # bytes: routes a packet at the gateway, unguessable enough

# The largest UDP payloads of a path with an Ethernet MTU; jumbo frames do not cross the Internet.
CEILING_IPV4 = 1500 - 20 - 8
CEILING_IPV6 = 1500 - 40 - 8

RETRY_ABOVE = (
    32  # half-open connections from which addresses must be proven (RFC 9000 section 8.1.2)
)
HALF_OPEN_LIMIT = 512  # half-open connections from which Initials are dropped
# Connections that never carried a tunnel; beyond these the oldest is closed. Each may hold what
# `http3.MAX_BUFFERED` allows.
STRANGERS = 256

# AES-128 first: the cheapest on every processor with AES instructions, and no weaker in practice.
CIPHER_SUITES = [
    CipherSuite.AES_128_GCM_SHA256,
    CipherSuite.AES_256_GCM_SHA384,
    CipherSuite.CHACHA20_POLY1305_SHA256,
]
VERSIONS: list[int] = [QuicProtocolVersion.VERSION_1, QuicProtocolVersion.VERSION_2]

# Where distributions keep their certification authorities; certifi's are used when none exists.
_SYSTEM_AUTHORITIES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
)


def _configuration(*, is_client: bool) -> QuicConfiguration:
    return QuicConfiguration(
        is_client=is_client,
        alpn_protocols=list(H3_ALPN),
        cipher_suites=list(CIPHER_SUITES),
        congestion_control_algorithm="cubic",  # for streams; datagrams are not controlled
        connection_id_length=CONNECTION_ID,
        idle_timeout=IDLE_TIMEOUT,
        max_data=MAX_DATA,
        max_stream_data=MAX_STREAM_DATA,
        max_datagram_frame_size=MAX_DATAGRAM_FRAME,
        supported_versions=list(VERSIONS),
    )


def client_configuration(host: str, trust: Trust) -> QuicConfiguration:
    """The client's side. With pins, the caller itself checks the certificate afterwards.

    Raises OSError or ValueError for an unusable file of authorities.
    """
    configuration = _configuration(is_client=True)
    configuration.server_name = host
    if trust.pins:
        configuration.verify_mode = ssl.CERT_NONE
    else:
        data, file = authorities(trust)
        configuration.load_verify_locations(cadata=data, cafile=file)
    return configuration


def authorities(trust: Trust) -> tuple[bytes | None, str | None]:
    """The authorities to verify against without pins: PEM, or a file; neither for certifi's.

    Raises OSError or ValueError for an unusable file, now and not in the middle of a handshake.
    """
    if trust.pins:
        return None, None
    if trust.ca_file is not None:
        data = Path(trust.ca_file).read_bytes()
        load_pem_x509_certificates(data)
        return data, None
    return None, next((path for path in _SYSTEM_AUTHORITIES if Path(path).exists()), None)


def server_configuration(certificate: Path, private_key: Path) -> QuicConfiguration:
    """The gateway's side. Raises OSError or ValueError for unusable files."""
    configuration = _configuration(is_client=False)
    try:
        configuration.load_cert_chain(str(certificate), str(private_key))
    except TypeError as error:  # a key with a passphrase
        raise ValueError(str(error)) from error
    leaf, key = configuration.certificate, configuration.private_key
    if leaf is None or key is None or leaf.public_key() != key.public_key():
        raise ValueError("they do not belong together")
    return configuration
