"""Enrolment over real connections: who proves what, and that none of it can be used elsewhere."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from aioquic.tls import CipherSuite

from qvpn_core.auth.concealed import ConcealedCredentials, Origin, Verifier, authenticate
from qvpn_core.auth.device_key import DeviceKey
from qvpn_core.auth.enrolment import (
    MAX_BODY,
    Enrolment,
    EnrolmentRefused,
    Refusal,
    RefusalReason,
    encode_answer,
    make_request,
    read_answer,
    read_request,
)
from qvpn_core.auth.exporter import Exporter
from qvpn_core.errors import ProtocolViolation
from tests.unit.auth.connections import exporter_from, quic_pair
from tests.unit.auth.test_invite import INVITE, PIN, SECRET
from tests.unit.transport.helpers import Identity

ORIGIN = Origin("https", "vpn.example.org", 443)
DEVICE = DeviceKey.from_seed(b"d" * 32)
EXPORTER = exporter_from(b"one connection".ljust(32))
INVITES = Verifier({INVITE.key.key_id: INVITE.key.public_key}.get)

ENROLMENT = Enrolment(name="laptop", groups=("staff",), routes=("10.0.0.0/8", "::/0"), pins=(PIN,))


def connection(identity: Identity) -> tuple[Exporter, Exporter]:
    client, server = quic_pair(identity, CipherSuite.AES_128_GCM_SHA256)
    assert client.exporter is not None
    assert server.exporter is not None
    return client.exporter, server.exporter


def test_a_device_enrols(identity: Identity) -> None:
    client, server = connection(identity)
    field, body = make_request(INVITE, DEVICE, client, ORIGIN, "laptop")
    assert INVITES.verify(field, server, ORIGIN) == INVITE.key.key_id
    assert read_request(body, server, ORIGIN) == (DEVICE.public_key, "laptop")
    assert read_answer(encode_answer(ENROLMENT)) == ENROLMENT


def test_from_then_on_the_device_is_known_on_any_connection(identity: Identity) -> None:
    client, server = connection(identity)
    _, body = make_request(INVITE, DEVICE, client, ORIGIN)
    public_key, name = read_request(body, server, ORIGIN)
    assert name is None
    devices = Verifier({DEVICE.key_id: public_key}.get)
    client, server = connection(identity)
    assert devices.verify(authenticate(DEVICE, client, ORIGIN), server, ORIGIN) == DEVICE.key_id


def test_neither_secret_crosses_the_wire() -> None:
    field, body = make_request(INVITE, DEVICE, EXPORTER, ORIGIN)
    sent = field.encode() + body
    link = INVITE.link.encode()
    assert not any(link[place : place + 8] in sent for place in range(7, len(link) - 8))
    for secret in (SECRET, b"d" * 32):
        assert secret not in sent
        assert secret.hex().encode() not in sent


def test_a_request_that_was_seen_is_worth_nothing_on_another_connection(
    identity: Identity,
) -> None:
    client, _ = connection(identity)
    field, body = make_request(INVITE, DEVICE, client, ORIGIN)
    _, other_server = connection(identity)
    assert INVITES.verify(field, other_server, ORIGIN) is None
    with pytest.raises(ProtocolViolation, match="does not prove the device's key"):
        read_request(body, other_server, ORIGIN)


def test_nobody_enrols_a_key_that_is_not_theirs() -> None:
    thief = DeviceKey.from_seed(b"t" * 32)
    claimed = replace(authenticated(thief), key_id=DEVICE.key_id, public_key=DEVICE.public_key)
    # The verification is not signed: whoever shares the connection can compute it.
    context = bytes.fromhex("0807") + b"\x20" + DEVICE.key_id + b"\x20" + DEVICE.public_key
    context += b"\x05https\x0fvpn.example.org\x01\xbb\x00"
    output = EXPORTER(b"EXPORTER-HTTP-Concealed-Authentication", context, 48)
    claimed = replace(claimed, verification=output[32:])
    body = json.dumps({"credential": str(claimed)}).encode()
    with pytest.raises(ProtocolViolation, match="does not prove the device's key"):
        read_request(body, EXPORTER, ORIGIN)
    honest = replace(claimed, proof=authenticated(DEVICE).proof)
    body = json.dumps({"credential": str(honest)}).encode()
    assert read_request(body, EXPORTER, ORIGIN)[0] == DEVICE.public_key


def authenticated(key: DeviceKey) -> ConcealedCredentials:
    credentials = ConcealedCredentials.parse(authenticate(key, EXPORTER, ORIGIN))
    assert credentials is not None
    return credentials


def test_an_invite_of_another_gateway_does_not_exist() -> None:
    field, _ = make_request(INVITE, DEVICE, EXPORTER, ORIGIN)
    assert Verifier(lambda _: None).verify(field, EXPORTER, ORIGIN) is None


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b'{"credential": 1}',
        b'{"credential": ""}',
        b'{"credential": "Bearer x"}',
        b'{"credential": "' + b"x" * 2000 + b'"}',
        b"\xff",
    ],
)
def test_a_body_that_is_no_request(body: bytes) -> None:
    with pytest.raises(ProtocolViolation):
        read_request(body, EXPORTER, ORIGIN)


@pytest.mark.parametrize("name", ["", "../x", "a b", "a\n", "n" * 64])
def test_a_name_that_no_device_can_have(name: str) -> None:
    _, body = make_request(INVITE, DEVICE, EXPORTER, ORIGIN, name)
    with pytest.raises(ProtocolViolation, match="name"):
        read_request(body, EXPORTER, ORIGIN)


def test_a_body_has_a_greatest_size() -> None:
    _, body = make_request(INVITE, DEVICE, EXPORTER, ORIGIN)
    assert read_request(body.ljust(MAX_BODY), EXPORTER, ORIGIN)[0] == DEVICE.public_key
    with pytest.raises(ProtocolViolation, match="too many"):
        read_request(body.ljust(MAX_BODY + 1), EXPORTER, ORIGIN)
    answer = encode_answer(ENROLMENT)
    assert read_answer(answer.ljust(MAX_BODY)) == ENROLMENT
    with pytest.raises(ProtocolViolation, match="too many"):
        read_answer(answer.ljust(MAX_BODY + 1))


def test_fields_of_a_later_version_are_ignored() -> None:
    _, body = make_request(INVITE, DEVICE, EXPORTER, ORIGIN)
    later = json.dumps(json.loads(body) | {"colour": "red"}).encode()
    assert read_request(later, EXPORTER, ORIGIN)[0] == DEVICE.public_key


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("used", "was used before: ask for a new one"),
        ("expired", "has expired: ask for a new one"),
        ("revoked", "was revoked: ask for a new one"),
        ("name-taken", "another device has this name: choose"),
    ],
)
def test_a_refusal_reaches_the_user_in_words(reason: RefusalReason, words: str) -> None:
    with pytest.raises(EnrolmentRefused, match=words):
        read_answer(encode_answer(Refusal(reason=reason)))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"{}",
        b'{"result": "other"}',
        b'{"result": "refused", "reason": "other"}',
        b'{"result": "enrolled"}',
        b'{"result": "enrolled", "name": "a/b"}',
        b'{"result": "enrolled", "name": "a\\n"}',
        b'{"result": "enrolled", "name": "a", "routes": ["10.0.0.1/8"]}',
        b'{"result": "enrolled", "name": "a", "routes": ["x"]}',
        b'{"result": "enrolled", "name": "a", "pins": ["sha256/AAAA"]}',
        b'{"result": "enrolled", "name": "a", "groups": ["$(x)"]}',
    ],
)
def test_an_answer_that_makes_no_sense(body: bytes) -> None:
    with pytest.raises(ProtocolViolation, match="makes no sense"):
        read_answer(body)
