"""When to tell the user of a change: only of those that he did not cause, and only when away.

Sans-IO: changes of state and moments go in, notices come out. Showing them is `bus.py`'s.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

from qvpn_core.client.states import State

#: A loss that mends itself sooner is not worth a word, in seconds.
PATIENCE: Final = 4.0


#: From any other state, an end is the user's doing, or was before this app.
_LIVE: Final = frozenset({State.CONNECTING, State.CONNECTED, State.RECONNECTING})


class Notice(Enum):
    """What there is to tell."""

    LOST = "lost"
    BACK = "back"
    FAILED = "failed"
    BLOCKED = "blocked"


class Notices:
    """Feed it every change of state, and the time again at `due`."""

    def __init__(self) -> None:
        self._told_loss = False
        #: When to call `late`; None for not at all. Seconds on the clock that `now` is on.
        self.due: float | None = None

    def moved(self, before: State, after: State, now: float, *, seen: bool) -> Notice | None:
        """A state follows another; `seen` is whether the user looks at the window."""
        self.due = None
        told, self._told_loss = self._told_loss, False
        match after:
            case State.RECONNECTING:
                self.due = now + PATIENCE
                self._told_loss = told
            case State.CONNECTED if before is State.RECONNECTING and told:
                return Notice.BACK
            case State.BLOCKED if not seen and before in _LIVE:
                return Notice.BLOCKED
            case State.FAILED if not seen and before in _LIVE:
                return Notice.FAILED
        return None

    def late(self, *, seen: bool) -> Notice | None:
        """The time of `due` has come."""
        self.due = None
        if seen or self._told_loss:
            return None
        self._told_loss = True
        return Notice.LOST
