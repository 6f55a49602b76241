"""The kill switch: what the user wants in the tunnel leaves this machine through it, or not at all.

One nftables table with the same rules in every state of the tunnel, so there is no moment of
changing them in which a packet could pass. It has no owner and outlives whoever made it: a crash
must not open what it holds. :func:`release` ends it with its session, :func:`unlock` always, and a
reboot unless it was asked for with ``always``; then a unit puts it back before any network is up.
It filters only what leaves. It refuses to know the tunnel's state, and to change routes, except for
the time-boxed exception of :func:`sign_in`.

Everything here is synchronous and, but for :func:`holding`, needs root.
"""

from __future__ import annotations

import os
from contextlib import suppress
from ipaddress import ip_network
from pathlib import Path
from typing import Final, Literal

import msgspec

from qvpn_core.errors import NetworkSetupFailed, QvpnError
from qvpn_core.net import nft
from qvpn_core.net.killswitch_rules import (
    remove_script,
    remove_sign_in_script,
    script,
    sign_in_script,
)
from qvpn_core.net.plan import KillSwitch

#: Where ``always`` is kept over a reboot: readable by root only, as it names the user's networks.
STORE: Final = Path("/var/lib/qvpn/kill-switch.json")
#: Where a note lies that any user may read, while a kill switch holds.
MARKERS: Final = Path("/run/qvpn")
#: Bytes; thousands of prefixes fit. A larger file is not ours.
_MAX_STORE: Final = 1 << 20


def install(plan: KillSwitch) -> None:
    """Put `plan` in force, in one step from whatever was before. Idempotent.

    An ``always`` is also stored. Raises NetworkSetupFailed; what was in force still is, or, when
    only the storing failed, `plan` until `release`.
    """
    before = holding()
    _mark("always" if plan.always else "on")
    try:
        nft.run(script(plan))
    except QvpnError:
        _mark(before)
        raise
    if plan.always:
        _store(plan)


def release() -> None:
    """Only a stored ``always`` is in force from now on, or nothing: a session's own is over.

    For the orderly end of a session, and for the boot. Idempotent. Raises NetworkSetupFailed.
    """
    nft.run(remove_sign_in_script())
    if (stored := load()) is not None:
        install(stored)
    else:
        _remove()


def unlock() -> None:
    """End every kill switch, also an ``always``, of whatever session. Idempotent.

    Raises NetworkSetupFailed.
    """
    _forget()
    nft.run(remove_sign_in_script())
    _remove()


def sign_in(uid: int, seconds: int) -> None:
    """Let the user `uid` sign in at a captive portal for `seconds`; see `sign_in_script`."""
    nft.run(sign_in_script(uid, seconds))


Holding = Literal["on", "always"]


def holding() -> Holding | None:
    """What kill switch is in force in this network namespace, as any user may know."""
    with suppress(OSError):
        match _marker().read_text():
            case "on":
                return "on"
            case "always":
                return "always"
    return None


def _remove() -> None:
    nft.run(remove_script())
    _mark(None)


def _mark(holding: Holding | None) -> None:
    if holding is None:
        _marker().unlink(missing_ok=True)
    else:
        _write(_marker(), holding.encode(), mode=0o644, durable=False)


def _marker() -> Path:
    """A note for those who may not look into nftables. Gone after a reboot, as the table is."""
    return MARKERS / f"net-{os.stat('/proc/thread-self/ns/net').st_ino}.kill-switch"


# -- over a reboot


class _Stored(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    protected: tuple[str, ...] | None
    exempt: tuple[str, ...]
    lan: bool


def _store(plan: KillSwitch) -> None:
    """Keep `plan` over a reboot, whole or not at all. Raises NetworkSetupFailed (full disk)."""
    stored = _Stored(
        None if plan.protected is None else tuple(map(str, plan.protected)),
        tuple(map(str, plan.exempt)),
        plan.lan,
    )
    data = msgspec.json.encode(stored)
    with suppress(OSError):
        if STORE.read_bytes() == data:
            return
    _write(STORE, data, mode=0o600, durable=True)


def load() -> KillSwitch | None:
    """What is stored, None when nothing is.

    A file that cannot be understood still says that its owner wanted to be locked: it blocks
    everything. `unlock` needs no look into it.
    """
    try:
        with STORE.open("rb") as file:
            data = file.read(_MAX_STORE + 1)
    except FileNotFoundError:
        return None
    except OSError:
        return KillSwitch(always=True)
    try:
        stored = msgspec.json.decode(data, type=_Stored)
        protected = stored.protected
        return KillSwitch(
            None if protected is None else tuple(map(ip_network, protected)),
            tuple(map(ip_network, stored.exempt)),
            stored.lan,
            always=True,
        )
    except (ValueError, RecursionError):
        return KillSwitch(always=True)


def _forget() -> None:
    try:
        STORE.unlink(missing_ok=True)
        _sync(STORE.parent)
    except FileNotFoundError:
        pass  # never was a directory
    except OSError as error:
        raise _unwritable(STORE, error) from error


def _write(path: Path, data: bytes, *, mode: int, durable: bool) -> None:
    """Replace a file of root's atomically. Raises NetworkSetupFailed."""
    temporary = path.with_name(f".{path.name}.new")
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        temporary.unlink(missing_ok=True)
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with os.fdopen(fd, "wb") as file:
            os.fchmod(fd, mode)
            file.write(data)
            file.flush()
            if durable:
                os.fsync(fd)
        temporary.replace(path)
        if durable:
            _sync(path.parent)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise _unwritable(path, error) from error


def _sync(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _unwritable(path: Path, error: OSError) -> NetworkSetupFailed:
    why = os.strerror(error.errno or 0)
    return NetworkSetupFailed(f"the kill switch cannot write {path} ({why})", "is the disk full?")
