"""Which helper rests between two tunnels, and what becomes of the others."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any, cast

import pytest

from qvpn_core.client.resting import Resting
from qvpn_core.errors import QvpnError
from qvpn_core.helper.client import Helper
from qvpn_core.helper.errors import HelperLost, NetworkTaken, NotAllowed


class Double:
    """A helper that may rest or not, and comes back or not."""

    def __init__(self, *, rests: bool = True, failure: QvpnError | None = None) -> None:
        self.calls: list[str] = []
        self.lost: asyncio.Future[QvpnError] = asyncio.get_running_loop().create_future()
        self._rests = rests
        self._failure = failure

    async def rest(self) -> bool:
        self.calls.append("rest")
        return self._rests

    async def resume(self) -> None:
        self.calls.append("resume")
        if self._failure is not None:
            raise self._failure

    async def close(self) -> None:
        self.calls.append("close")

    async def hang_up(self) -> None:
        self.calls.append("hang up")


def played(story: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """A test that runs on a loop of its own."""

    @wraps(story)
    def test(*args: Any, **kwargs: Any) -> None:
        asyncio.run(story(*args, **kwargs))

    return test


def helper(**how: Any) -> tuple[Helper, list[str]]:
    double = Double(**how)
    return cast(Helper, double), double.calls


@played
async def test_one_rests_and_comes_back() -> None:
    resting = Resting()
    assert not resting.ready
    assert await resting.take() is None
    one, calls = helper()
    await resting.keep(one)
    assert resting.ready
    assert await resting.take() is one
    assert not resting.ready
    assert calls == ["rest", "resume"]


@played
async def test_one_that_may_not_rest_is_forgotten() -> None:
    resting = Resting()
    one, _ = helper(rests=False)
    await resting.keep(one)
    assert await resting.take() is None


@played
async def test_at_most_one_rests() -> None:
    resting = Resting()
    (one, _), (other, calls) = helper(), helper()
    await resting.keep(one)
    await resting.keep(other)
    assert calls == ["close"]
    assert await resting.take() is one


@pytest.mark.parametrize("failure", [HelperLost("it is gone"), NotAllowed("no longer")])
@played
async def test_one_that_does_not_come_back_is_replaced(failure: QvpnError) -> None:
    resting = Resting()
    one, _ = helper(failure=failure)
    await resting.keep(one)
    assert await resting.take() is None


@played
async def test_a_network_that_is_taken_is_no_reason_to_ask_the_user() -> None:
    resting = Resting()
    one, _ = helper(failure=NetworkTaken("another is active", "end it"))
    await resting.keep(one)
    with pytest.raises(NetworkTaken):
        await resting.take()
    assert not resting.ready


@played
async def test_one_that_ended_meanwhile_makes_room() -> None:
    resting = Resting()
    (one, calls), (other, _) = helper(), helper()
    await resting.keep(one)
    one.lost.set_result(HelperLost("it is gone"))
    assert not resting.ready
    await resting.keep(other)
    assert calls == ["rest", "hang up"]
    assert await resting.take() is other


@played
async def test_after_the_end_nothing_rests() -> None:
    resting = Resting()
    (one, calls), (other, others) = helper(), helper()
    await resting.keep(one)
    await resting.close()
    await resting.close()
    await resting.keep(other)
    assert calls == ["rest", "hang up"]
    assert others == ["close"]
    assert await resting.take() is None
