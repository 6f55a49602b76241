"""Which request may come when; every one is answered once."""

from __future__ import annotations

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qvpn_core.errors import NetworkSetupFailed
from qvpn_core.helper import protocol
from qvpn_core.helper.protocol import Failed
from qvpn_core.helper.service import OpenedTun, Service

HELLO = protocol.encode(protocol.Hello(protocol.VERSION))


class Kernel:
    """Notes what it is asked for; fails when told to."""

    def __init__(
        self, *, broken: bool = False, may_rest: bool = True, failures: tuple[str, ...] = ()
    ) -> None:
        self.calls: list[str] = []
        self._may_rest = may_rest
        self._failures = failures
        self._broken = broken

    def _do(self, name: str) -> None:
        self.calls.append(name)
        if self._broken:
            raise NetworkSetupFailed("it does not work", "try\nagain" * 1000)

    def begin(self) -> None:
        self._do("begin")

    def open_tun(self, mtu: int) -> OpenedTun:
        self._do("open_tun")
        raise NotImplementedError

    def open_socket(self, family: int, kind: int) -> socket.socket:
        self._do("open_socket")
        raise NotImplementedError

    def may_rest(self) -> bool:
        self._do("may_rest")
        return self._may_rest

    def apply(self, request: protocol.Apply) -> protocol.Applied:
        self._do("apply")
        return protocol.Applied(None)

    def detach(self) -> None:
        self._do("detach")

    def set_firewall(self, request: protocol.SetFirewall) -> None:
        self._do("set_firewall")

    def sign_in(self, seconds: int) -> None:
        self._do("sign_in")

    def report(self) -> protocol.Reported:
        self._do("report")
        return protocol.Reported((), 0, 0, None, None, 0)

    def close(self) -> tuple[str, ...]:
        self._do("close")
        return self._failures


WORDS: list[protocol.Request] = [
    protocol.Detach(),
    protocol.SetFirewall(None),
    protocol.SignIn(60),
    protocol.Report(),
]


def service(kernel: Kernel) -> Service:
    return Service(kernel, lambda: kernel)


@given(st.lists(st.sampled_from(WORDS), max_size=6))
def test_after_the_greeting_anything_in_any_order(words: list[protocol.Request]) -> None:
    kernel = Kernel()
    served = service(kernel)
    assert served.handle(HELLO).reply == protocol.Welcome()
    for word in words:
        answer = served.handle(protocol.encode(word))
        assert not isinstance(answer.reply, Failed)
        assert not answer.over
    assert len(kernel.calls) == 1 + len(words)
    answer = served.handle(protocol.encode(protocol.Close()))
    assert answer.reply == protocol.Closed(())
    assert answer.over


@pytest.mark.parametrize("may", [True, False])
def test_a_rest_undoes_everything_and_is_over_where_it_is_not_allowed(may: bool) -> None:
    kernel = Kernel(may_rest=may)
    served = service(kernel)
    served.handle(HELLO)
    answer = served.handle(protocol.encode(protocol.Rest()))
    assert answer.reply == protocol.Closed((), may)
    assert (answer.over, answer.rest) == (True, may)
    assert kernel.calls[1] == "close"


def test_what_could_not_undo_everything_does_not_rest() -> None:
    served = service(Kernel(failures=("a route stays",)))
    served.handle(HELLO)
    answer = served.handle(protocol.encode(protocol.Rest()))
    assert answer.reply == protocol.Closed(("a route stays",), False)
    assert not answer.rest


@pytest.mark.parametrize(
    "word", [*WORDS, protocol.Close(), protocol.Rest(), protocol.OpenTun(1300)]
)
def test_before_the_greeting_nothing_happens(word: protocol.Request) -> None:
    kernel = Kernel()
    answer = service(kernel).handle(protocol.encode(word))
    assert isinstance(answer.reply, Failed)
    assert answer.over
    assert kernel.calls == []


def test_after_the_end_nothing_is_answered() -> None:
    served = service(Kernel())
    served.handle(b"")
    with pytest.raises(RuntimeError):
        served.handle(HELLO)


def test_a_session_that_cannot_begin_is_over() -> None:
    answer = service(Kernel(broken=True)).handle(HELLO)
    assert isinstance(answer.reply, Failed)
    assert answer.over


def test_a_failure_is_told_in_bounded_words_and_the_session_goes_on() -> None:
    kernel = Kernel()
    served = service(kernel)
    served.handle(HELLO)
    kernel._broken = True
    answer = served.handle(protocol.encode(protocol.Detach()))
    assert isinstance(answer.reply, Failed)
    assert (answer.reply.reason, answer.reply.what) == ("network-setup", "it does not work")
    assert len(answer.reply.hint) <= 1000
    assert not answer.over
    protocol.encode(answer.reply)
