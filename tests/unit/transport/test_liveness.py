"""Silence is judged by questions without an answer, and never by the clock alone."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qvpn_core.transport.liveness import (
    DOUBT_AFTER,
    GIVE_UP_AFTER,
    INTERVAL,
    PATIENCE,
    Liveness,
    Step,
)


def fast() -> float:
    """The probe timeout of a near peer."""
    return 0.03


def slow() -> float:
    """That of one that is half a second away."""
    return 0.6


def silence(
    liveness: Liveness, since: float, probe_timeout: Callable[[], float]
) -> list[tuple[float, Step]]:
    """What happens, and when, while a peer stays silent for good."""
    steps: list[tuple[float, Step]] = []
    while not steps or steps[-1][1] is not Step.GIVE_UP:
        due = liveness.due(since, probe_timeout)
        assert due is not None
        steps.append((due - since, liveness.step(due, since, probe_timeout)))
        assert len(steps) <= GIVE_UP_AFTER + 1
    return steps


def test_a_peer_that_owes_nothing_is_left_alone() -> None:
    liveness = Liveness()
    assert liveness.due(None, fast) is None
    assert liveness.step(1e9, None, fast) is Step.WAIT


def test_a_dead_path_gets_questions_then_doubt_then_the_end() -> None:
    steps = [step for _, step in silence(Liveness(), 100.0, fast)]
    assert steps.count(Step.DOUBT) == 1
    assert steps.index(Step.DOUBT) == DOUBT_AFTER - 1
    assert steps[:-1].count(Step.ASK) == GIVE_UP_AFTER - 1
    assert steps[-1] is Step.GIVE_UP


def test_a_near_peer_is_given_up_in_ten_seconds_and_a_far_one_has_longer() -> None:
    near = silence(Liveness(), 100.0, fast)[-1][0]
    far = silence(Liveness(), 100.0, slow)[-1][0]
    assert near == pytest.approx(PATIENCE + GIVE_UP_AFTER * INTERVAL)
    assert 5.0 < near < 10.0, "an outage of five seconds is a pause"
    assert far > 6 * slow()


def test_any_answer_begins_a_new_count() -> None:
    liveness = Liveness()
    first = [step for _, step in silence(liveness, 100.0, fast)]
    assert [step for _, step in silence(liveness, 200.0, fast)] == first
    assert liveness.due(None, fast) is None
    assert [step for _, step in silence(liveness, 300.0, fast)] == first


def test_another_path_begins_a_new_count_although_the_debt_is_old() -> None:
    liveness = Liveness()
    silence(liveness, 100.0, fast)
    liveness.restart()
    asked = 0
    now = 110.0
    while liveness.step(now, 100.0, fast) is not Step.GIVE_UP:
        asked += 1
        now += INTERVAL
    assert asked >= GIVE_UP_AFTER


@given(st.floats(0.001, 3.0), st.lists(st.floats(0, 1e6), max_size=80))
def test_time_that_passes_unasked_proves_nothing(probe_timeout: float, pauses: list[float]) -> None:
    """A machine that was stopped or suspended asks as often as any other before it gives up."""
    liveness, now, asked = Liveness(), 50.0, 0
    for pause in pauses:
        now += pause
        step = liveness.step(now, 50.0, lambda: probe_timeout)
        asked += step in (Step.ASK, Step.DOUBT)
        if step is Step.GIVE_UP:
            assert asked == GIVE_UP_AFTER
            return
    assert asked <= GIVE_UP_AFTER


def test_a_fifth_of_all_packets_lost_over_half_a_second_is_alive() -> None:
    """Both ways, and so sparse that every loss begins a silence: an hour of questions."""
    dice = random.Random(7)
    liveness, round_trip, now = Liveness(), 0.5, 0.0
    gave_up = 0
    for _ in range(3600):
        now += 1.0
        since, answers = now, []
        if dice.random() < 0.64:
            answers.append(now + round_trip)
        while True:
            due = liveness.due(since, slow)
            assert due is not None
            if answers and min(answers) <= due:
                now = min(answers)
                break
            step = liveness.step(due, since, slow)
            if step is Step.GIVE_UP:
                gave_up += 1
                break
            if dice.random() < 0.64:
                answers.append(due + round_trip)
        liveness.due(None, slow)
    assert gave_up == 0
