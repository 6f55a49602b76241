"""IP forwarding at the gateway, and the machine as it was before, also after a SIGKILL.

What is changed is written to a state file first. It refuses to touch what already forwards.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import msgspec

from qvpn_core.errors import NetworkSetupFailed, QvpnError
from qvpn_core.net import sysctl
from qvpn_core.net.names import GATEWAY_TUN
from qvpn_core.net.sysctl import RestoreSetting
from qvpn_core.net.worker import in_thread

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_PREFIX: Final = {4: "net/ipv4/conf", 6: "net/ipv6/conf"}
_SWITCH: Final = {4: "net/ipv4/ip_forward", 6: "net/ipv6/conf/all/forwarding"}
_ACCEPT_REDIRECTS: Final = "net/ipv4/conf/all/accept_redirects"
_SEND_REDIRECTS: Final = "net/ipv4/conf/all/send_redirects"


Settings = tuple[RestoreSetting, ...]


class _Saved(msgspec.Struct, frozen=True):
    """The state file. Settings do not survive a boot, so neither does what is to be restored."""

    boot: str
    #: What the kernel changes along with a switch, as it is after switching off.
    carried: Settings = ()
    #: What we set ourselves, in this order.
    switched: Settings = ()


class Forwarding:
    """IPv4 and IPv6 forwarding of this network namespace.

    Turning it on has side effects in the kernel (Documentation/networking/ip-sysctl.rst): every
    interface's own switch follows, `accept_redirects` changes, and an interface that learnt its
    routes from router advertisements (`accept_ra` 1) loses them, which would cut an uplink off;
    those get `accept_ra` 2 first, the same behaviour while forwarding.

    A packet from one device to another leaves by the TUN it came in by, which a router would answer
    with a redirect. Interfaces send redirects when their own setting or that of ``all`` says so;
    ``all`` goes off, others keep their own, :func:`qvpn_core.net.links.bring_up` clears the TUN's.
    """

    def __init__(self, state: Path) -> None:
        """`state` is the file to remember in; its directory exists."""
        self._state = state

    async def enable(self) -> None:
        """Turn forwarding on. Raises NetworkSetupFailed, and then leaves nothing changed."""
        await in_thread(self._enable)

    async def restore(self) -> None:
        """Put back what `enable` changed, here or in a process that was killed. Idempotent."""
        await in_thread(self._restore)

    def _enable(self) -> None:
        # What a killed predecessor saved is the truth about the time before us. Its settings stay
        # in force meanwhile: switching off and on again would drop learnt routes.
        before = self._load()
        standing = tuple(item for item in before.switched if sysctl.read(item.name) == item.ours)
        carried, switched = _changes()
        if not standing and not switched:
            self._state.unlink(missing_ok=True)
            return
        self._save(_Saved(_boot(), before.carried + carried, standing + switched))
        try:
            for item in switched:
                sysctl.write(item.name, item.ours)
        except BaseException:
            self._restore()
            raise

    def _restore(self) -> None:
        saved = self._load()
        failures = []
        for item in reversed(saved.carried + saved.switched):
            try:
                sysctl.restore(item.name, item.previous, item.ours)
            except QvpnError as error:
                failures.append(error)
        self._state.unlink(missing_ok=True)
        if failures:
            raise failures[0]

    def _load(self) -> _Saved:
        nothing = _Saved(_boot())
        try:
            saved = msgspec.json.decode(self._state.read_bytes(), type=_Saved)
        except FileNotFoundError:
            return nothing
        except (OSError, msgspec.MsgspecError) as error:
            raise NetworkSetupFailed(
                f"cannot read {self._state} ({error})", "delete it to keep forwarding as it is now"
            ) from error
        return saved if saved.boot == nothing.boot else nothing

    def _save(self, saved: _Saved) -> None:
        temporary = self._state.with_name(self._state.name + ".new")
        try:
            with temporary.open("wb") as file:
                file.write(msgspec.json.encode(saved))
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self._state)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise NetworkSetupFailed(
                f"cannot write {self._state} ({os.strerror(error.errno or 0)})",
                "check the state directory",
            ) from error


def _changes() -> tuple[Settings, Settings]:
    """What to carry and what to switch, for each IP version that does not forward yet."""
    carried: list[RestoreSetting] = []
    switched: list[RestoreSetting] = []
    if sysctl.read(_SEND_REDIRECTS) == "1":
        switched.append(RestoreSetting(_SEND_REDIRECTS, "1", "0"))
    for version in (4, 6):
        if sysctl.read(_SWITCH[version]) != "0":
            continue  # already on, or no such IP version here
        names = [entry.name for entry in (sysctl.ROOT / _PREFIX[version]).iterdir()]
        for name in names:
            forwarding = f"{_PREFIX[version]}/{name}/forwarding"
            if name != "all" and sysctl.read(forwarding) == "1":
                carried.append(RestoreSetting(forwarding, "1", "0"))
            elif version == 6 and name not in ("all", "default", "lo", GATEWAY_TUN):
                accept = f"{_PREFIX[6]}/{name}/accept_ra"
                if sysctl.read(accept) == "1":
                    switched.append(RestoreSetting(accept, "1", "2"))
        if version == 4 and sysctl.read(_ACCEPT_REDIRECTS) == "0":
            carried.append(RestoreSetting(_ACCEPT_REDIRECTS, "0", "1"))
        switched.append(RestoreSetting(_SWITCH[version], "0", "1"))
    return tuple(carried), tuple(switched)


def _boot() -> str:
    return _BOOT_ID.read_text().strip()
