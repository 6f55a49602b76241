"""What a client may say to the helper and what the helper answers: a closed set, typed and bounded.

One message is one packet of a ``SOCK_SEQPACKET`` socket, in MessagePack. Every request is answered
by exactly one reply, in order; descriptors ride with replies only. Once, and unasked, the helper
says `Goodbye`. Sans-IO: decoding checks the form, `wire.py` the meaning, that is whether a session
may ask for it. There is no path, no command and no name of an interface in a request.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta, Struct

from qvpn_core.net.plan import RouteKind, RouteReason

#: Raised when a message, or what rides with it, changes its meaning. Both ends must have the same.
VERSION: Final = 2
#: Bytes of one message: the 8192 IPv6 prefixes of the largest kill switch, and what is around them.
#: A socket's send buffer takes it whole (net.core.wmem_default is 212992).
MAX_MESSAGE: Final = 160 << 10
#: Prefixes in one list; the planner makes no more routes than that.
MAX_PREFIXES: Final = 4096
MIN_MTU: Final = 576  # RFC 791 section 3.2
MAX_MTU: Final = 9216
#: Seconds that the exception for a captive portal lasts at most.
MAX_SIGN_IN: Final = 600

#: An address, a host name's longest text, or an error's.
_Address = Annotated[str, Meta(max_length=64)]
_Domain = Annotated[str, Meta(max_length=254)]
_Words = Annotated[str, Meta(max_length=4096)]
_Port = Annotated[int, Meta(ge=1, le=65535)]


class ProtocolError(Exception):
    """The peer does not speak this protocol, so there is nothing left to say to it."""


class _Value(Struct, frozen=True, forbid_unknown_fields=True):
    pass


class Prefixes(_Value, frozen=True):
    """Networks in few bytes: a prefix length and a packed address each, per IP version."""

    v4: Annotated[bytes, Meta(max_length=5 * MAX_PREFIXES)] = b""
    v6: Annotated[bytes, Meta(max_length=17 * MAX_PREFIXES)] = b""


class Routes(_Value, frozen=True):
    """Routes of one kind that were planned for one reason."""

    kind: RouteKind
    reason: RouteReason
    prefixes: Prefixes


class Network(_Value, frozen=True):
    """A :class:`qvpn_core.net.plan.NetworkPlan`."""

    #: Host addresses of the TUN, without a prefix length.
    addresses: Annotated[tuple[_Address, ...], Meta(max_length=16)]
    mtu: Annotated[int, Meta(ge=MIN_MTU, le=MAX_MTU)]
    routes: Annotated[tuple[Routes, ...], Meta(max_length=16)]
    endpoints: Annotated[tuple[tuple[_Address, _Port], ...], Meta(max_length=32)]


class Dns(_Value, frozen=True):
    """A :class:`qvpn_core.net.dns.DnsPlan`."""

    servers: Annotated[tuple[_Address, ...], Meta(max_length=8)]
    domains: Annotated[tuple[_Domain, ...], Meta(max_length=128)]
    search: Annotated[tuple[_Domain, ...], Meta(max_length=128)]


class KillSwitch(_Value, frozen=True):
    """A :class:`qvpn_core.net.killswitch.KillSwitch`."""

    protected: Prefixes | None
    exempt: Prefixes
    lan: bool
    always: bool


# -- requests


class _Request(Struct, frozen=True, forbid_unknown_fields=True, tag_field="do"):
    pass


class Hello(_Request, frozen=True, tag="hello"):
    """First and once. Welcome, or Failed and the end."""

    version: int


class OpenTun(_Request, frozen=True, tag="open-tun"):
    """Opened, with the descriptor of a `qvpn_core.net.tun.Tun`; the device is down and has no
    address. One at a time.
    """

    mtu: Annotated[int, Meta(ge=MIN_MTU, le=MAX_MTU)]


class OpenSocket(_Request, frozen=True, tag="open-socket"):
    """Done, with a socket whose packets skip the tunnel's routes and the kill switch."""

    family: Literal["ipv4", "ipv6"]
    kind: Literal["udp", "tcp"]


class Apply(_Request, frozen=True, tag="apply"):
    """Make this be so, from whatever is so now; idempotent. Applied."""

    network: Network
    #: Null leaves the machine's resolver alone.
    dns: Dns | None = None


class Detach(_Request, frozen=True, tag="detach"):
    """Undo what Apply did and forget the TUN. The firewall stays. Done."""


class SetFirewall(_Request, frozen=True, tag="set-firewall"):
    """The kill switch from now on; null ends it, but for one that was asked for always. Done."""

    kill_switch: KillSwitch | None


class SignIn(_Request, frozen=True, tag="sign-in"):
    """Let the peer's user reach a captive portal despite the kill switch, for a time. Done."""

    seconds: Annotated[int, Meta(ge=1, le=MAX_SIGN_IN)]


class Report(_Request, frozen=True, tag="report"):
    """Reported."""


class Close(_Request, frozen=True, tag="close"):
    """Undo everything, as SetFirewall(null) does too, and end. Closed, and nothing after it."""


class Rest(_Request, frozen=True, tag="rest"):
    """As Close; but where polkit keeps a permission, the helper waits for another Hello. Closed."""


Request = (
    Hello | OpenTun | OpenSocket | Apply | Detach | SetFirewall | SignIn | Report | Close | Rest
)


# -- replies


class _Reply(Struct, frozen=True, tag_field="is"):
    pass


class Welcome(_Reply, frozen=True, tag="welcome"):
    """This network namespace is the session's now."""


class Opened(_Reply, frozen=True, tag="opened"):
    """The TUN; its descriptor is attached."""

    name: str
    index: int


class Done(_Reply, frozen=True, tag="done"):
    """It is done."""


class DnsState(_Value, frozen=True):
    """How names are resolved: `backend` and why that one, and what went wrong, if it did."""

    backend: str
    reason: str
    error: str | None = None


class Applied(_Reply, frozen=True, tag="applied"):
    """The network is as asked. Names may not be: a tunnel without them is better than none."""

    dns: DnsState | None


class Reported(_Reply, frozen=True, tag="reported"):
    """What is in force."""

    #: The tunnel's; none when nothing is in force.
    addresses: tuple[str, ...]
    mtu: int
    routes: int
    dns: DnsState | None
    kill_switch: Literal["on", "always"] | None
    #: How often something of ours was put back that somebody else had removed.
    repairs: int


class Closed(_Reply, frozen=True, tag="closed"):
    """Everything is undone but what `failures` say. The end, unless it rests."""

    failures: tuple[_Words, ...]
    resting: bool = False


class Failed(_Reply, frozen=True, tag="failed"):
    """It was not done: the fields of a QvpnError."""

    reason: str
    what: _Words
    hint: _Words


class Goodbye(_Reply, frozen=True, tag="goodbye"):
    """Unasked: the helper was told to end, has undone everything, and ends."""

    failures: tuple[_Words, ...]


Reply = Welcome | Opened | Done | Applied | Reported | Closed | Failed | Goodbye

_encoder = msgspec.msgpack.Encoder()
_requests = msgspec.msgpack.Decoder(Request)
_replies = msgspec.msgpack.Decoder(Reply)


def encode(message: Request | Reply) -> bytes:
    """One packet. Raises ProtocolError when it would be larger than MAX_MESSAGE."""
    data = _encoder.encode(message)
    if len(data) > MAX_MESSAGE:
        raise ProtocolError(f"a message of {len(data)} bytes")
    return data


def decode_request(data: bytes) -> Request:
    """Raises ProtocolError for what is no request."""
    try:
        request: Request = _requests.decode(data)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise ProtocolError(f"not a request: {error}") from None
    return request


def decode_reply(data: bytes) -> Reply:
    """Raises ProtocolError for what is no reply."""
    try:
        reply: Reply = _replies.decode(data)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise ProtocolError(f"not a reply: {error}") from None
    return reply
