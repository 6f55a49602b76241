"""What a session does when the network around it changes. The kernel and the tunnel are scripts.

Real ones are in tests/integration/test_moving.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import wraps
from ipaddress import ip_address
from typing import Any, cast

import pytest

from qvpn_core.client.moving import LeftBehind, Mover, Surroundings, first_to_end
from qvpn_core.errors import GatewayUnreachable, NoNetwork, TunnelLost
from qvpn_core.net.watch import Way
from qvpn_core.transport.interface import HttpTunnel

GATEWAY4, GATEWAY6 = "203.0.113.130", "2001:db8:2::2"
WIFI = Way(2, ip_address("192.168.1.5"), ip_address("192.168.1.1"), 1)
WIFI_AGAIN = Way(2, ip_address("192.168.1.5"), ip_address("192.168.1.1"), 2)
CABLE = Way(3, ip_address("10.0.0.9"), ip_address("10.0.0.1"), 1)
OVER6 = Way(2, ip_address("2001:db8::5"), ip_address("fe80::1"), 1)


class Here(Surroundings):
    """Surroundings whose ways a test chooses."""

    def __init__(self, ways: dict[str, Way | None]) -> None:
        super().__init__(ways.get)
        self.table = ways
        self.addresses = tuple(ways)

    async def change(self, slept: float = 0.0, **_: object) -> None:
        """Tell, and let whoever listens do all it can."""
        self.news(slept)
        for _round in range(10):
            await asyncio.sleep(0)


class ScriptedTunnel:
    """Remembers what it is told; `answer` is what the next `rebind` returns or raises."""

    peer = (GATEWAY4, 443)

    def __init__(self) -> None:
        self.told: list[str | float] = []
        self.answer: bool | Exception = True

    def hold(self) -> None:
        self.told.append("hold")

    async def rebind(self, slept: float = 0.0) -> bool:
        self.told.append(slept)
        await asyncio.sleep(0)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


Story = Callable[[Here, Mover, ScriptedTunnel, "asyncio.Task[Any]"], Awaitable[None]]


def following(ways: dict[str, Way | None]) -> Callable[[Story], Callable[[], None]]:
    """Run a story beside a session that is connected and follows."""

    def decorate(story: Story) -> Callable[[], None]:
        @wraps(story)
        def run() -> None:
            async def main() -> None:
                here, tunnel = Here(ways), ScriptedTunnel()
                mover = Mover(here)

                async def dial() -> HttpTunnel:
                    return cast(HttpTunnel, tunnel)

                assert await mover.connect(dial) is cast(HttpTunnel, tunnel)
                task = asyncio.create_task(mover.follow())
                await here.change()
                assert tunnel.told == [], "nothing has changed yet"
                await asyncio.wait_for(story(here, mover, tunnel, task), 10)
                mover.close()
                task.cancel()
                await asyncio.wait([task])
                here.news()  # nobody listens any more

            asyncio.run(main())

        del run.__wrapped__  # type: ignore[attr-defined]  # pytest must not see its arguments
        return run

    return decorate


@following({GATEWAY4: WIFI})
async def test_the_tunnel_that_took_the_place_of_another_is_followed(
    here: Here, mover: Mover, tunnel: ScriptedTunnel, task: asyncio.Task[Any]
) -> None:
    other = ScriptedTunnel()
    mover.switch(cast(HttpTunnel, other))
    await here.change()
    assert (tunnel.told, other.told) == ([], []), "it took the way that there is"
    here.table[GATEWAY4] = CABLE
    await here.change()
    assert (tunnel.told, other.told) == ([], [0.0])
    assert not task.done()


@following({GATEWAY4: WIFI})
async def test_another_way_is_followed_and_the_same_way_is_not(
    here: Here, mover: Mover, tunnel: ScriptedTunnel, task: asyncio.Task[Any]
) -> None:
    here.table[GATEWAY4] = CABLE
    await here.change()
    await here.change()
    assert tunnel.told == [0.0]
    here.table[GATEWAY4] = WIFI
    await here.change()
    assert tunnel.told == [0.0, 0.0]
    assert not task.done()


@following({GATEWAY4: WIFI})
async def test_equal_addresses_after_a_pause_are_another_network(
    here: Here, mover: Mover, tunnel: ScriptedTunnel, task: asyncio.Task[Any]
) -> None:
    here.table[GATEWAY4] = WIFI_AGAIN
    await here.change()
    assert tunnel.told == [0.0]


@following({GATEWAY4: WIFI})
async def test_without_a_network_the_session_waits_and_says_so(
    here: Here, mover: Mover, tunnel: ScriptedTunnel, task: asyncio.Task[Any]
) -> None:
    here.table[GATEWAY4] = None
    await here.change()
    await here.change()
    assert tunnel.told == ["hold"]
    assert isinstance(mover.trouble, NoNetwork)
    here.table[GATEWAY4] = WIFI
    await here.change()
    assert tunnel.told == ["hold", 0.0], "also where everything is as before"
    assert mover.trouble is None
    assert not task.done()


@following({GATEWAY4: WIFI})
async def test_a_way_that_goes_while_it_is_taken_is_awaited(
    here: Here, mover: Mover, tunnel: ScriptedTunnel, task: asyncio.Task[Any]
) -> None:
    here.table[GATEWAY4], tunnel.answer = CABLE, GatewayUnreachable("no route")
    await here.change()
    assert tunnel.told == [0.0, "hold"]
    tunnel.answer = True
    await here.change()
    assert tunnel.told == [0.0, "hold", 0.0]
    assert mover.trouble is None


@following({GATEWAY4: WIFI})
async def test_sleep_is_reason_enough_to_try_another_socket(
    here: Here, mover: Mover, tunnel: ScriptedTunnel, task: asyncio.Task[Any]
) -> None:
    await here.change(7.0)
    assert tunnel.told == [7.0]


@following({GATEWAY4: WIFI})
async def test_sleep_that_is_told_in_parts_is_added_up(
    here: Here, mover: Mover, tunnel: ScriptedTunnel, task: asyncio.Task[Any]
) -> None:
    here.news(3.0)
    await here.change(4.0)
    assert tunnel.told == [7.0]


@pytest.mark.parametrize("slept", [0.0, 3600.0])
def test_a_session_that_cannot_come_along_ends_with_its_reason(slept: float) -> None:
    @following({GATEWAY4: WIFI})
    async def story(
        here: Here, mover: Mover, tunnel: ScriptedTunnel, task: asyncio.Task[Any]
    ) -> None:
        here.table[GATEWAY4], tunnel.answer = CABLE, False
        await here.change(slept)
        with pytest.raises(LeftBehind, match="slept for 3600" if slept else "changed"):
            await task

    story()


@following({GATEWAY4: WIFI, GATEWAY6: None})
async def test_where_only_another_address_can_be_reached_another_session_must_go_there(
    here: Here, mover: Mover, tunnel: ScriptedTunnel, task: asyncio.Task[Any]
) -> None:
    """A connection does not change the server's address (RFC 9000 section 9)."""
    here.table.update({GATEWAY4: None, GATEWAY6: OVER6})
    await here.change()
    with pytest.raises(LeftBehind):
        await task
    assert tunnel.told == []


# Connecting


def test_nothing_is_tried_without_a_network() -> None:
    async def main() -> None:
        async def dial() -> HttpTunnel:
            raise AssertionError("dialled")

        mover = Mover(Here({GATEWAY4: None, GATEWAY6: None}))
        with pytest.raises(NoNetwork) as raised:
            await mover.connect(dial)
        assert raised.value.transient

    asyncio.run(main())


def test_an_attempt_is_begun_again_where_the_network_changes_under_it() -> None:
    async def main() -> None:
        here = Here({GATEWAY4: WIFI})
        mover, tunnel = Mover(here), ScriptedTunnel()
        attempts: list[Way | None] = []
        given_up = 0

        async def dial() -> HttpTunnel:
            nonlocal given_up
            attempts.append(here.table[GATEWAY4])
            if len(attempts) < 3:
                try:
                    await asyncio.Event().wait()
                finally:
                    given_up += 1
            return cast(HttpTunnel, tunnel)

        connecting = asyncio.create_task(mover.connect(dial))
        await here.change()
        await here.change()  # news that changes nothing
        assert attempts == [WIFI]
        here.table[GATEWAY4] = CABLE
        await here.change()
        await here.change(60.0)
        await connecting
        assert attempts == [WIFI, CABLE, CABLE]
        assert given_up == 2

    asyncio.run(main())


def test_what_dialling_raises_is_raised_and_cancelling_ends_it() -> None:
    async def main() -> None:
        mover = Mover(Here({GATEWAY4: WIFI}))
        ended = asyncio.Event()

        async def fail() -> HttpTunnel:
            raise GatewayUnreachable("no answer")

        async def hang() -> HttpTunnel:
            try:
                return await asyncio.Event().wait()  # type: ignore[return-value]
            finally:
                ended.set()

        with pytest.raises(GatewayUnreachable):
            await mover.connect(fail)
        connecting = asyncio.create_task(mover.connect(hang))
        await asyncio.sleep(0.01)
        connecting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await connecting
        assert ended.is_set()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())


def test_the_first_to_end_ends_the_others() -> None:
    async def main() -> None:
        ended = asyncio.Event()

        async def for_ever() -> Any:
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()

        async def fail() -> Any:
            await asyncio.sleep(0.01)
            raise TunnelLost("gone")

        with pytest.raises(TunnelLost):
            await first_to_end(for_ever(), fail())
        assert ended.is_set()

    asyncio.run(main())
