"""TLS 1.3 in memory: ciphertext in, plaintext out and back, by OpenSSL; no socket, no clock.

pyOpenSSL and not `ssl`, for its exporter, which concealed authentication signs (RFC 9729). Versions
before 1.3 are refused: what they export is not bound to the connection in the same way. Trust is
checked after the handshake and before anything is said, by the same rules as on QUIC.
"""

from __future__ import annotations

from ipaddress import ip_address

from aioquic.quic.configuration import QuicConfiguration
from aioquic.tls import Alert, AlertBadCertificate, AlertCertificateExpired, verify_certificate
from cryptography import x509
from OpenSSL import SSL

from qvpn_core.errors import CertificateUntrusted
from qvpn_core.transport import tls_settings
from qvpn_core.transport.trust import Trust

_READ = 1 << 16


class TlsError(Exception):
    """The handshake or a record failed; the text is OpenSSL's reason."""


def server_context(configuration: QuicConfiguration) -> SSL.Context:
    """For the certificate, chain and key that QUIC uses."""
    context = _context(tls_settings.SERVER_SUITES)
    assert configuration.certificate is not None
    assert configuration.private_key is not None
    context.use_certificate(configuration.certificate)
    for certificate in configuration.certificate_chain:
        context.add_extra_chain_cert(certificate)
    context.use_privatekey(configuration.private_key)
    context.set_alpn_select_callback(_select_protocol)
    context.set_session_id(b"http")
    return context


def client_context() -> SSL.Context:
    """Without verification by OpenSSL: `verify_gateway` does it afterwards."""
    context = _context(tls_settings.CLIENT_SUITES)
    context.set_verify(SSL.VERIFY_NONE)
    context.set_alpn_protos([tls_settings.ALPN_HTTP2])
    return context


def _context(suites: bytes) -> SSL.Context:
    context = SSL.Context(SSL.TLS_METHOD)
    context.set_min_proto_version(SSL.TLS1_3_VERSION)
    context.set_tls13_ciphersuites(suites)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)  # tickets need none
    return context


def _select_protocol(_connection: SSL.Connection, offered: list[bytes]) -> bytes:
    for name in (tls_settings.ALPN_HTTP2, tls_settings.ALPN_HTTP1):
        if name in offered:
            return name
    # RFC 7301 section 3.2: a fatal alert, no_application_protocol.
    raise SSL.Error([("", "", "no application protocol in common")])


class TlsChannel:
    """One end of a connection; with a `server_name` the client's."""

    def __init__(self, context: SSL.Context, server_name: str | None = None) -> None:
        self._ssl = SSL.Connection(context, None)
        if server_name is None:
            self._ssl.set_accept_state()
        else:
            if not _is_address(server_name):  # RFC 6066 section 3
                self._ssl.set_tlsext_host_name(server_name.encode("idna"))
            self._ssl.set_connect_state()
        self.established = False
        #: The peer sent close_notify: nothing more comes from it.
        self.ended = False
        self._records = 0

    @property
    def protocol(self) -> bytes:
        """What ALPN agreed on; empty when the peer offered nothing."""
        return self._ssl.get_alpn_proto_negotiated()

    @property
    def worn_out(self) -> bool:
        """Whether the key has sealed as many records as it should (RFC 8446 section 5.5)."""
        return self._records >= tls_settings.MAX_AES_RECORDS and "AES" in (
            self._ssl.get_cipher_name() or ""
        )

    def handshake(self) -> None:
        """Take the next step. Raises TlsError, after which `take` may still have an alert."""
        try:
            self._ssl.do_handshake()
            self.established = True
        except SSL.WantReadError:
            pass
        except SSL.Error as error:
            raise TlsError(_words(error)) from error

    def receive(self, data: bytes) -> bytes:
        """Plaintext from ciphertext; may also establish the connection. Raises TlsError."""
        self._ssl.bio_write(data)
        if not self.established:
            self.handshake()
            if not self.established:
                return b""
        parts = []
        try:
            while not self.ended:
                parts.append(self._ssl.recv(_READ))
        except SSL.WantReadError:
            pass
        except SSL.ZeroReturnError:
            self.ended = True
        except SSL.Error as error:
            raise TlsError(_words(error)) from error
        self._records += len(parts)
        return b"".join(parts)

    def send(self, plaintext: bytes) -> None:
        """Seal; `take` has the records. Only once established. Raises TlsError."""
        try:
            # A BIO in memory takes all of it.
            self._ssl.sendall(plaintext)
        except SSL.Error as error:
            raise TlsError(_words(error)) from error
        self._records += 1 + len(plaintext) // (1 << 14)

    def take(self) -> bytes:
        """Ciphertext that is to be sent now."""
        parts = []
        try:
            while True:
                parts.append(self._ssl.bio_read(_READ))
        except SSL.WantReadError:
            return b"".join(parts)

    def finish(self) -> None:
        """Say close_notify; `take` has it."""
        if self.established:
            try:
                self._ssl.shutdown()
            except SSL.Error:
                pass  # a connection that failed has nothing to say

    def export_keying_material(self, label: bytes, context: bytes, length: int) -> bytes:
        """RFC 8446 section 7.5."""
        return self._ssl.export_keying_material(label, length, context)

    def certificates(self) -> list[x509.Certificate]:
        """The peer's chain, its own first."""
        return list(self._ssl.get_peer_cert_chain(as_cryptography=True) or ())


def verify_gateway(
    certificates: list[x509.Certificate], host: str, trust: Trust, authorities: Authorities
) -> None:
    """Whether a handshake was with our gateway at `host`. Raises CertificateUntrusted."""
    if trust.pins:
        if not certificates or not trust.accepts(certificates[0]):
            raise CertificateUntrusted(
                f"what answers for {host} does not have the pinned key",
                "somebody may be in between; ask the administrator for the gateway's pin",
            )
        return
    data, file = authorities
    try:
        if not certificates:
            raise AlertBadCertificate("it showed none")
        verify_certificate(
            certificates[0], certificates[1:], server_name=host, cadata=data, cafile=file
        )
    except AlertCertificateExpired as error:
        raise CertificateUntrusted(
            f"the gateway's certificate is not valid now ({error})",
            "check this machine's clock, then ask the administrator",
        ) from error
    except Alert as error:
        raise CertificateUntrusted(
            f"the certificate of {host} is not trusted ({error})",
            "check the host name, or give the gateway's pin or certification authority",
        ) from error


#: Authorities as PEM, or the file that has them; neither for those that come with Python.
Authorities = tuple[bytes | None, str | None]


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def _words(error: SSL.Error) -> str:
    if isinstance(error, SSL.SysCallError):
        return "the connection was cut"
    reasons = [reason for _library, _function, reason in error.args[0]] if error.args else []
    return ", ".join(reasons) or "no reason given"
