"""The gateway's certificate: making a self-signed one, and checking one that was given.

A self-signed certificate is trusted by its SPKI pin (qvpn_core.transport.trust), so its dates carry
no security; they are wide, and start early enough for a client whose clock is behind.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from qvpn_core.errors import UsageError
from qvpn_core.transport.trust import spki_pin

CLOCK_SKEW = timedelta(days=2)
VALIDITY = timedelta(days=3650)


def self_signed(host: str, now: datetime) -> tuple[bytes, bytes]:
    """A certificate and its ECDSA P-256 key for `host` (a name or an address), both PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name: x509.GeneralName
    try:
        name = x509.IPAddress(ip_address(host))
    except ValueError:
        name = x509.DNSName(host)
    # A common name holds 64 characters at most; verifiers read the subjectAltName (RFC 9525).
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host[:64])])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + VALIDITY)
        .add_extension(x509.SubjectAlternativeName([name]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(key, hashes.SHA256())
    )
    return (
        certificate.public_bytes(Encoding.PEM),
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
    )


def check_pair(certificate: Path, private_key: Path) -> None:
    """Refuse files that are not a certificate with its unencrypted key. Raises UsageError."""
    leaf = _load_certificate(certificate)
    try:
        key = load_pem_private_key(_read(private_key), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise UsageError(
            f"{private_key} is not an unencrypted private key in PEM", "give another --key"
        ) from None
    form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if key.public_key().public_bytes(*form) != leaf.public_key().public_bytes(*form):
        raise UsageError(
            f"{private_key} is not the key of {certificate}", "give the pair that belongs together"
        )


def pin_of(certificate: Path) -> str:
    """The SPKI pin of the first certificate in a PEM file. Raises UsageError."""
    return spki_pin(_load_certificate(certificate))


def is_self_signed(certificate: Path) -> bool:
    """Whether clients need the pin because no authority vouches. Raises UsageError."""
    leaf = _load_certificate(certificate)
    return leaf.issuer == leaf.subject


def _load_certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificates(_read(path))[0]
    except ValueError:
        raise UsageError(f"{path} is not a certificate in PEM", "give another --cert") from None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(
            f"cannot read {path}: {error.strerror}", "check the path and its permissions"
        ) from None
