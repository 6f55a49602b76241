"""The state directory: what lies where, atomic writes, and one gateway at a time.

gateway.toml      configuration               registry.sqlite3   devices and leases
certificate.pem   made by init unless given   admin.sock         while a gateway runs
private-key.pem                               lock               held while a gateway runs
next-certificate.pem, next-private-key.pem    from rotate until rotate --switch
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from qvpn_core.errors import PermissionMissing, UsageError


@dataclass(frozen=True, slots=True)
class StateDir:
    """Names inside the directory `path`."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "gateway.toml"

    @property
    def certificate(self) -> Path:
        return self.path / "certificate.pem"

    @property
    def private_key(self) -> Path:
        return self.path / "private-key.pem"

    @property
    def next_certificate(self) -> Path:
        return self.path / "next-certificate.pem"

    @property
    def next_private_key(self) -> Path:
        return self.path / "next-private-key.pem"

    @property
    def registry(self) -> Path:
        return self.path / "registry.sqlite3"

    @property
    def sysctls(self) -> Path:
        """Where forwarding keeps the kernel settings to put back."""
        return self.path / "sysctls.json"

    @property
    def initialised(self) -> bool:
        """Whether this directory holds a gateway. Raises PermissionMissing if it is not ours."""
        try:
            return self.config.exists()
        except PermissionError as error:
            raise _unwritable(self.path, error) from None

    def create(self, files: Mapping[Path, bytes]) -> None:
        """Make the directory (0700) and `files` in it (0600), in order, each whole or not at all.

        The last file should be gateway.toml: its presence is what makes a directory a gateway's.
        After a failure none of `files` is left, nor a directory that was made here. Raises
        UsageError or PermissionMissing.
        """
        created_dir = False
        written: list[Path] = []
        try:
            if not self.path.exists():
                self.path.mkdir(mode=0o700, parents=True)
                created_dir = True
            for path, data in files.items():
                written.append(path)
                _write_atomically(path, data)
            _sync_directory(self.path)
        except OSError as error:
            for path in written:
                with suppress(OSError):
                    path.unlink(missing_ok=True)
            if created_dir:
                with suppress(OSError):
                    self.path.rmdir()
            raise _unwritable(self.path, error) from None

    def act_as_owner(self) -> None:
        """Become, for good, the user who owns the directory, when root works on another's.

        Whatever a command of root makes there, the gateway's own user can use. Raises
        PermissionMissing, never leaves this process half one and half the other.
        """
        if os.geteuid() != 0:
            return
        try:
            status = self.path.stat()
        except OSError:
            return  # not made yet: it will be root's
        if status.st_uid == 0:
            return
        try:
            os.setgroups([])
            os.setgid(status.st_gid)
            os.setuid(status.st_uid)
        except OSError as error:
            raise PermissionMissing(
                f"cannot become the owner of {self.path} ({error.strerror})",
                "run this as that user",
            ) from error

    def refuse_root(self) -> None:
        """Raise UsageError when root is about to run the gateway of another user.

        The registry's files would become root's, and that user's gateway could not start again.
        """
        with suppress(OSError):
            if os.geteuid() == 0 and (uid := self.path.stat().st_uid) != 0:
                raise UsageError(
                    f"{self.path} belongs to user {uid}",
                    "run the gateway as that user: systemctl start qvpn-server",
                )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the directory for one running gateway. Raises UsageError if another one has it."""
        try:
            lock = os.open(self.path / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise _unwritable(self.path, error) from None
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UsageError(
                    f"a gateway already runs on {self.path}",
                    f"see: qvpn-server status --state {self.path}",
                ) from None
            yield
        finally:
            os.close(lock)

    @contextmanager
    def admin_address(self) -> Iterator[str]:
        """The admin socket's address for bind and connect, usable inside the `with`.

        Reached through an open directory, since a socket address holds only 107 bytes of path
        (sockaddr_un, <linux/un.h>). Raises OSError.
        """
        directory = os.open(self.path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield f"/proc/self/fd/{directory}/admin.sock"
        finally:
            os.close(directory)


def _write_atomically(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _unwritable(path: Path, error: OSError) -> UsageError | PermissionMissing:
    what = f"cannot write to {path}: {error.strerror}"
    if isinstance(error, PermissionError):
        return PermissionMissing(what, "run this as the owner of that directory, usually with sudo")
    return UsageError(what, "make room, or choose another --state directory")
