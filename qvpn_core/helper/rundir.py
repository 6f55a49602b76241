"""/run/qvpn: who has the network of a namespace, and a lock that says so for certain.

For each network namespace there are ``net-N.lock`` and ``net-N.journal``, for root only, and
``net-N.owner``, which everybody may read: a lock that others could open they could also hold. The
directory is root's and is trusted only when nobody else can write to it; names in it are opened
without following links. Reading the owner needs no root.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from qvpn_core.errors import NetworkSetupFailed

DIRECTORY: Final = Path("/run/qvpn")
_FLAGS: Final = os.O_CLOEXEC | os.O_NOFOLLOW
_MAX_OWNER: Final = 256  # bytes


class Owner(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Whose session has the network: the user, and the helper's process."""

    uid: int
    pid: int


def namespace() -> int:
    """The number of this thread's network namespace."""
    return os.stat("/proc/thread-self/ns/net").st_ino


def owner() -> Owner | None:
    """Who has this network namespace, None when nobody has."""
    path = DIRECTORY / f"net-{namespace()}.owner"
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | _FLAGS)
        with open(fd, "rb") as file:
            if os.fstat(fd).st_uid != 0:
                return None  # root alone can write there; but nothing may depend on that
            found = msgspec.json.decode(file.read(_MAX_OWNER), type=Owner)
        # A killed helper leaves its note, and its number may be another's by now.
        with open(f"/proc/{found.pid}/cmdline", "rb") as file:
            alive = b"qvpn" in file.read(_MAX_OWNER)
    except (OSError, ValueError):
        return None
    return found if alive else None


class RunDirectory:
    """The directory, open, for root. Every method speaks of this process's network namespace."""

    def __init__(self) -> None:
        """Make it, unless it exists. Raises NetworkSetupFailed when it cannot be trusted."""
        self._name = f"net-{namespace()}"
        self._lock = -1
        try:
            with suppress(FileExistsError):
                os.mkdir(DIRECTORY, 0o755)
            self._fd = os.open(DIRECTORY, os.O_RDONLY | os.O_DIRECTORY | _FLAGS)
            status = os.fstat(self._fd)
            if status.st_uid != 0:
                raise PermissionError(errno.EPERM, f"it is owned by user {status.st_uid}")
            if stat.S_IMODE(status.st_mode) != 0o755:
                os.fchmod(self._fd, 0o755)
        except OSError as error:
            raise _failed("use", error) from error

    def acquire(self) -> bool:
        """Whether the lock is ours now, or was already. Raises NetworkSetupFailed."""
        if self._lock >= 0:
            return True
        name = self._name + ".lock"
        try:
            fd = os.open(name, os.O_RDWR | os.O_CREAT | _FLAGS, 0o600, dir_fd=self._fd)
        except OSError as error:
            raise _failed("lock", error) from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The holder before us removes the file with its lock; then this one is nobody's.
            current = os.stat(name, dir_fd=self._fd, follow_symlinks=False)
            held = current.st_ino == os.fstat(fd).st_ino
        except OSError:
            held = False
        if not held:
            os.close(fd)
            return False
        self._lock = fd
        return True

    def release(self) -> None:
        """Give the lock back; the note of its owner goes first."""
        self.remove("owner")
        self.remove("lock")
        os.close(self._lock)
        self._lock = -1

    def has(self, kind: str) -> bool:
        """Whether there is such a file, or anything with its name."""
        try:
            os.stat(f"{self._name}.{kind}", dir_fd=self._fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def write(self, kind: str, data: bytes, *, mode: int = 0o600) -> None:
        """Replace a file whole. Raises NetworkSetupFailed, and then it is as before."""
        name = f"{self._name}.{kind}"
        new = f".{name}.new"
        try:
            with suppress(FileNotFoundError):
                os.unlink(new, dir_fd=self._fd)
            fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FLAGS, mode, dir_fd=self._fd)
            with open(fd, "wb") as file:
                os.fchmod(fd, mode)
                file.write(data)
            os.rename(new, name, src_dir_fd=self._fd, dst_dir_fd=self._fd)
        except OSError as error:
            with suppress(OSError):
                os.unlink(new, dir_fd=self._fd)
            raise _failed("write to", error) from error

    def read(self, kind: str, limit: int) -> bytes | None:
        """A file's content, None without one.

        Raises ValueError for what root has not written here: links, devices, others' files, and
        more than `limit` bytes.
        """
        try:
            fd = os.open(
                f"{self._name}.{kind}", os.O_RDONLY | os.O_NONBLOCK | _FLAGS, dir_fd=self._fd
            )
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ValueError(os.strerror(error.errno or 0)) from None
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode) or status.st_uid != 0 or status.st_mode & 0o022:
                raise ValueError("root has not written it")
            with open(fd, "rb", closefd=False) as file:
                data = file.read(limit + 1)
        finally:
            os.close(fd)
        if len(data) > limit:
            raise ValueError(f"more than {limit} bytes")
        return data

    def remove(self, kind: str) -> None:
        """Remove a file, or whatever has its name."""
        with suppress(FileNotFoundError, IsADirectoryError):
            os.unlink(f"{self._name}.{kind}", dir_fd=self._fd)

    def announce(self, owner: Owner) -> None:
        """Let everybody know whose session it is. Raises NetworkSetupFailed."""
        self.write("owner", msgspec.json.encode(owner), mode=0o644)


def _failed(what: str, error: OSError) -> NetworkSetupFailed:
    why = error.strerror or "unknown"
    return NetworkSetupFailed(
        f"cannot {what} {DIRECTORY} ({why})", "is /run writable, and not full?"
    )
