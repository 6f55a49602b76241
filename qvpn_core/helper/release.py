"""Without a session: undo what a dead one left (``unlock``), and what a crash left (``boot``).

Both take no word from anybody. `unlock` is for the person at the desk, whom polkit lets do it
without a password; it frees the network of a session that is dead, and ends one that lives only for
its owner and for root.
"""

from __future__ import annotations

import os
import signal
import time
from typing import Final

from qvpn_core.errors import NetworkSetupFailed
from qvpn_core.helper.errors import NetworkTaken
from qvpn_core.helper.log import Log
from qvpn_core.helper.rundir import Owner, RunDirectory, owner

#: Seconds for a session that is ending anyway, for one that is told to, and for one that is killed.
_ENDING: Final = 1.0
_TOLD: Final = 30.0
_KILLED: Final = 5.0


def unlock(caller: int) -> None:
    """Undo everything of a dead session, and its kill switch. `caller` is the user who asks.

    Raises NetworkTaken for somebody else's living session, and NetworkSetupFailed.
    """
    log = Log()
    directory = RunDirectory()
    if not _acquire(directory, _ENDING):
        holder = owner()
        if holder is None or caller not in (0, holder.uid):
            raise NetworkTaken(
                "a qvpn tunnel of another user is active here", "only they and root may end it"
            )
        log.info(f"user {caller} ends the session of user {holder.uid}")
        if not _end(holder, directory):
            raise NetworkSetupFailed("the session does not end", "try again")
    from qvpn_core.helper import engine

    try:
        failures = engine.unlock(directory, log)
    finally:
        directory.release()
    log.info(f"user {caller} released the network")
    if failures:
        raise NetworkSetupFailed(f"the network was not restored whole: {failures[0]}")


def boot() -> None:
    """Put a kill switch in force that was asked for always, and mend what a power failure left.

    Raises NetworkSetupFailed.
    """
    from qvpn_core.helper import engine

    engine.boot(Log())


def _end(holder: Owner, directory: RunDirectory) -> bool:
    """Tell the session's helper to end, then make it; whether the lock is ours."""
    for number, patience in ((signal.SIGTERM, _TOLD), (signal.SIGKILL, _KILLED)):
        try:
            process = os.pidfd_open(holder.pid)
        except ProcessLookupError:
            return _acquire(directory, _ENDING)
        try:
            # Still the lock's holder now that its number cannot become another's.
            if owner() == holder and not directory.acquire():
                signal.pidfd_send_signal(process, number)
            else:
                return _acquire(directory, _ENDING)
        finally:
            os.close(process)
        if _acquire(directory, patience):
            return True
    return False


def _acquire(directory: RunDirectory, patience: float) -> bool:
    """Take the lock within `patience` seconds; fine when it is ours."""
    deadline = time.monotonic() + patience
    while not directory.acquire():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True
