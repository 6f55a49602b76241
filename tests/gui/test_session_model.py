"""The model shows what the agent says, whoever started it, and what became of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from msgspec.structs import replace

from qvpn_core.client import control, instance
from qvpn_core.client.states import State
from qvpn_core.client.status import Status
from qvpn_core.errors import GatewayUnreachable
from qvpn_gui import session_model
from qvpn_gui.session_model import SessionModel
from tests.gui.conftest import Play, until
from tests.gui.samples import STATUSES

UP = STATUSES["connected"]
DOWN = Status()


class Agent:
    """The control socket of an agent that says what a test wants it to say."""

    def __init__(self) -> None:
        self.status = UP
        self.over = False
        self._news = asyncio.Event()

    def say(self, status: Status) -> None:
        self.status = status
        self._news.set()

    async def watch(self) -> AsyncGenerator[Status, None]:
        while True:
            self._news.clear()
            yield self.status
            if self.status.state in (State.DISCONNECTED, State.FAILED):
                return
            await self._news.wait()

    async def answer(self, _request: control.Question) -> control.Reply:
        return control.Done()


@asynccontextmanager
async def followed(model: SessionModel) -> AsyncIterator[None]:
    task = asyncio.create_task(model.run())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def reached(model: SessionModel, state: State) -> None:
    await until(lambda: model.state is state)


def test_an_agent_that_comes_later_is_found_and_its_end_is_seen(
    model: SessionModel, play: Play
) -> None:
    async def story() -> None:
        async with followed(model):
            await asyncio.sleep(0.05)
            assert model.status == DOWN
            for _ in range(2):
                agent = Agent()
                async with control.serve(agent.answer, agent.watch):
                    await reached(model, State.CONNECTED)
                    assert model.status == UP
                    agent.say(replace(UP, state=State.DISCONNECTING))
                    await reached(model, State.DISCONNECTING)
                    agent.say(DOWN)
                    await reached(model, State.DISCONNECTED)

    play(story())


def test_an_agent_that_runs_already_is_seen_at_once(model: SessionModel, play: Play) -> None:
    async def story() -> None:
        agent = Agent()
        async with control.serve(agent.answer, agent.watch), followed(model):
            await reached(model, State.CONNECTED)
            agent.say(DOWN)
            await reached(model, State.DISCONNECTED)

    play(story())


def test_an_agent_that_dies_is_told_as_a_failure(model: SessionModel, play: Play) -> None:
    async def story() -> None:
        async with followed(model):
            agent = Agent()
            async with control.serve(agent.answer, agent.watch):
                await reached(model, State.CONNECTED)
            await reached(model, State.FAILED)
            assert model.status.reason == "agent-gone"
            assert model.status.profile == "work"

    play(story())


def test_the_failure_of_an_agent_that_is_gone_is_shown_until_it_is_noticed(
    model: SessionModel, play: Play
) -> None:
    failed = STATUSES["failed"]
    instance.keep_failure(failed)

    async def story() -> None:
        async with followed(model):
            await reached(model, State.FAILED)
            assert model.status == failed
            model.forget_failure()
            assert model.status == DOWN
            assert instance.last_failure() is None

    play(story())


def test_what_is_about_to_happen_is_shown_at_once_and_the_agent_knows_better(
    model: SessionModel, play: Play
) -> None:
    async def story() -> None:
        async with followed(model):
            model.expect("work")
            assert model.state is State.CONNECTING
            agent = Agent()
            async with control.serve(agent.answer, agent.watch):
                await reached(model, State.CONNECTED)
                model.expect(None)
                assert model.state is State.CONNECTED
                agent.say(DOWN)
                await reached(model, State.DISCONNECTED)
            model.expect("work")
            model.expect(None)
            assert model.state is State.DISCONNECTED

    play(story())


def test_what_could_not_even_be_tried_is_a_failure_too(model: SessionModel) -> None:
    model.expect("work")
    model.fail("work", GatewayUnreachable("no answer", "try later"))
    assert (model.state, model.status.reason) == (State.FAILED, "unreachable")
    assert model.status.error == "no answer: try later"


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(session_model.time, "monotonic", lambda: self.now)


def test_rates_come_from_counters_and_time(
    model: SessionModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    model.show(UP)
    clock.now += 0.1
    model.show(replace(UP, rx_bytes=UP.rx_bytes + 1))  # too soon to say
    assert not model.samples
    clock.now += 1.9
    model.show(replace(UP, rx_bytes=UP.rx_bytes + 1_000_000, tx_bytes=UP.tx_bytes + 2000))
    (sample,) = model.samples
    assert (sample.received, sample.sent) == (4_000_000, 8000)


def test_a_new_session_starts_counting_and_the_end_forgets(
    model: SessionModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    for counted in (5000, 6000, 10, 20):
        model.show(replace(UP, tx_packets=counted, tx_bytes=counted * 100, rx_bytes=0))
        clock.now += 1
    assert [sample.sent for sample in model.samples] == [800_000, 8000]
    model.show(STATUSES["reconnecting"])
    assert len(model.samples) == 2
    model.show(DOWN)
    assert not model.samples


def test_the_loss_is_a_share_of_what_was_sent_of_late(
    model: SessionModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)

    def pass_on(**changes: Any) -> None:
        model.show(replace(model.status, **changes))
        clock.now += 1

    pass_on(**{name: getattr(UP, name) for name in UP.__struct_fields__})
    pass_on(tx_packets=UP.tx_packets + 40)
    assert model.loss is None, "too few packets to speak of a share"
    pass_on(tx_packets=UP.tx_packets + 1000, lost_packets=UP.lost_packets + 10)
    assert model.loss == pytest.approx(0.01)
    for number in range(1, 62):
        pass_on(tx_packets=UP.tx_packets + 1000 + 10 * number)
    assert model.loss == 0
