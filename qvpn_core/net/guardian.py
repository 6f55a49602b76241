"""The guardian: a small process that undoes the client's network when the client cannot.

It is started before the first change, in a session of its own, deaf to the terminal's signals, with
one end of a socket as its only descriptor beside /dev/null. The client tells it what to undo
*before* each change. It undoes that when told to, and when the socket closes for whatever reason,
SIGKILL of the client included; then it ends. It refuses everything else: it prints nothing and
undoes only what the closed set in :mod:`qvpn_core.net.records` can say.

While it lives it holds a lock of its network namespace, so that a new client waits until the
network of the one before is gone. Killed together with its client it leaves rules that lead to a
table without tunnel; the next client removes them.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Final, Self

import msgspec

from qvpn_core.errors import NetworkSetupFailed
from qvpn_core.net import nft
from qvpn_core.net.records import Record

#: Seconds for the guardian to start, to wait for a predecessor, and to undo.
TIMEOUT: Final = 20.0
_PREDECESSOR_WAIT: Final = 3.0
_LOCKS: Final = Path("/run/qvpn")
_MAX_MESSAGE: Final = 65536


class Hold(msgspec.Struct, frozen=True, tag="hold"):
    """From the client: undo these from now on, instead of what you held."""

    records: tuple[Record, ...]


class Release(msgspec.Struct, frozen=True, tag="release"):
    """From the client: undo now, and end."""


class Done(msgspec.Struct, frozen=True, tag="done"):
    """The answer to either, and once unasked when ready: done, but for these failures."""

    failures: tuple[str, ...] = ()


class Guardian:
    """The client's half. Synchronous: for a worker thread."""

    def __init__(self, process: subprocess.Popen[bytes], channel: socket.socket) -> None:
        self._process = process
        self._channel = channel
        self._held: tuple[Record, ...] = ()

    @classmethod
    def start(cls) -> Self:
        """Start the process and wait until it guards this network namespace.

        Raises NetworkSetupFailed, also when another client's guardian is at work here.
        """
        ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.settimeout(TIMEOUT)
        root = str(Path(__file__).resolve().parents[2])
        with its:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", __name__],
                stdin=its.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd="/",
                env={"PATH": nft.SYSTEM_PATH, "PYTHONPATH": root, "LC_ALL": "C.UTF-8"},
                start_new_session=True,
            )
        guardian = cls(process, ours)
        try:
            failures = guardian._answer()
        except OSError as error:
            guardian._end()
            raise NetworkSetupFailed(f"the guardian process did not start ({error})") from error
        if failures:
            guardian._end()
            raise NetworkSetupFailed(*failures)
        return guardian

    def hold(self, records: Sequence[Record]) -> None:
        """Undo `records`, latest first, when this process ends or releases the guardian.

        Returns when the guardian knows. Raises NetworkSetupFailed when it is gone.
        """
        self._held = tuple(records)
        try:
            self._channel.send(msgspec.json.encode(Hold(self._held)))
            self._answer()
        except OSError as error:
            raise NetworkSetupFailed(f"the guardian process is gone ({error})") from error

    def release(self) -> None:
        """Have everything undone, here if the guardian is gone, and wait for it to end.

        Raises NetworkSetupFailed, with the first failure, when something could not be undone.
        """
        try:
            self._channel.send(msgspec.json.encode(Release()))
            failures = self._answer()
        except OSError:
            self._end()
            failures = _undo(self._held)
        else:
            self._end()
        if failures:
            raise NetworkSetupFailed(f"the network was not restored whole: {failures[0]}")

    def _answer(self) -> tuple[str, ...]:
        data = self._channel.recv(_MAX_MESSAGE)
        if not data:
            raise ConnectionError("it ended")
        return msgspec.json.decode(data, type=Done).failures

    def _end(self) -> None:
        self._channel.close()
        try:
            self._process.wait(TIMEOUT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def main() -> None:
    """The process. Descriptor 0 is the socket to the client."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    with socket.socket(fileno=0) as channel:
        lock = _Lock()
        try:
            free = _wait(lock, channel)
        except OSError as error:
            return _tell(channel, f"cannot lock the network ({error})", "is /run writable?")
        if not free:
            return _tell(channel, "another qvpn tunnel is active here", "end it with: qvpn down")
        try:
            _guard(channel)
        finally:
            lock.release()


def _guard(channel: socket.socket) -> None:
    records: tuple[Record, ...] = ()
    _tell(channel)
    try:
        while data := channel.recv(_MAX_MESSAGE):
            match msgspec.json.decode(data, type=Hold | Release):
                case Hold(held):
                    records = held
                    _tell(channel)
                    _load_undo()
                case Release():
                    break
    except (OSError, msgspec.MsgspecError):
        pass  # no client that we understand: as if it were gone
    _tell(channel, *_undo(records))


def _load_undo() -> ModuleType:
    """Import what undoing needs, which takes half a second for netlink.

    So not before the client may go on; but long before it is needed, when an upgrade may have
    removed the files.
    """
    from qvpn_core.net import undo

    return undo


def _undo(records: Sequence[Record]) -> tuple[str, ...]:
    return tuple(map(str, _load_undo().run(records)))


def _tell(channel: socket.socket, *failures: str) -> None:
    try:
        channel.send(msgspec.json.encode(Done(failures)))
    except OSError:
        pass  # nobody listens; what counts is what is undone


def _wait(lock: _Lock, channel: socket.socket) -> bool:
    """Wait for a predecessor to finish; false when it stays, or our client is gone already."""
    deadline = time.monotonic() + _PREDECESSOR_WAIT
    while not lock.acquire():
        if time.monotonic() > deadline or select.select([channel], [], [], 0.02)[0]:
            return False
    return True


class _Lock:
    """A lock for this network namespace: a file that only root can open, gone when released."""

    def __init__(self) -> None:
        namespace = os.stat("/proc/thread-self/ns/net").st_ino
        self._path = _LOCKS / f"net-{namespace}.lock"
        self._fd = -1

    def acquire(self) -> bool:
        """Whether it is ours now."""
        _LOCKS.mkdir(mode=0o755, exist_ok=True)
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The holder before us removes the file with its lock; then this one is nobody's.
            current = os.stat(self._path).st_ino == os.fstat(fd).st_ino
        except OSError:
            current = False
        if not current:
            os.close(fd)
            return False
        self._fd = fd
        return True

    def release(self) -> None:
        """Remove the file and with it the lock."""
        self._path.unlink(missing_ok=True)
        os.close(self._fd)


if __name__ == "__main__":
    main()
