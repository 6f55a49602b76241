"""Netlink answers are read whatever they hold, and sleep is told apart from clocks that are set."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qvpn_core.net import watch
from qvpn_core.net.suspend import NOTABLE, Suspension, clock_distance, resume_descriptor
from qvpn_core.net.watch import NetworkWatch, attributes, find_way, parse_answer

values = st.lists(st.tuples(st.integers(0, 0xFFFF), st.binary(max_size=40)), max_size=8)


@given(values)
def test_attributes_come_back_as_they_were_packed(pairs: list[tuple[int, bytes]]) -> None:
    assert list(attributes(b"".join(watch._attribute(*pair) for pair in pairs))) == pairs


@given(st.binary(max_size=120))
def test_any_bytes_end_and_raise_nothing(data: bytes) -> None:
    for _kind, value in attributes(data):
        assert value in data
    body = parse_answer(data, 26)
    assert body is None or body in data
    watch._read_route(data)
    watch._read_link(data)


def test_an_error_and_an_answer_to_somebody_else_are_none() -> None:
    def message(kind: int, sequence: int, body: bytes = b"body") -> bytes:
        return struct.pack("=IHHII", 16 + len(body), kind, 0, sequence, 0) + body

    assert parse_answer(message(24, 26), 26) == b"body"
    assert parse_answer(message(24, 27), 26) is None
    assert parse_answer(message(2, 26), 26) is None
    assert parse_answer(message(24, 26)[:-1], 26) is None


def test_loopback_is_always_a_way() -> None:
    for own in ("127.0.0.1", "::1"):
        way = find_way(own)
        if own == "::1" and not os.path.exists("/proc/net/if_inet6"):
            continue
        assert way is not None
        assert way.interface == socket.if_nametoindex("lo")


def test_a_name_is_no_address() -> None:
    with pytest.raises(ValueError, match="vpn"):
        find_way("vpn.example.org")


def test_in_a_sandbox_without_netlink_nothing_is_known_and_nothing_is_forbidden(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object) -> socket.socket:
        raise PermissionError

    with monkeypatch.context() as patch:
        patch.setattr(watch.socket, "socket", refuse)
        assert find_way("192.0.2.1") == watch.UNKNOWN
    monkeypatch.setattr(watch, "_subscribe", refuse)

    async def main() -> None:
        following = NetworkWatch(lambda slept: None)
        following.start()
        following.close()

    asyncio.run(main())


# Sleep


def test_sleep_is_told_once_and_added_up() -> None:
    distance = [100.0]
    suspension = Suspension(lambda: distance[0])
    assert suspension.slept() == 0.0
    distance[0] += 3600.0
    assert suspension.slept() == 3600.0
    assert suspension.slept() == 0.0


def test_a_moment_is_not_sleep_until_moments_add_up() -> None:
    distance = [100.0]
    suspension = Suspension(lambda: distance[0])
    for _ in range(4):
        distance[0] += NOTABLE / 4
        slept = suspension.slept()
    assert slept == NOTABLE


def test_this_machine_has_not_slept_meanwhile() -> None:
    assert Suspension().slept() == 0.0
    # Two clocks, read one behind the other: of some looks, one is not interrupted between them.
    assert max(clock_distance() for _ in range(10)) > -0.001


def test_the_descriptor_of_resume_is_quiet_until_then() -> None:
    """That a set clock or a resume wakes it cannot be tried without doing that to this machine."""
    descriptor = resume_descriptor()
    assert descriptor is not None
    try:
        with pytest.raises(BlockingIOError):
            os.read(descriptor, 8)
        assert not os.get_inheritable(descriptor)
    finally:
        os.close(descriptor)


def test_a_resume_is_told_with_the_time_slept_and_the_next_one_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    distance = [0.0]
    told: list[float] = []
    descriptors: list[tuple[int, int]] = []

    def pretend() -> int:
        descriptors.append(os.pipe())
        return descriptors[-1][0]

    monkeypatch.setattr(watch, "Suspension", lambda: Suspension(lambda: distance[0]))
    monkeypatch.setattr(watch, "resume_descriptor", pretend)
    monkeypatch.setattr(watch, "COALESCE", 0.001)

    async def main() -> None:
        changed = asyncio.Event()

        def on_news(slept: float) -> None:
            told.append(slept)
            changed.set()

        following = NetworkWatch(on_news)
        following.start()
        for asleep in (500.0, 0.0, 20.0):  # the second time a clock was set and nobody slept
            changed.clear()
            distance[0] += asleep
            os.write(descriptors[-1][1], b"x")
            await asyncio.wait_for(changed.wait(), 10)
        following.close()

    asyncio.run(main())
    assert [slept for slept in told if slept] == [500.0, 20.0]
    for reader, writer in descriptors:
        with contextlib.suppress(OSError):
            os.close(reader)
        os.close(writer)
