"""Plain /etc/resolv.conf: replaced by our version, and put back as it was.

Normally ours is renamed over it, after what was there got a second name beside it. That keeps the
old file or link itself, with its owner, times and labels, and survives a reboot; putting it back is
one rename. Where the file is a mount point (a container, ``ip netns exec``) it is rewritten in
place, and what was there is in the record. What somebody else wrote since is never overwritten by
putting back: whoever wrote it last is right.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from qvpn_core.errors import DnsSetupFailed
from qvpn_core.net.dns import resolv_conf
from qvpn_core.net.dns.link import Link
from qvpn_core.net.dns.plan import DnsPlan
from qvpn_core.net.dns.records import DnsRecord, Held, RestoreResolvConf, RewriteResolvConf
from qvpn_core.net.dns.resolv_conf import PATH, SAVED, Current

_NEW: Final = Path("/etc/.resolv.conf.qvpn-new")
_LABEL: Final = "security.selinux"


class FileResolver:
    """See the module. Programs read the file themselves, so it cannot tell names apart."""

    routes_domains: Final = False
    paths: Final = (PATH,)

    def prepare(self, link: Link, held: Held) -> tuple[DnsRecord, ...]:
        """What undoes `apply`. Raises DnsSetupFailed."""
        del link
        current = resolv_conf.read()
        if not current.mounted:
            return (RestoreResolvConf(),)
        if not current.ours:
            return (RewriteResolvConf(current.data or b"", os.stat(current.place).st_mtime_ns),)
        kept = tuple(record for record in held if isinstance(record, RewriteResolvConf))
        if not kept:
            raise DnsSetupFailed(
                f"{PATH} is from an earlier tunnel, and what it said before is lost",
                "write your name servers into it",
            )
        return kept

    def apply(self, link: Link, plan: DnsPlan) -> None:
        """Put our version in place. Raises DnsSetupFailed, and then nothing has changed."""
        current = resolv_conf.read()
        ours = resolv_conf.render(plan, link.interface, current.text.options)
        if ours == current.data:
            return
        with _changing(current.place if current.mounted else PATH):
            if current.mounted:
                _rewrite(current.place, ours, otherwise=current.data or b"")
            else:
                _replace(ours, current)

    def holds(self, link: Link, plan: DnsPlan) -> bool:
        """Whether ours is in place, perhaps with an option that somebody added."""
        del link
        current = resolv_conf.read()
        return current.ours and resolv_conf.says(current.text, plan)


def restore() -> None:
    """Undo a replacement (RestoreResolvConf). Raises DnsSetupFailed.

    Not where the file is another one, as seen from another namespace than the tunnel's.
    """
    if not resolv_conf.is_this_networks():
        return
    with _changing(PATH):
        _NEW.unlink(missing_ok=True)
        if os.path.lexists(PATH) and not resolv_conf.read().ours:
            SAVED.unlink(missing_ok=True)
        elif os.path.lexists(SAVED):
            os.replace(SAVED, PATH)
        else:
            PATH.unlink(missing_ok=True)


def rewrite_back(record: RewriteResolvConf) -> None:
    """Undo a rewriting in place. Raises DnsSetupFailed."""
    current = resolv_conf.read()
    data, previous = current.data, record.previous
    # The last case is a rewriting back that was cut short.
    if data is None or not (resolv_conf.is_ours(data) or previous.startswith(data)):
        return
    if not current.mounted:
        return
    with _changing(current.place):
        if data != previous:
            _write(current.place, previous)
        accessed = os.stat(current.place).st_atime_ns
        os.utime(current.place, ns=(accessed, record.mtime_ns))


def leftover() -> RestoreResolvConf | None:
    """What a client left here that had no time to put it back and whose records are lost."""
    if not resolv_conf.is_this_networks():
        return None
    return RestoreResolvConf() if os.path.lexists(SAVED) or resolv_conf.read().ours else None


def _replace(ours: bytes, current: Current) -> None:
    saved = False
    try:
        _write_new(ours)
        if not current.ours:
            saved = _save()
        os.replace(_NEW, PATH)
    except BaseException:
        with suppress(OSError):
            _NEW.unlink(missing_ok=True)
        if saved:
            with suppress(OSError):
                SAVED.unlink(missing_ok=True)
        raise


def _write_new(data: bytes) -> None:
    _NEW.unlink(missing_ok=True)
    fd = os.open(_NEW, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    try:
        os.fchmod(fd, 0o644)
        with suppress(OSError):  # no such label, or no such thing as labels
            os.setxattr(fd, _LABEL, os.getxattr(PATH, _LABEL))
        if os.write(fd, data) != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(fd)
    finally:
        os.close(fd)


def _save() -> bool:
    """Give what is there its second name; false when nothing is there."""
    SAVED.unlink(missing_ok=True)
    try:
        os.link(PATH, SAVED, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _rewrite(path: Path, data: bytes, *, otherwise: bytes) -> None:
    """Write in place; on a failure, such as a full disk, as it was."""
    times = os.stat(path)
    try:
        _write(path, data)
    except OSError:
        with suppress(OSError):
            _write(path, otherwise)
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        raise


def _write(path: Path, data: bytes) -> None:
    """Over what is there, then cut: blocks that the file has are not given up on a full disk."""
    fd = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        done = 0
        while done < len(data):
            done += os.pwrite(fd, data[done:], done)
        os.ftruncate(fd, len(data))
        os.fsync(fd)
    finally:
        os.close(fd)


_HINTS: Final = {
    errno.EPERM: "is it protected? Try: chattr -i",
    errno.EACCES: "is it protected?",
    errno.EROFS: "its file system is read-only",
    errno.ENOSPC: "its disk is full",
    errno.EDQUOT: "its disk is full",
}


@contextmanager
def _changing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        number = error.errno or 0
        raise DnsSetupFailed(
            f"{path} cannot be changed ({os.strerror(number)})",
            _HINTS.get(number, "mend it, or leave DNS alone"),
        ) from error
