"""Device keys: against RFC 8032's own vector, through PEM, and never shown."""

from __future__ import annotations

import hashlib

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from qvpn_core.auth.device_key import DeviceKey, key_id
from qvpn_core.errors import UsageError

# RFC 8032 section 7.1, test 2
SEED = bytes.fromhex("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb")
PUBLIC = bytes.fromhex("3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c")
SIGNATURE = bytes.fromhex(
    "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
    "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
)


def test_the_vector_of_rfc_8032() -> None:
    key = DeviceKey.from_seed(SEED)
    assert key.public_key == PUBLIC
    assert key.sign(b"\x72") == SIGNATURE


def test_the_key_id_is_the_hash_of_the_public_key() -> None:
    assert DeviceKey.from_seed(SEED).key_id == key_id(PUBLIC) == hashlib.sha256(PUBLIC).digest()


def test_generated_keys_differ() -> None:
    assert DeviceKey.generate() != DeviceKey.generate()


def test_a_key_survives_pem_and_other_programs_read_it() -> None:
    key = DeviceKey.from_seed(SEED)
    pem = key.to_pem()
    assert pem.startswith(b"-----BEGIN PRIVATE KEY-----\n")
    other = load_pem_private_key(pem, password=None)
    assert isinstance(other, ed25519.Ed25519PrivateKey)
    assert other.private_bytes_raw() == SEED
    again = DeviceKey.from_pem(pem)
    assert again == key
    assert again.sign(b"\x72") == SIGNATURE


def test_the_private_half_is_never_shown() -> None:
    key = DeviceKey.from_seed(SEED)
    for shown in (repr(key), str(key), f"{key}"):
        assert "private" not in shown.lower()
        assert SEED.hex() not in shown
        assert repr(SEED) not in shown


def pem_of(key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey, *, locked: bool) -> bytes:
    encryption = BestAvailableEncryption(b"secret") if locked else NoEncryption()
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)


@pytest.mark.parametrize(
    "pem",
    [
        b"",
        b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
        DeviceKey.from_seed(SEED).to_pem()[:60],
        pem_of(ec.generate_private_key(ec.SECP256R1()), locked=False),
        pem_of(ed25519.Ed25519PrivateKey.generate(), locked=True),
    ],
    ids=["nothing", "garbage", "cut off", "another kind", "locked"],
)
def test_what_is_no_device_key_is_refused_in_words(pem: bytes) -> None:
    with pytest.raises(UsageError, match="damaged: enrol this device again"):
        DeviceKey.from_pem(pem)
