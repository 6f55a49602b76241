"""Bytes from strangers into everything in qvpn_core.auth that reads: fields, links, bodies.

Only the documented errors come out; what is accepted survives writing and reading again; and no
mutation of a credential is one.
"""

from __future__ import annotations

from contextlib import suppress
from functools import partial

import pytest
from cryptography.hazmat.primitives.hashes import SHA256

from qvpn_core.auth.concealed import ConcealedCredentials, Origin, Verifier, authenticate
from qvpn_core.auth.device_key import DeviceKey
from qvpn_core.auth.enrolment import (
    Enrolment,
    EnrolmentRefused,
    Refusal,
    encode_answer,
    make_request,
    read_answer,
    read_request,
)
from qvpn_core.auth.exporter import tls_exporter
from qvpn_core.auth.http_field import parse_credentials
from qvpn_core.auth.invite import Gateway, Invite
from qvpn_core.auth.invite_text import find_invite
from qvpn_core.errors import ProtocolViolation, QvpnError, UsageError
from tests.fuzz.harness import Target, fuzz

KEY = DeviceKey.from_seed(bytes(range(32)))
ORIGIN = Origin("https", "vpn.example.org", 443)
EXPORTER = partial(tls_exporter, bytes(32), SHA256())
FIELD = authenticate(KEY, EXPORTER, ORIGIN)
GENUINE = ConcealedCredentials.parse(FIELD)
VERIFIER = Verifier({KEY.key_id: KEY.public_key}.get)
INVITE = Invite(
    (Gateway("vpn.example.org", 443), Gateway("2001:db8::1", 4433)),
    b"sixteen bytes...",
    ("sha256/" + "A" * 43 + "=",),
    "laptop",
    1_800_000_000,
)


def run_http_field(data: bytes) -> None:
    credentials = parse_credentials(data.decode("latin-1"))
    if credentials is not None:
        assert credentials.scheme
        assert not credentials.parameters.keys() & credentials.quoted.keys()


def run_concealed(data: bytes) -> None:
    credentials = ConcealedCredentials.parse(data.decode("latin-1"))
    if credentials is not None and "\t" not in credentials.realm:
        assert ConcealedCredentials.parse(str(credentials)) == credentials


def run_verifier(data: bytes) -> None:
    field = data.decode("latin-1")
    if VERIFIER.verify(field, EXPORTER, ORIGIN) is not None:
        assert ConcealedCredentials.parse(field) == GENUINE


def run_origin(data: bytes) -> None:
    origin = Origin.of("https", data.decode("latin-1"))
    assert authenticate(KEY, EXPORTER, origin)


def run_invite(data: bytes) -> None:
    with suppress(QvpnError):
        assert find_invite(data.decode("utf-8", "replace")) == INVITE


def run_request(data: bytes) -> None:
    with suppress(ProtocolViolation):
        public_key, _ = read_request(data, EXPORTER, ORIGIN)
        assert public_key == KEY.public_key


def run_answer(data: bytes) -> None:
    with suppress(ProtocolViolation, EnrolmentRefused):
        answer = read_answer(data)
        assert read_answer(encode_answer(answer)) == answer


def run_pem(data: bytes) -> None:
    with suppress(UsageError):
        key = DeviceKey.from_pem(data)
        assert DeviceKey.from_pem(key.to_pem()) == key


TARGETS = [
    Target("http-field", run_http_field, [b"Scheme", b'A k=v, l = "a\\"b" ,,', FIELD.encode()]),
    Target("concealed", run_concealed, [FIELD.encode(), f'{FIELD}, realm="x"'.encode()]),
    Target("verifier", run_verifier, [FIELD.encode()]),
    Target("origin", run_origin, [b"vpn.example.org:4433", b"[2001:db8::1]:443"]),
    Target(
        "invite",
        run_invite,
        [
            INVITE.link.encode(),
            f"> Use <{INVITE.link[:50]}\n> {INVITE.link[50:]}>, please".encode(),
            INVITE.link.replace(":", "%3A").replace("/", "%2F").encode(),
        ],
    ),
    Target("enrolment-request", run_request, [make_request(INVITE, KEY, EXPORTER, ORIGIN)[1]]),
    Target(
        "enrolment-answer",
        run_answer,
        [
            encode_answer(Enrolment(name="a", groups=("b",), routes=("10.0.0.0/8",))),
            encode_answer(Refusal(reason="used")),
        ],
    ),
    Target("device-key", run_pem, [KEY.to_pem()]),
]


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_no_input_breaks(target: Target) -> None:
    assert fuzz(target) > 0
