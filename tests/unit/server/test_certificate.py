"""Certificates: what init makes, and which given ones it takes."""

from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from qvpn_core.errors import UsageError
from qvpn_core.transport.trust import spki_pin
from qvpn_server.certificate import check_pair, is_self_signed, pin_of, self_signed

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)


def written(directory: Path, host: str = "gw.example") -> tuple[Path, Path]:
    paths = directory / "c.pem", directory / "k.pem"
    for path, data in zip(paths, self_signed(host, NOW), strict=True):
        path.write_bytes(data)
    return paths


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("gw.example", x509.DNSName("gw.example")),
        ("192.0.2.1", x509.IPAddress(ip_address("192.0.2.1"))),
        ("2001:db8::1", x509.IPAddress(ip_address("2001:db8::1"))),
        (
            "a" * 60 + "." + "b" * 60 + ".example",
            x509.DNSName("a" * 60 + "." + "b" * 60 + ".example"),
        ),
    ],
)
def test_a_self_signed_certificate_names_the_host(host: str, name: x509.GeneralName) -> None:
    certificate = x509.load_pem_x509_certificate(self_signed(host, NOW)[0])
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert list(names) == [name]
    key = certificate.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    assert key.curve.name == "secp256r1"


def test_a_clock_that_is_a_day_behind_still_accepts_it() -> None:
    certificate = x509.load_pem_x509_certificate(self_signed("gw.example", NOW)[0])
    assert certificate.not_valid_before_utc <= NOW - timedelta(days=1)
    assert certificate.not_valid_after_utc > NOW + timedelta(days=3000)


def test_the_pin_is_that_of_the_public_key(tmp_path: Path) -> None:
    certificate, key = written(tmp_path)
    check_pair(certificate, key)
    assert is_self_signed(certificate)
    leaf = x509.load_pem_x509_certificate(certificate.read_bytes())
    assert pin_of(certificate) == spki_pin(leaf)


def test_a_foreign_key_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    certificate, _ = written(tmp_path)
    _, foreign = written(tmp_path / "other")
    with pytest.raises(UsageError, match="is not the key of"):
        check_pair(certificate, foreign)


def test_what_is_no_certificate_or_key_is_named(tmp_path: Path) -> None:
    certificate, key = written(tmp_path)
    junk = tmp_path / "junk"
    junk.write_text("hello")
    with pytest.raises(UsageError, match="junk is not a certificate"):
        check_pair(junk, key)
    with pytest.raises(UsageError, match="junk is not an unencrypted private key"):
        check_pair(certificate, junk)
    with pytest.raises(UsageError, match=r"cannot read .*missing"):
        check_pair(tmp_path / "missing", key)
