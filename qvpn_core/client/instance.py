"""One agent per runtime directory: its lock, and the note that a failed one leaves behind.

The lock dies with the process that holds it, so there is nothing stale to clean up.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from qvpn_core.client import paths
from qvpn_core.client.status import Status
from qvpn_core.errors import QvpnError, UsageError

_status = msgspec.json.Decoder(Status)


@contextmanager
def single_instance() -> Iterator[None]:
    """Hold the lock. Raises UsageError when another agent has it."""
    import fcntl  # here and below: proxies run on systems without these

    path = paths.runtime_dir() / "agent.lock"
    try:
        paths.make_private(path.parent)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise QvpnError(
            f"{path} cannot be written ({error.strerror})", "set QVPN_RUNTIME_DIR"
        ) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError("qvpn is up already", "end it first: qvpn down") from None
        yield
    finally:
        os.close(descriptor)


def wait_until_gone(timeout: float) -> bool:
    """Wait for the agent's process to end; False when it did not within `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            with single_instance():
                return True
        except UsageError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)


def other_user() -> str | None:
    """Who else has a tunnel up on this machine: a name, or a number without one."""
    import pwd

    from qvpn_core.helper.rundir import owner

    holder = owner()
    if holder is None or holder.uid == os.geteuid():
        return None
    try:
        return pwd.getpwuid(holder.uid).pw_name
    except KeyError:
        return f"user {holder.uid}"


def keep_failure(status: Status) -> None:
    """Leave a note of how the tunnel failed, for when the agent is gone. Held under the lock."""
    with suppress(OSError):
        _failure_file().write_bytes(msgspec.json.encode(status))


def forget_failure() -> None:
    """Remove the note: a new agent starts, or the user has taken notice."""
    _failure_file().unlink(missing_ok=True)


def last_failure() -> Status | None:
    """How the last agent failed, when none ran since."""
    with suppress(OSError, msgspec.MsgspecError):
        return _status.decode(_failure_file().read_bytes())
    return None


def _failure_file() -> Path:
    return paths.runtime_dir() / "failure.json"
