"""The client's tunnel state machine, as a table.

Sans-IO: commands and happenings go in as :class:`Event`, :class:`Action` values come out, and the
time is an argument. It opens nothing, waits for nothing and knows no error texts; `tunnel.py` does
what it says. A transition that is not in the table does not exist: asking for it raises
:class:`ImpossibleTransition`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Literal


class State(StrEnum):
    """Where the tunnel is."""

    DISCONNECTED = "disconnected"
    #: The first attempt since the user asked.
    CONNECTING = "connecting"
    CONNECTED = "connected"
    #: An established tunnel was lost; attempts and pauses alternate. Routes stay in place, so that
    #: what belongs into the tunnel does not leave beside it meanwhile.
    RECONNECTING = "reconnecting"
    #: Telling the gateway, then undoing addresses, routes and rules.
    DISCONNECTING = "disconnecting"
    #: Given up with the kill switch on: nothing gets out until the user decides.
    BLOCKED = "blocked"
    #: Given up; the network is as it was before.
    FAILED = "failed"


class Event(StrEnum):
    """What can happen: commands of the user, news of the session, the timer and the network."""

    CONNECT = "connect"
    DISCONNECT = "disconnect"
    #: The session is established: packets flow.
    SESSION_UP = "session-up"
    #: The session or the attempt ended by an error that may pass.
    SESSION_LOST = "session-lost"
    #: The session or the attempt ended by an error that trying again cannot mend.
    SESSION_REJECTED = "session-rejected"
    #: The answer to Action.CLOSE: nothing of the session is left.
    CLOSED = "closed"
    #: `Machine.retry_at` has come.
    RETRY_DUE = "retry-due"
    #: A usable network appeared or changed: trying again now may work.
    NETWORK_UP = "network-up"


class Action(StrEnum):
    """What the owner of the machine must do, in the order given."""

    #: Start an attempt, unless one is running.
    START = "start"
    #: End the session in order, release the network, then report Event.CLOSED.
    CLOSE = "close"
    #: The session is over; release the addresses, routes and the TUN that it left in place.
    RELEASE = "release"


class FirewallPolicy(StrEnum):
    """What leaves this machine beside the tunnel (:mod:`qvpn_core.net.killswitch`)."""

    #: Whatever goes that way: no rules of ours, or those of another session's ``always``.
    OPEN = "open"
    #: Nothing that the user wants in the tunnel; the tunnel itself and what the user excludes, yes.
    BLOCK = "block"


#: The user's choice: never; from connecting to disconnecting; until it is unlocked.
KillSwitchMode = Literal["off", "on", "always"]

#: What the firewall does in each state while the kill switch is ``on``. The rules of BLOCK are the
#: same in all these states, so there is no moment between two sets of rules.
FIREWALL: Mapping[State, FirewallPolicy] = MappingProxyType(
    {
        State.DISCONNECTED: FirewallPolicy.OPEN,
        State.CONNECTING: FirewallPolicy.BLOCK,
        State.CONNECTED: FirewallPolicy.BLOCK,
        State.RECONNECTING: FirewallPolicy.BLOCK,
        State.DISCONNECTING: FirewallPolicy.BLOCK,
        State.BLOCKED: FirewallPolicy.BLOCK,
        State.FAILED: FirewallPolicy.OPEN,
    }
)

Row = tuple[State, tuple[Action, ...]]

#: (state, event) -> (next state, actions). Where it says FAILED, a kill switch makes it BLOCKED.
TRANSITIONS: Mapping[tuple[State, Event], Row] = MappingProxyType(
    {
        (State.DISCONNECTED, Event.CONNECT): (State.CONNECTING, (Action.START,)),
        (State.DISCONNECTED, Event.DISCONNECT): (State.DISCONNECTED, ()),
        (State.DISCONNECTED, Event.NETWORK_UP): (State.DISCONNECTED, ()),
        #
        (State.CONNECTING, Event.SESSION_UP): (State.CONNECTED, ()),
        # A first attempt that fails is told to the user, who is there; it is not repeated for ever.
        (State.CONNECTING, Event.SESSION_LOST): (State.FAILED, (Action.RELEASE,)),
        (State.CONNECTING, Event.SESSION_REJECTED): (State.FAILED, (Action.RELEASE,)),
        (State.CONNECTING, Event.DISCONNECT): (State.DISCONNECTING, (Action.CLOSE,)),
        (State.CONNECTING, Event.NETWORK_UP): (State.CONNECTING, ()),
        #
        (State.CONNECTED, Event.SESSION_LOST): (State.RECONNECTING, ()),
        (State.CONNECTED, Event.SESSION_REJECTED): (State.FAILED, (Action.RELEASE,)),
        (State.CONNECTED, Event.DISCONNECT): (State.DISCONNECTING, (Action.CLOSE,)),
        (State.CONNECTED, Event.NETWORK_UP): (State.CONNECTED, ()),
        #
        (State.RECONNECTING, Event.RETRY_DUE): (State.RECONNECTING, (Action.START,)),
        (State.RECONNECTING, Event.NETWORK_UP): (State.RECONNECTING, (Action.START,)),
        (State.RECONNECTING, Event.SESSION_UP): (State.CONNECTED, ()),
        (State.RECONNECTING, Event.SESSION_LOST): (State.RECONNECTING, ()),
        (State.RECONNECTING, Event.SESSION_REJECTED): (State.FAILED, (Action.RELEASE,)),
        (State.RECONNECTING, Event.DISCONNECT): (State.DISCONNECTING, (Action.CLOSE,)),
        #
        (State.DISCONNECTING, Event.CLOSED): (State.DISCONNECTED, ()),
        # The session may come up or end by itself in the moment in which we end it.
        (State.DISCONNECTING, Event.SESSION_UP): (State.DISCONNECTING, ()),
        (State.DISCONNECTING, Event.SESSION_LOST): (State.DISCONNECTING, ()),
        (State.DISCONNECTING, Event.SESSION_REJECTED): (State.DISCONNECTING, ()),
        (State.DISCONNECTING, Event.DISCONNECT): (State.DISCONNECTING, ()),
        (State.DISCONNECTING, Event.NETWORK_UP): (State.DISCONNECTING, ()),
        #
        (State.BLOCKED, Event.CONNECT): (State.CONNECTING, (Action.START,)),
        (State.BLOCKED, Event.DISCONNECT): (State.DISCONNECTED, (Action.RELEASE,)),
        (State.BLOCKED, Event.NETWORK_UP): (State.BLOCKED, ()),
        #
        (State.FAILED, Event.CONNECT): (State.CONNECTING, (Action.START,)),
        (State.FAILED, Event.DISCONNECT): (State.DISCONNECTED, ()),
        (State.FAILED, Event.NETWORK_UP): (State.FAILED, ()),
    }
)


class ImpossibleTransition(Exception):
    """A defect: an event in a state that has no row for it."""

    def __init__(self, state: State, event: Event) -> None:
        super().__init__(f"event {event!s} is impossible in state {state!s}")
        self.state = state
        self.event = event


FIRST_DELAY = 0.5
MAX_DELAY = 60.0
#: So many attempts come after the first delay each: a gateway that restarts is back in seconds.
QUICK_ATTEMPTS = 8
#: A session that lived this many seconds starts the back-off afresh; one that did not, does not,
#: so that a gateway which accepts and then drops us is not hammered.
STABLE_AFTER = 30.0


def retry_delay(attempt: int, random: Callable[[], float]) -> float:
    """Seconds to wait before attempt number `attempt` (from 0) after a loss.

    Half a second at first, then doubling to a minute; jitter takes off up to half of it, so that
    the clients of a restarted gateway do not all come back in the same instant. `random` gives
    [0, 1).
    """
    # The exponent is bounded first: 2**attempt of a client offline for weeks is no float.
    ceiling = min(MAX_DELAY, FIRST_DELAY * 2.0 ** min(max(0, attempt - QUICK_ATTEMPTS), 32))
    return ceiling * (1 - random() / 2)


@dataclass(frozen=True, slots=True)
class Transition:
    """One step of the machine."""

    event: Event
    before: State
    after: State
    actions: tuple[Action, ...]


class Machine:
    """The tunnel's state, and when it next wants to try again.

    `kill_switch` is what is in force: its owner changes it when that changes.
    `random` gives floats in [0, 1) for the jitter. `now` is in seconds of any monotonic clock.
    """

    def __init__(self, random: Callable[[], float], *, kill_switch: KillSwitchMode = "off") -> None:
        self._random = random
        self.kill_switch: KillSwitchMode = kill_switch
        self._attempt = 0
        self._connected_at: float | None = None
        self.state = State.DISCONNECTED
        #: When to report Event.RETRY_DUE; None when no pause is running.
        self.retry_at: float | None = None

    @property
    def hurried(self) -> bool:
        """Whether a session was lost a moment ago, and comes back if it was only a restart."""
        return self.state is State.RECONNECTING and self._attempt <= QUICK_ATTEMPTS

    @property
    def firewall(self) -> FirewallPolicy:
        """What the firewall must enforce now."""
        match self.kill_switch:
            case "off":
                return FirewallPolicy.OPEN
            case "on":
                return FIREWALL[self.state]
            case "always":
                return FirewallPolicy.BLOCK

    def handle(self, event: Event, now: float) -> Transition:
        """Take one event. Raises ImpossibleTransition and then changes nothing."""
        before = self.state
        try:
            after, actions = TRANSITIONS[before, event]
        except KeyError:
            raise ImpossibleTransition(before, event) from None
        if after is State.FAILED and self.kill_switch != "off":
            after = State.BLOCKED
        self.state = after
        self._keep_time(event, before, now)
        return Transition(event, before, after, actions)

    def retry_within(self, seconds: float, now: float) -> None:
        """Shorten a pause that is longer than that."""
        if self.retry_at is not None:
            self.retry_at = min(self.retry_at, now + seconds)

    def _keep_time(self, event: Event, before: State, now: float) -> None:
        if event in (Event.CONNECT, Event.NETWORK_UP):
            self._attempt = 0  # what failed on another network says nothing about this one
        elif event is Event.SESSION_UP:
            self._connected_at = now
        elif before is State.CONNECTED and self.state is State.RECONNECTING:
            assert self._connected_at is not None
            if now - self._connected_at >= STABLE_AFTER:
                self._attempt = 0
        if self.state is State.RECONNECTING and event is Event.SESSION_LOST:
            self.retry_at = now + retry_delay(self._attempt, self._random)
            self._attempt += 1
        else:
            self.retry_at = None
