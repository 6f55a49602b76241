"""Enrolment at the gateway: the one resource that exists only for who holds an invite.

A POST to it brings a device's public key with proof of its private half (qvpn_core.auth.enrolment);
the registry decides, atomically. Nothing is answered here to a caller whom the invite's key did not
authenticate: the gateway sends those to its web site.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from qvpn_core.auth.concealed import Origin
from qvpn_core.auth.device_key import key_id
from qvpn_core.auth.enrolment import (
    ENROLMENT_PATH,
    MAX_BODY,
    Enrolment,
    Refusal,
    encode_answer,
    read_request,
)
from qvpn_core.errors import ProtocolViolation, QvpnError
from qvpn_core.transport.interface import Headers, IncomingRequest, Request
from qvpn_server.registry import Invite, InviteRefused, Registry
from qvpn_server.website import refusal

log = logging.getLogger(__name__)

_JSON: Headers = (("content-type", "application/json"), ("cache-control", "no-store"))


def is_enrolment(request: Request) -> bool:
    """Whether a request asks to enrol a device."""
    return request.method == "POST" and request.path == ENROLMENT_PATH


def receive_enrolment(
    incoming: IncomingRequest,
    invite: Invite,
    registry: Registry,
    pins: Callable[[], tuple[str, ...]],
) -> None:
    """Take the content of a request that `invite` authenticated, then answer it."""

    def whole(body: bytes | None) -> None:
        now = time.time()
        if body is None:
            incoming.respond(*refusal(incoming.request, 413, "the request is too long", now))
            return
        try:
            answer: Enrolment | Refusal = _enrol(incoming, invite, registry, body, int(now), pins())
        except InviteRefused as error:
            log.info("the invite %s was refused: %s", invite.name, error.what)
            answer = Refusal(reason=error.refusal)
        except ProtocolViolation as error:
            incoming.respond(*refusal(incoming.request, 400, error.what, now))
            return
        except QvpnError as error:  # the registry; the invite is as good as before
            log.error("%s", error)
            incoming.respond(*refusal(incoming.request, 503, error.what, now))
            return
        status = 200 if isinstance(answer, Enrolment) else 403
        body = encode_answer(answer)
        incoming.respond(status, (*_JSON, ("content-length", str(len(body)))), body)

    incoming.read_body(MAX_BODY, whole)


def _enrol(
    incoming: IncomingRequest,
    invite: Invite,
    registry: Registry,
    body: bytes,
    now: int,
    pins: tuple[str, ...],
) -> Enrolment:
    request = incoming.request
    origin = Origin.of(request.scheme, request.authority)
    public_key, _wish = read_request(body, incoming.export_keying_material, origin)
    device = registry.redeem_invite(key_id(invite.public_key), public_key, now)
    log.info("%s enrolled from %s", device.name, incoming.peer[0])
    return Enrolment(
        name=device.name,
        groups=device.groups,
        routes=tuple(map(str, invite.routes)),
        pins=pins,
    )
