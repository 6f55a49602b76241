"""RFC 9729, both sides: vectors made without the code, every check of section 6.3, equal effort."""

from __future__ import annotations

import base64
import hashlib
import re
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from aioquic.tls import CipherSuite
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256, SHA384, HashAlgorithm
from hypothesis import given
from hypothesis import strategies as st

from qvpn_core.auth.concealed import (
    ConcealedCredentials,
    Origin,
    Verifier,
    authenticate,
    verify_self,
)
from qvpn_core.auth.device_key import DeviceKey
from qvpn_core.auth.exporter import Exporter, tls_exporter
from tests.unit.auth.connections import exporter_from, quic_pair
from tests.unit.transport.helpers import Identity

SEED = bytes(range(32))
KEY = DeviceKey.from_seed(SEED)
STRANGER = DeviceKey.from_seed(b"\x55" * 32)
ORIGIN = Origin("https", "vpn.example.org", 443)
EXPORTER = exporter_from(b"one connection".ljust(32))
OTHER_EXPORTER = exporter_from(b"another connection".ljust(32))

# What make_vectors.sh printed, which uses only openssl(1) and bytes assembled by hand.
_LINES = (Path(__file__).parent / "vectors.txt").read_text().splitlines()
VECTORS = {name: bytes.fromhex(value) for name, value in (line.split(" = ") for line in _LINES)}


def lookup(key_id: bytes) -> bytes | None:
    """A registry with one device."""
    return KEY.public_key if key_id == KEY.key_id else None


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def good() -> ConcealedCredentials:
    credentials = ConcealedCredentials.parse(authenticate(KEY, EXPORTER, ORIGIN))
    assert credentials is not None
    return credentials


def verify(credentials: ConcealedCredentials | str | None, exporter: Exporter = EXPORTER) -> bool:
    field = None if credentials is None else str(credentials)
    proven = Verifier(lookup).verify(field, exporter, ORIGIN)
    assert proven in (None, KEY.key_id)
    return proven is not None


# The vectors


@pytest.mark.parametrize(
    ("name", "algorithm", "origin", "realm"),
    [
        ("name", SHA256(), ORIGIN, ""),
        ("address", SHA384(), Origin("https", "[2001:db8::1]", 4433), 'the "lab"'),
        ("realm", SHA256(), ORIGIN, "r" * 70),
    ],
)
def test_vector(name: str, algorithm: HashAlgorithm, origin: Origin, realm: str) -> None:
    secret = bytes(range(0xA0, 0xA0 + algorithm.digest_size))
    asked: list[tuple[bytes, bytes, int]] = []

    def exporter(label: bytes, context: bytes, length: int) -> bytes:
        asked.append((label, context, length))
        return tls_exporter(secret, algorithm, label, context, length)

    field = authenticate(KEY, exporter, origin, realm)
    output = VECTORS[f"{name}.output"]
    assert asked == [(b"EXPORTER-HTTP-Concealed-Authentication", VECTORS[f"{name}.context"], 48)]
    assert exporter(*asked[0]) == output
    k, a, p, v = map(
        b64, (VECTORS["key_id"], VECTORS["public"], VECTORS[f"{name}.proof"], output[32:])
    )
    expected = f"Concealed k={k}, a={a}, p={p}, s=2055, v={v}"
    if realm:
        expected += ', realm="' + realm.replace('"', r"\"") + '"'
    assert field == expected
    assert Verifier(lookup).verify(field, exporter, origin) == KEY.key_id
    assert verify_self(field, exporter, origin) == KEY.public_key


# The field


def test_the_example_of_the_rfc_is_read() -> None:
    field = (
        "Concealed k=YmFzZW1lbnQ, a=VGhpcyBpcyBh-HB1YmxpYyBrZXkgaW4gdXNl_GhlcmU, s=2055, "
        "v=dmVyaWZpY2F0aW9u_zE2Qg, p=SW5zZXJ0_HNpZ25hdHVyZSBvZiBub25jZSBoZXJlIHdo"
        "aWNoIHRha2VzIDUxMiBiaXRz-GZvciBFZDI1NTE5IQ"
    )
    credentials = ConcealedCredentials.parse(field)
    assert credentials is not None
    assert credentials.key_id == b"basement"
    assert credentials.public_key == b"This is a\xf8public key in use\xfchere"
    assert credentials.proof.endswith(b" 512 bits\xf8for Ed25519!")
    assert credentials.signature_scheme == 2055
    assert credentials.verification == b"verification\xff16B"
    assert not verify(field)


WELL_FORMED: list[tuple[str, Callable[[str], str]]] = [
    ("other order", lambda f: "Concealed " + ", ".join(reversed(f[10:].split(", ")))),
    ("other case", lambda f: f.replace("Concealed k=", "cONCEALED K=")),
    ("no spaces", lambda f: f.replace(", ", ",")),
    ("much space", lambda f: f.replace(", ", " \t, ,\t").replace("=", " = ")),
    ("unknown token", lambda f: f + ", new=1"),
    ("unknown string", lambda f: f + ', new="a, b"'),
    ("empty realm", lambda f: f + ', realm=""'),
]
MALFORMED: list[tuple[str, Callable[[str], str]]] = [
    ("another scheme", lambda f: f.replace("Concealed", "Bearer")),
    ("only the scheme", lambda f: "Concealed"),
    ("duplicate", lambda f: f + ", s=2055"),
    ("duplicate in the other case", lambda f: f + ", S=2055"),
    ("two realms", lambda f: f + ', realm=a, realm="a"'),
    ("quoted bytes", lambda f: re.sub("v=([^,]*)", r'v="\1"', f)),
    ("quoted number", lambda f: f.replace("2055", '"2055"')),
    ("padding", lambda f: re.sub("(v=[^,]*)", r"\1==", f)),
    ("standard base64", lambda f: re.sub("v=..", "v=+/", f)),
    ("impossible length", lambda f: re.sub("(v=[^,]*)", r"\1AAA", f)),
    ("bits behind the end", lambda f: re.sub("v=[^,]*", f"v={'A' * 21}B", f)),
    ("leading zero", lambda f: f.replace("2055", "02055")),
    ("sign", lambda f: f.replace("2055", "+2055")),
    ("number too large", lambda f: f.replace("2055", "67591")),  # 2055 modulo 2^16
    ("not a number", lambda f: f.replace("2055", "x")),
    ("another digit", lambda f: f.replace("2055", "２055")),
    ("cut off", lambda f: f[:-30]),
    ("too long", lambda f: f + ", x=" + "x" * 1024),
    *((f"no {name}", lambda f, n=name: re.sub(rf"\b{n}=[^,]*(, )?", "", f)) for name in "kapsv"),
]


@pytest.mark.parametrize("change", [c for _, c in WELL_FORMED], ids=[n for n, _ in WELL_FORMED])
def test_forms_that_mean_the_same(change: Callable[[str], str]) -> None:
    field = authenticate(KEY, EXPORTER, ORIGIN)
    assert change(field) != field
    assert verify(change(field))


@pytest.mark.parametrize("change", [c for _, c in MALFORMED], ids=[n for n, _ in MALFORMED])
def test_forms_that_mean_nothing(change: Callable[[str], str]) -> None:
    field = authenticate(KEY, EXPORTER, ORIGIN)
    assert change(field) != field
    assert ConcealedCredentials.parse(change(field)) is None
    assert not verify(change(field))


@given(
    st.builds(
        ConcealedCredentials,
        st.binary(min_size=1, max_size=64),
        st.binary(min_size=1, max_size=64),
        st.binary(min_size=1, max_size=64),
        st.integers(0, 0xFFFF),
        st.binary(min_size=1, max_size=64),
        st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=64),
    )
)
def test_what_is_formatted_is_parsed(credentials: ConcealedCredentials) -> None:
    assert ConcealedCredentials.parse(str(credentials)) == credentials


# The checks of section 6.3


def test_a_credential_is_good_for_every_request_of_its_connection() -> None:
    verifier = Verifier(lookup)
    field = authenticate(KEY, EXPORTER, ORIGIN)
    assert [verifier.verify(field, EXPORTER, ORIGIN) for _ in range(2)] == [KEY.key_id] * 2


def forged(credentials: ConcealedCredentials, **changes: bytes | int | str) -> ConcealedCredentials:
    return replace(credentials, **changes)  # type: ignore[arg-type]


def flipped(data: bytes) -> bytes:
    return data[:-1] + bytes((data[-1] ^ 1,))


def strangers(**changes: bytes | int) -> ConcealedCredentials:
    """A credential of a key that is not enrolled, good in itself."""
    credentials = ConcealedCredentials.parse(authenticate(STRANGER, EXPORTER, ORIGIN))
    assert credentials is not None
    return forged(credentials, **changes)


def crafted(
    *,
    key_id: bytes = KEY.key_id,
    public_key: bytes = KEY.public_key,
    signature_scheme: int = 2055,
    signer: bytes = b"\x55" * 32,
) -> ConcealedCredentials:
    """What a hostile client can make: consistent in itself, since it knows its own exporter."""
    context = signature_scheme.to_bytes(2, "big")
    for part in (key_id, public_key, b"https", b"vpn.example.org"):
        context += bytes((len(part),)) + part
    context += b"\x01\xbb\x00"
    output = EXPORTER(b"EXPORTER-HTTP-Concealed-Authentication", context, 48)
    signed = b" " * 64 + b"HTTP Concealed Authentication\0" + output[:32]
    proof = Ed25519PrivateKey.from_private_bytes(signer).sign(signed)
    return ConcealedCredentials(key_id, public_key, proof, signature_scheme, output[32:])


def above_the_order(proof: bytes) -> bytes:
    """The same signature in a second encoding, which RFC 8032 section 5.1.7 forbids."""
    order = 2**252 + 27742317777372353535851937790883648493
    scalar = int.from_bytes(proof[32:], "little") + order
    return proof[:32] + scalar.to_bytes(32, "little")


BAD: dict[str, Callable[[], ConcealedCredentials | str | None]] = {
    "no field": lambda: None,
    "a bearer token": lambda: "Bearer 0123",
    "an unknown key": strangers,
    "an enrolled key ID with another key": lambda: crafted(public_key=STRANGER.public_key),
    "another key ID with an enrolled key": lambda: crafted(key_id=STRANGER.key_id, signer=SEED),
    "an enrolled key ID and key, signed by another": crafted,
    "a wrong signature": lambda: forged(good(), proof=flipped(good().proof)),
    "a signature in its second encoding": lambda: forged(
        good(), proof=above_the_order(good().proof)
    ),
    "a short signature": lambda: forged(good(), proof=good().proof[:63]),
    "no signature": lambda: forged(good(), proof=b""),
    "a wrong verification": lambda: forged(good(), verification=flipped(good().verification)),
    "no verification": lambda: forged(good(), verification=b""),
    "a short public key": lambda: forged(good(), public_key=KEY.public_key[:31]),
    "another signature scheme": lambda: crafted(signature_scheme=0x0403, signer=SEED),
    "another realm": lambda: forged(good(), realm="elsewhere"),
}


def test_the_baseline_of_the_bad_ones_is_good() -> None:
    assert verify(good())
    assert crafted(signer=SEED) == good()
    assert verify_self(str(strangers()), EXPORTER, ORIGIN) == STRANGER.public_key


@pytest.mark.parametrize("make", BAD.values(), ids=BAD)
def test_a_bad_credential_is_no_credential(
    make: Callable[[], ConcealedCredentials | str | None],
) -> None:
    assert not verify(make())


@pytest.mark.parametrize(
    "origin",
    [
        Origin("https", "evil.example.org", 443),
        Origin("https", "vpn.example.org", 8443),
        Origin("https", "VPN.example.org", 443),
        Origin("http", "vpn.example.org", 443),
    ],
)
def test_a_credential_for_another_origin_is_none(origin: Origin) -> None:
    assert not verify(authenticate(KEY, EXPORTER, origin))


def test_a_signature_must_be_over_the_context_string() -> None:
    # Key reuse: what another protocol makes the key sign is no credential (section 3.3).
    credentials = good()
    signed = EXPORTER(b"EXPORTER-HTTP-Concealed-Authentication", VECTORS["name.context"], 48)[:32]
    proof = Ed25519PrivateKey.from_private_bytes(SEED).sign(signed)
    assert not verify(forged(credentials, proof=proof))


def test_a_credential_replayed_on_another_connection_is_none(identity: Identity) -> None:
    client, server = quic_pair(identity, CipherSuite.AES_128_GCM_SHA256)
    _, other_server = quic_pair(identity, CipherSuite.AES_128_GCM_SHA256)
    assert client.exporter is not None
    assert server.exporter is not None
    assert other_server.exporter is not None
    field = authenticate(KEY, client.exporter, ORIGIN)
    assert verify(field, server.exporter)
    assert not verify(field, other_server.exporter)


def test_a_device_that_was_removed_is_unknown_at_once() -> None:
    enrolled = {KEY.key_id: KEY.public_key}
    verifier = Verifier(enrolled.get)
    field = authenticate(KEY, EXPORTER, ORIGIN)
    assert verifier.verify(field, EXPORTER, ORIGIN) == KEY.key_id
    del enrolled[KEY.key_id]
    assert verifier.verify(field, EXPORTER, ORIGIN) is None


def test_a_key_that_is_no_point_proves_nothing() -> None:
    nonsense = b"\x02" + bytes(31)
    field = str(crafted(key_id=hashlib.sha256(nonsense).digest(), public_key=nonsense))
    assert verify_self(field, EXPORTER, ORIGIN) is None
    assert Verifier(lambda _: nonsense).verify(field, EXPORTER, ORIGIN) is None


@pytest.mark.parametrize("name", sorted(BAD.keys() - {"no field", "an unknown key"}))
def test_proof_of_an_unknown_key_is_as_strict(name: str) -> None:
    assert verify_self(str(BAD[name]()), EXPORTER, ORIGIN) is None


# Equal effort


@pytest.mark.parametrize("make", [good, *BAD.values()], ids=["a good one", *BAD])
def test_whatever_comes_is_looked_up_and_exported_once(
    make: Callable[[], ConcealedCredentials | str | None],
) -> None:
    work: list[str] = []

    def counting_lookup(key_id: bytes) -> bytes | None:
        work.append("lookup")
        return lookup(key_id)

    def counting_exporter(label: bytes, context: bytes, length: int) -> bytes:
        work.append("export")
        return EXPORTER(label, context, length)

    credentials = make()
    field = None if credentials is None else str(credentials)
    Verifier(counting_lookup).verify(field, counting_exporter, ORIGIN)
    assert work == ["lookup", "export"]


def test_whatever_comes_takes_as_long_to_verify() -> None:
    verifier = Verifier(lookup)
    fields = {"a good one": str(good())}
    fields |= {name: "" if (made := make()) is None else str(made) for name, make in BAD.items()}
    shortest = dict.fromkeys(fields, float("inf"))
    # The shortest of many is what the work itself takes; on a busy machine it needs more of them.
    # Without the signature it would be less than a third.
    for turn in range(400):
        if turn >= 20 and max(shortest.values()) < 2 * min(shortest.values()):
            return
        for name, field in fields.items():
            started = time.thread_time()
            verifier.verify(field, EXPORTER, ORIGIN)
            shortest[name] = min(shortest[name], time.thread_time() - started)
    pytest.fail(f"seconds: {shortest}")


# Origins


@pytest.mark.parametrize(
    ("authority", "host", "port"),
    [
        ("vpn.example.org", "vpn.example.org", 443),
        ("vpn.example.org:", "vpn.example.org", 443),
        ("vpn.example.org:4433", "vpn.example.org", 4433),
        ("VPN.example.org:443", "VPN.example.org", 443),
        ("[2001:db8::1]", "[2001:db8::1]", 443),
        ("[2001:db8::1]:65535", "[2001:db8::1]", 65535),
        ("vpn.example.org:65536", "vpn.example.org:65536", 443),
        ("vpn.example.org:x", "vpn.example.org:x", 443),
        ("vpn.example.org:１", "vpn.example.org:１", 443),
        ("", "", 443),
    ],
)
def test_the_origin_of_a_request(authority: str, host: str, port: int) -> None:
    assert Origin.of("https", authority) == Origin("https", host, port)


def test_a_request_from_nowhere_is_verified_like_any() -> None:
    for authority in ("", "\xff", ":", "a:b:c", "x" * 10_000):
        origin = Origin.of("", authority)
        field = authenticate(KEY, EXPORTER, origin)
        assert Verifier(lookup).verify(field, EXPORTER, origin) == KEY.key_id
        assert Verifier(lookup).verify(field, OTHER_EXPORTER, origin) is None
