"""The order of things: which request may come when, and what answers it. Sans-IO.

Bytes come in, an `Answer` goes out; what a request means to the kernel is behind `Effects`. A peer
that breaks the protocol gets one last word: its session is over as if it had died.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from qvpn_core.errors import ProtocolViolation, QvpnError
from qvpn_core.helper import protocol
from qvpn_core.helper.errors import HelperVersion
from qvpn_core.helper.protocol import ProtocolError, Reply, Request

#: Of a Failed; the fields on the wire are bounded.
_MAX_WORDS: Final = 1000


class Descriptor(Protocol):
    """What rides with a reply; closed here once it is sent."""

    def fileno(self) -> int: ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Answer:
    """A reply, and whether the session is over with it."""

    reply: Reply
    descriptor: Descriptor | None = None
    over: bool = False
    #: Over, but another session of the same peer may follow.
    rest: bool = False


class OpenedTun(Descriptor, Protocol):
    """A TUN as the kernel's half makes it."""

    name: str
    index: int


class Host(Protocol):
    """What a session has at once. Every method may raise a QvpnError."""

    def begin(self) -> None: ...

    def open_socket(self, family: int, kind: int) -> socket.socket: ...

    def may_rest(self) -> bool: ...


class Effects(Protocol):
    """What requests do to the kernel. Every method may raise a QvpnError."""

    def open_tun(self, mtu: int) -> OpenedTun: ...

    def apply(self, request: protocol.Apply) -> protocol.Applied: ...

    def detach(self) -> None: ...

    def set_firewall(self, request: protocol.SetFirewall) -> None: ...

    def sign_in(self, seconds: int) -> None: ...

    def report(self) -> protocol.Reported: ...

    def close(self) -> tuple[str, ...]: ...


_FAMILIES: Final = {"ipv4": socket.AF_INET, "ipv6": socket.AF_INET6}
_KINDS: Final = {"udp": socket.SOCK_DGRAM, "tcp": socket.SOCK_STREAM}


class Service:
    """One session's requests, in order."""

    def __init__(self, host: Host, effects: Callable[[], Effects]) -> None:
        """`effects` is first called when it is needed; loading it takes time."""
        self._host = host
        self._effects = effects
        self._greeted = False
        self._over = False

    def handle(self, data: bytes) -> Answer:
        """Answer one packet. Not to be called after an answer that is the last."""
        if self._over:
            raise RuntimeError("the session is over")
        try:
            request = protocol.decode_request(data)
            if isinstance(request, protocol.Hello) == self._greeted:
                raise ProtocolError("a greeting comes first, and once")
            answer = self._do(request)
        except ProtocolError as error:
            answer = Answer(
                _failed(ProtocolViolation.reason, str(error), "install qvpn again"), over=True
            )
        except QvpnError as error:
            # Before the greeting is answered there is no session that could go on.
            answer = Answer(_failed(error.reason, error.what, error.hint), over=not self._greeted)
        self._over = answer.over
        return answer

    def _do(self, request: Request) -> Answer:
        match request:
            case protocol.Hello(version):
                if version != protocol.VERSION:
                    raise HelperVersion(
                        "qvpn and its helper are of different versions", "install qvpn again"
                    )
                self._host.begin()
                self._greeted = True
                return Answer(protocol.Welcome())
            case protocol.OpenTun(mtu):
                tun = self._effects().open_tun(mtu)
                return Answer(protocol.Opened(tun.name, tun.index), tun)
            case protocol.OpenSocket(family, kind):
                sock = self._host.open_socket(_FAMILIES[family], _KINDS[kind])
                return Answer(protocol.Done(), sock)
            case protocol.Apply():
                return Answer(self._effects().apply(request))
            case protocol.Detach():
                self._effects().detach()
            case protocol.SetFirewall():
                self._effects().set_firewall(request)
            case protocol.SignIn(seconds):
                self._effects().sign_in(seconds)
            case protocol.Report():
                return Answer(self._effects().report())
            case protocol.Close():
                return Answer(protocol.Closed(self._effects().close()), over=True)
            case protocol.Rest():
                failures = self._effects().close()
                rest = not failures and self._host.may_rest()
                return Answer(protocol.Closed(failures, rest), over=True, rest=rest)
        return Answer(protocol.Done())


def _failed(reason: str, what: str, hint: str) -> protocol.Failed:
    return protocol.Failed(reason, what[:_MAX_WORDS], hint[:_MAX_WORDS])
