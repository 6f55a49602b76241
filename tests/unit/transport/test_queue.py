"""The send queue against a list of (time, packet): what it holds, what it drops, what it says."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from qvpn_core.transport.queue import HELD_SECONDS, QUEUE_PACKETS, QUEUE_SECONDS, SendQueue

LIMIT = 8
SECONDS = 0.1


class QueueMachine(RuleBasedStateMachine):
    """Every operation in any order, beside the simplest thing that could be right."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = SendQueue(packets=LIMIT, seconds=SECONDS)
        self.model: list[tuple[float, bytes]] = []
        self.now = 50.0
        self.serial = 0
        self.waited = False

    @rule(seconds=st.sampled_from([0.0, 0.01, 0.04, 0.2, 6.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(count=st.integers(0, LIMIT + 3))
    def push(self, count: int) -> None:
        packets = [b"%d" % (self.serial + index) for index in range(count)]
        self.serial += count
        self.model += [(self.now, packet) for packet in packets]
        excess = max(0, len(self.model) - LIMIT)
        assert self.queue.push(packets, self.now) == excess
        del self.model[:excess]

    @rule(patient=st.booleans())
    def expire(self, patient: bool) -> None:
        seconds = HELD_SECONDS if patient or self.waited else SECONDS
        self.waited = patient
        kept = [entry for entry in self.model if entry[0] >= self.now - seconds]
        assert self.queue.expire(self.now, patient=patient) == len(self.model) - len(kept)
        self.model = kept

    @rule()
    def clear(self) -> None:
        self.queue.clear()
        self.model.clear()

    @rule(data=st.data())
    def take(self, data: st.DataObject) -> None:
        count = data.draw(st.integers(0, len(self.model)))
        taken = [self.queue.pending.popleft() for _ in range(count)]
        self.queue.taken(count)
        assert taken == [packet for _, packet in self.model[:count]]
        del self.model[:count]

    @invariant()
    def holds_what_the_model_holds(self) -> None:
        assert list(self.queue.pending) == [packet for _, packet in self.model]
        assert len(self.queue) == len(self.model) <= LIMIT

    @invariant()
    def its_bookkeeping_is_bounded_too(self) -> None:
        assert sum(count for _, count in self.queue._batches) == len(self.model)


QueueMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40)
TestQueue = QueueMachine.TestCase


def test_pushing_nothing_for_ever_keeps_nothing() -> None:
    queue = SendQueue()
    for step in range(1000):
        queue.push((), float(step))
    assert len(queue._batches) == 0


def test_the_limits_are_those_of_a_tunnel() -> None:
    queue = SendQueue()
    assert queue.push([b"x"] * (QUEUE_PACKETS + 1), 0.0) == 1
    assert queue.expire(QUEUE_SECONDS) == 0
    assert queue.expire(QUEUE_SECONDS * 1.01) == QUEUE_PACKETS
