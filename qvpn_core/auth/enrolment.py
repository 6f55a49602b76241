"""Enrolment: one request that turns a fresh device into an enrolled one, as bytes in and out.

Two keys prove themselves with the same credential of RFC 9729, on the same connection: the invite's
in the request's Authorization field, so that without an invite the resource does not exist, and the
device's own in the body. Neither the invite's secret nor the device's private key is sent, and what
is sent is worth nothing on another connection. Which invites are good is the registry's to say.
"""

from __future__ import annotations

from ipaddress import ip_network
from typing import Annotated, Literal

import msgspec

from qvpn_core.auth.concealed import Origin, authenticate, verify_self
from qvpn_core.auth.device_key import DeviceKey
from qvpn_core.auth.exporter import Exporter
from qvpn_core.auth.http_field import MAX_FIELD
from qvpn_core.auth.invite import NAME_PATTERN, Invite
from qvpn_core.errors import ProtocolViolation, QvpnError

#: Where the request is POSTed.
ENROLMENT_PATH = "/.well-known/qvpn/enrolment"
#: Bodies are JSON; either side refuses a longer one, in bytes.
MAX_BODY = 1 << 14

RefusalReason = Literal["used", "expired", "revoked", "name-taken"]

_Name = Annotated[str, msgspec.Meta(pattern=rf"\A{NAME_PATTERN}\Z")]
_Pin = Annotated[str, msgspec.Meta(pattern=r"\Asha256/[A-Za-z0-9+/]{43}=\Z")]
_Route = Annotated[str, msgspec.Meta(max_length=64)]

_REFUSALS: dict[RefusalReason, tuple[str, str]] = {
    "used": ("the invite was used before", "ask for a new one; each enrols one device"),
    "expired": ("the invite has expired", "ask for a new one"),
    "revoked": ("the invite was revoked", "ask for a new one"),
    "name-taken": ("another device has this name", "choose a different one"),
}


class EnrolmentRefused(QvpnError):
    """The gateway knows the invite, and says why it does not enrol this device."""

    reason = "enrolment-refused"


class EnrolmentRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What a device asks for. Fields that a later version adds are ignored."""

    #: An Authorization field value of the device's own key.
    credential: Annotated[str, msgspec.Meta(max_length=MAX_FIELD)]
    #: The name it would like to have, if the invite does not set one.
    name: _Name | None = None


class Enrolment(msgspec.Struct, frozen=True, kw_only=True, tag="enrolled", tag_field="result"):
    """The gateway's answer: the device is enrolled, and this is what it should know."""

    name: _Name
    groups: Annotated[tuple[_Name, ...], msgspec.Meta(max_length=64)] = ()
    #: Suggested destinations for the tunnel, as CIDR prefixes; empty suggests all.
    routes: Annotated[tuple[_Route, ...], msgspec.Meta(max_length=128)] = ()
    #: The gateway's current SPKI pins; empty when a public certification authority vouches.
    pins: Annotated[tuple[_Pin, ...], msgspec.Meta(max_length=4)] = ()


class Refusal(msgspec.Struct, frozen=True, kw_only=True, tag="refused", tag_field="result"):
    """The gateway's other answer, only to who holds the invite's key."""

    reason: RefusalReason


_requests = msgspec.json.Decoder(EnrolmentRequest)
_answers: msgspec.json.Decoder[Enrolment | Refusal] = msgspec.json.Decoder(Enrolment | Refusal)


def make_request(
    invite: Invite, key: DeviceKey, exporter: Exporter, origin: Origin, name: str | None = None
) -> tuple[str, bytes]:
    """The Authorization field and the body that enrol `key` on the exporter's connection."""
    body = EnrolmentRequest(credential=authenticate(key, exporter, origin), name=name)
    return authenticate(invite.key, exporter, origin), msgspec.json.encode(body)


def read_request(body: bytes, exporter: Exporter, origin: Origin) -> tuple[bytes, str | None]:
    """The device's public key, whose possession is proven, and the name that it asks for.

    Only for a request that an invite's key authenticated. Raises ProtocolViolation.
    """
    try:
        request = _requests.decode(_bounded(body))
    except ValueError as error:  # msgspec's own errors are of this kind, and UnicodeDecodeError
        raise ProtocolViolation(f"not an enrolment request: {error}") from None
    public_key = verify_self(request.credential, exporter, origin)
    if public_key is None:
        raise ProtocolViolation("the enrolment request does not prove the device's key")
    return public_key, request.name


def encode_answer(answer: Enrolment | Refusal) -> bytes:
    """The body of the gateway's answer."""
    return msgspec.json.encode(answer)


def read_answer(body: bytes) -> Enrolment:
    """What the gateway granted. Raises EnrolmentRefused, and ProtocolViolation for nonsense."""
    try:
        answer = _answers.decode(_bounded(body))
        if isinstance(answer, Enrolment):
            for route in answer.routes:
                ip_network(route)
    except ValueError as error:
        raise ProtocolViolation(
            f"the gateway's answer to the enrolment makes no sense: {error}",
            "check that the invite is for this gateway, and update qvpn",
        ) from None
    if isinstance(answer, Refusal):
        raise EnrolmentRefused(*_REFUSALS[answer.reason])
    return answer


def _bounded(body: bytes) -> bytes:
    if len(body) > MAX_BODY:
        raise ValueError(f"{len(body)} bytes are too many")
    return body
