"""Where the client keeps its files. It only names directories, and writes what it is given.

`QVPN_CONFIG_DIR`, `QVPN_STATE_DIR` and `QVPN_RUNTIME_DIR` win. Otherwise a user has the directories
of the XDG Base Directory Specification, and root has those of the system: `/etc/qvpn`,
`/var/lib/qvpn`, `/run/qvpn/root`. Root ignores `XDG_*` and `HOME` on purpose: `su` and some set-ups
of `sudo` pass on the user's, and root must not leave files of its own in a user's directories.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def config_dir() -> Path:
    """Profiles."""
    return _directory("QVPN_CONFIG_DIR", "XDG_CONFIG_HOME", "~/.config", Path("/etc/qvpn"))


def state_dir() -> Path:
    """What survives a reboot but is not configuration: the log, session tickets."""
    return _directory("QVPN_STATE_DIR", "XDG_STATE_HOME", "~/.local/state", Path("/var/lib/qvpn"))


def runtime_dir() -> Path:
    """What ends with the session: the control socket and the lock."""
    return _directory(
        "QVPN_RUNTIME_DIR",
        "XDG_RUNTIME_DIR",
        # Without a login session there is no runtime directory; the state directory is private too.
        "~/.local/state",
        # Beside the helper's files, into which everybody may look.
        Path("/run/qvpn/root"),
    )


def is_root() -> bool:
    """Whether we are root; nobody is, on systems without user IDs."""
    return getattr(os, "geteuid", lambda: None)() == 0


def make_private(directory: Path) -> Path:
    """Create `directory` for its owner only (0700), unless it exists. Raises OSError."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    return directory


@contextmanager
def exclusive(directory: Path) -> Iterator[None]:
    """Nobody else who asks edits files in `directory` meanwhile. Raises OSError."""
    try:
        import fcntl
    except ImportError:  # proxies run on systems without it
        yield
        return
    descriptor = os.open(make_private(directory), os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def write_private(path: Path, data: bytes) -> None:
    """Write a file (0600), whole or not at all, over one that is there. Raises OSError."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".new-")  # mode 0600
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _directory(override: str, xdg: str, default: str, system: Path) -> Path:
    if value := os.environ.get(override):
        return Path(value).absolute()
    if is_root():
        return system
    base = os.environ.get(xdg, "")
    # Relative values are invalid and ignored (XDG Base Directory Specification, basics).
    root = Path(base) if os.path.isabs(base) else Path(default).expanduser()
    return root / "qvpn"
