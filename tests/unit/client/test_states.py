"""The tunnel's states: the table is complete, honest, and patient where it should be."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qvpn_core.client.states import (
    FIREWALL,
    MAX_DELAY,
    QUICK_ATTEMPTS,
    STABLE_AFTER,
    TRANSITIONS,
    Action,
    Event,
    FirewallPolicy,
    ImpossibleTransition,
    Machine,
    State,
    retry_delay,
)

#: The shortest way into every state, from a new machine.
WAYS: dict[State, list[Event]] = {
    State.DISCONNECTED: [],
    State.CONNECTING: [Event.CONNECT],
    State.CONNECTED: [Event.CONNECT, Event.SESSION_UP],
    State.RECONNECTING: [Event.CONNECT, Event.SESSION_UP, Event.SESSION_LOST],
    State.DISCONNECTING: [Event.CONNECT, Event.DISCONNECT],
    State.BLOCKED: [Event.CONNECT, Event.SESSION_REJECTED],
    State.FAILED: [Event.CONNECT, Event.SESSION_REJECTED],
}


def no_jitter() -> float:
    return 0.0


def machine_in(state: State) -> Machine:
    machine = Machine(no_jitter, kill_switch="on" if state is State.BLOCKED else "off")
    for event in WAYS[state]:
        machine.handle(event, 0.0)
    assert machine.state is state
    return machine


@pytest.mark.parametrize(("state", "event"), list(product(State, Event)))
def test_every_event_in_every_state_has_a_row_or_names_itself_as_impossible(
    state: State, event: Event
) -> None:
    machine = machine_in(state)
    if (state, event) in TRANSITIONS:
        after, actions = TRANSITIONS[state, event]
        if state is State.BLOCKED and after is State.FAILED:
            after = State.BLOCKED
        transition = machine.handle(event, 1.0)
        assert (transition.before, transition.after, transition.actions) == (state, after, actions)
        assert machine.state is after
    else:
        with pytest.raises(ImpossibleTransition, match=f"{event.value}.*{state.value}"):
            machine.handle(event, 1.0)
        assert machine.state is state


def test_every_state_can_be_reached_and_left() -> None:
    assert set(WAYS) == set(State)
    for state in State:
        assert any(
            before is state and after is not state
            for (before, _), (after, _) in TRANSITIONS.items()
        )


@pytest.mark.parametrize("state", State)
def test_the_user_can_always_end_it_and_a_network_can_always_come_up(state: State) -> None:
    for event in (Event.DISCONNECT, Event.NETWORK_UP):
        machine_in(state).handle(event, 1.0)


@pytest.mark.parametrize("event", [Event.SESSION_LOST, Event.SESSION_REJECTED])
def test_a_first_attempt_that_fails_is_not_repeated(event: Event) -> None:
    transition = machine_in(State.CONNECTING).handle(event, 1.0)
    assert transition.after is State.FAILED
    assert transition.actions == (Action.RELEASE,)


def test_a_lost_tunnel_is_tried_again_until_it_is_back() -> None:
    machine = machine_in(State.RECONNECTING)
    for _ in range(3):
        assert machine.retry_at is not None
        assert machine.handle(Event.RETRY_DUE, machine.retry_at).actions == (Action.START,)
        assert machine.retry_at is None, "no timer runs beside an attempt"
        machine.handle(Event.SESSION_LOST, 1.0)
    machine.handle(Event.RETRY_DUE, 9.0)
    assert machine.handle(Event.SESSION_UP, 9.5).after is State.CONNECTED


def test_a_rejected_credential_ends_a_reconnection_and_releases_the_network() -> None:
    transition = machine_in(State.RECONNECTING).handle(Event.SESSION_REJECTED, 1.0)
    assert transition.after is State.FAILED
    assert transition.actions == (Action.RELEASE,)


def test_a_network_that_comes_up_ends_the_pause_at_once() -> None:
    machine = machine_in(State.RECONNECTING)
    assert machine.handle(Event.NETWORK_UP, 0.1).actions == (Action.START,)
    assert machine.retry_at is None


def test_another_network_starts_the_back_off_afresh() -> None:
    """What failed on the train says nothing about the office."""
    machine = machine_in(State.RECONNECTING)
    for _ in range(QUICK_ATTEMPTS + 8):
        machine.handle(Event.RETRY_DUE, 0.0)
        machine.handle(Event.SESSION_LOST, 0.0)
    assert machine.retry_at == MAX_DELAY
    machine.handle(Event.NETWORK_UP, 0.0)
    machine.handle(Event.SESSION_LOST, 0.0)
    assert machine.retry_at == 0.5


def test_only_the_first_attempts_after_a_loss_are_hurried() -> None:
    machine = machine_in(State.CONNECTING)
    assert not machine.hurried, "who has just asked wants to know what is wrong"
    machine = machine_in(State.RECONNECTING)
    hurried = []
    for _ in range(QUICK_ATTEMPTS + 2):
        machine.handle(Event.RETRY_DUE, 0.0)
        hurried.append(machine.hurried)
        machine.handle(Event.SESSION_LOST, 0.0)
    assert hurried == sorted(hurried, reverse=True)
    assert QUICK_ATTEMPTS - 1 <= sum(hurried) <= QUICK_ATTEMPTS


def test_a_pause_can_be_shortened_and_not_prolonged() -> None:
    machine = machine_in(State.RECONNECTING)
    machine.retry_within(60.0, 0.0)
    assert machine.retry_at == 0.5
    machine.retry_within(0.2, 0.0)
    assert machine.retry_at == 0.2
    machine.handle(Event.RETRY_DUE, 0.2)
    machine.retry_within(0.1, 0.2)
    assert machine.retry_at is None, "no timer runs beside an attempt"


def test_disconnecting_ends_only_when_nothing_is_left_whatever_the_session_still_says() -> None:
    machine = machine_in(State.DISCONNECTING)
    for late in (Event.SESSION_UP, Event.SESSION_LOST, Event.SESSION_REJECTED, Event.DISCONNECT):
        assert machine.handle(late, 1.0).after is State.DISCONNECTING
    assert machine.handle(Event.CLOSED, 1.0).after is State.DISCONNECTED


def test_with_a_kill_switch_giving_up_blocks_and_the_user_releases_it() -> None:
    machine = machine_in(State.BLOCKED)
    assert machine.firewall is FirewallPolicy.BLOCK
    assert machine.handle(Event.DISCONNECT, 1.0).after is State.DISCONNECTED
    assert machine.firewall is FirewallPolicy.OPEN


def test_every_state_names_its_firewall_policy_and_only_resting_states_are_open() -> None:
    assert set(FIREWALL) == set(State)
    open_states = {state for state in State if FIREWALL[state] is FirewallPolicy.OPEN}
    assert open_states == {State.DISCONNECTED, State.FAILED}


def test_a_kill_switch_for_always_is_open_in_no_state() -> None:
    machine = Machine(no_jitter, kill_switch="always")
    assert machine.firewall is FirewallPolicy.BLOCK
    machine.handle(Event.CONNECT, 0.0)
    assert machine.handle(Event.SESSION_LOST, 0.0).after is State.BLOCKED
    machine.handle(Event.DISCONNECT, 0.0)
    assert machine.state is State.DISCONNECTED
    assert machine.firewall is FirewallPolicy.BLOCK


@pytest.mark.parametrize("state", [state for state in State if state is not State.BLOCKED])
def test_without_a_kill_switch_the_firewall_stays_open(state: State) -> None:
    assert machine_in(state).firewall is FirewallPolicy.OPEN


def test_pauses_are_short_at_first_and_then_double_to_a_minute() -> None:
    """A gateway takes some seconds to restart; who is away for longer is not asked that often."""
    delays = [retry_delay(attempt, no_jitter) for attempt in range(QUICK_ATTEMPTS + 9)]
    assert delays[:QUICK_ATTEMPTS] == [0.5] * QUICK_ATTEMPTS
    assert delays[QUICK_ATTEMPTS:] == [0.5, 1, 2, 4, 8, 16, 32, 60, 60]


@given(st.integers(0, 10**9), st.floats(0, 1, exclude_max=True))
def test_jitter_takes_at_most_half_and_never_adds(attempt: int, random: float) -> None:
    most = retry_delay(attempt, no_jitter)
    assert most / 2 <= retry_delay(attempt, lambda: random) <= most <= MAX_DELAY


def pause_after_living(seconds: float, losses_before: int) -> float:
    machine = machine_in(State.RECONNECTING)
    for _ in range(losses_before):
        machine.handle(Event.RETRY_DUE, 0.0)
        machine.handle(Event.SESSION_LOST, 0.0)
    machine.handle(Event.RETRY_DUE, 0.0)
    machine.handle(Event.SESSION_UP, 100.0)
    machine.handle(Event.SESSION_LOST, 100.0 + seconds)
    assert machine.retry_at is not None
    return machine.retry_at - (100.0 + seconds)


def test_a_session_that_lived_long_enough_starts_the_back_off_afresh() -> None:
    assert pause_after_living(STABLE_AFTER, losses_before=QUICK_ATTEMPTS + 4) == 0.5


def test_a_gateway_that_accepts_and_then_drops_us_is_not_hammered() -> None:
    assert pause_after_living(1.0, losses_before=QUICK_ATTEMPTS + 4) == 16.0
