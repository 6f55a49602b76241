"""The system bus, when it does not behave: always a BusError, and always in time."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jeepney import HeaderFields, new_method_call, new_method_return
from jeepney.wrappers import DBusAddress, new_error

from qvpn_core.net.dns.bus import Bus, BusError

CALL = ("org.example.Name", "/org/example", "org.example.Interface", "Method")
MADE = new_method_call(
    DBusAddress("/org/example", "org.example.Name", "org.example.Interface"), "M"
)


@contextmanager
def connected(seconds: float = 5.0) -> Iterator[tuple[Bus, socket.socket]]:
    """A connection that is logged in, and the bus's end of it."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield Bus(ours, time.monotonic() + seconds), theirs


def reply(body: tuple[object, ...], signature: str, serial: int = 1) -> bytes:
    made = new_method_return(MADE, signature, body)
    made.header.fields[HeaderFields.reply_serial] = serial
    return bytes(made.serialise(serial=77))


def test_an_answer_is_returned_and_what_comes_before_it_passed_over() -> None:
    with connected() as (bus, theirs):
        theirs.sendall(reply(("another's",), "s", serial=999) + reply(("it",), "s"))
        assert bus.call(*CALL) == ("it",)


def test_an_error_has_its_name_and_one_line() -> None:
    with connected() as (bus, theirs):
        made = new_error(MADE, "org.example.Error", "s", ("two\nlines " + "x" * 900,))
        made.header.fields[HeaderFields.reply_serial] = 1
        theirs.sendall(made.serialise(serial=77))
        with pytest.raises(BusError) as caught:
            bus.call(*CALL)
    assert caught.value.name == "org.example.Error"
    assert str(caught.value).startswith("two lines x")
    assert len(str(caught.value)) <= 200


def test_silence_ends_in_time_also_when_calls_add_up() -> None:
    with connected(0.2) as (bus, _):
        for _ in range(2):
            with pytest.raises(BusError, match="in time"):
                bus.call(*CALL)


def test_one_that_talks_without_end_is_not_listened_to_without_end() -> None:
    with connected() as (bus, theirs):
        theirs.settimeout(0.0)
        noise = reply(("x" * 60000,), "s", serial=999) * 40
        bus._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 22)
        sent = theirs.send(noise)
        if sent <= 1 << 20:
            pytest.skip("the kernel's buffers are too small to show it")
        with pytest.raises(BusError, match="more than anybody asked for"):
            bus.call(*CALL)


@given(st.binary(min_size=1, max_size=300), st.booleans())
def test_nonsense_is_an_error_and_nothing_else(noise: bytes, after_an_answer: bool) -> None:
    good = reply(("it", {"a": ("s", "b")}), "sa{sv}")
    data = noise if not after_an_answer else good[: len(good) - len(noise) % len(good)] + noise
    with connected() as (bus, theirs):
        theirs.sendall(data)
        theirs.shutdown(socket.SHUT_WR)
        try:
            bus.call(*CALL)
        except BusError:
            return
        assert data.startswith(good[:16])
