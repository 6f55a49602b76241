"""What requests do to the kernel: one session's network, names and firewall, kept and undone.

It knows what it made of this session and, from the journal, what an earlier one left; everything
that is not ours stays as it is. Loading it takes half a second, so nobody waits for that who need
not (see `entrance.py`). Time is passed in, in seconds of a monotonic clock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final

from qvpn_core.errors import NetworkSetupFailed, PermissionMissing, QvpnError
from qvpn_core.helper import protocol, wire
from qvpn_core.helper.journal import Journal
from qvpn_core.helper.log import Log
from qvpn_core.helper.rundir import RunDirectory
from qvpn_core.helper.watch import FileWatch, Loss, NetlinkWatch
from qvpn_core.net import dns, killswitch, nft, undo
from qvpn_core.net.apply import ClientNetwork
from qvpn_core.net.dns.keeper import DnsKeeper
from qvpn_core.net.names import KILL_SWITCH_NFT_TABLE
from qvpn_core.net.plan import KillSwitch
from qvpn_core.net.records import Record
from qvpn_core.net.tun import Tun

#: Seconds between two looks, and after which number of repairs a minute they become rare.
_LOOK: Final = 0.2
_MAX_REPAIRS: Final = 20
_PERIOD: Final = 60.0
_TRUCE: Final = 10.0


class Engine:
    """The effects of one session. Its maker holds the lock of the network namespace."""

    def __init__(self, directory: RunDirectory, uid: int, log: Log) -> None:
        """Undo what an earlier session left. Raises NetworkSetupFailed, PermissionMissing."""
        self._uid = uid
        self._log = log
        self._journal = Journal(directory, log)
        self._network = ClientNetwork(self._journal.hold_network)
        self._dns: DnsKeeper | None = None
        self._kill_switch: KillSwitch | None = None
        self._suspected: set[Loss] = set()
        self._names_suspected = False
        self._next_look = 0.0
        self._repaired: deque[float] = deque(maxlen=_MAX_REPAIRS)
        #: How often something of ours was put back.
        self._repairs = 0
        try:
            self._kernel = NetlinkWatch()
            self._files = FileWatch()
        except PermissionError as error:
            raise PermissionMissing(
                "not allowed to watch the network", "qvpn needs CAP_NET_ADMIN"
            ) from error
        except OSError as error:
            raise NetworkSetupFailed(f"cannot watch the network ({error.strerror})") from error
        self._undo((*_lost_records(log), *self._journal.left_behind()))

    # -- requests

    def open_tun(self, mtu: int) -> Tun:
        """The session's TUN, of which no descriptor stays here."""
        tun = self._network.open_tun(mtu)
        self._dns = DnsKeeper(tun.name, tun.index, self._journal.hold_dns)
        return tun

    def apply(self, request: protocol.Apply) -> protocol.Applied:
        """The network, then the names, whose servers are reached through it."""
        plan = wire.unpack_network(request.network)
        names = None if request.dns is None else wire.unpack_dns(request.dns)
        self._network.apply(plan)
        assert self._dns is not None  # there is a device
        before = self._dns.report
        report = self._dns.set(names)
        if report != before:
            self._log.info(f"names: {report.backend}, for {report.reason}")
            if report.error:
                self._log.warning(report.error)
        self._files.set(self._dns.watch_paths)
        return protocol.Applied(_dns_state(self._dns))

    def detach(self) -> None:
        """Undo all of the network and the names. Raises NetworkSetupFailed for what stays."""
        if failures := self.undo():
            raise NetworkSetupFailed(f"the network was not restored whole: {failures[0]}")

    def set_firewall(self, request: protocol.SetFirewall) -> None:
        """The kill switch, from one to the next in one step."""
        if request.kill_switch is None:
            killswitch.release()
            self._kill_switch = None
            return
        plan = wire.unpack_kill_switch(request.kill_switch)
        killswitch.install(plan)
        self._kill_switch = plan

    def sign_in(self, seconds: int) -> None:
        """The exception for a captive portal, for the session's own user."""
        killswitch.sign_in(self._uid, seconds)

    def report(self) -> protocol.Reported:
        """What is in force."""
        plan = self._network.plan
        return protocol.Reported(
            addresses=tuple(str(address.ip) for address in plan.addresses),
            mtu=plan.mtu,
            routes=len(plan.routes),
            dns=None if self._dns is None else _dns_state(self._dns),
            kill_switch=killswitch.holding(),
            repairs=self._repairs + (0 if self._dns is None else self._dns.repairs),
        )

    def close(self) -> tuple[str, ...]:
        """Undo everything, the kill switch last; the failures."""
        failures = self.undo()
        try:
            killswitch.release()
            self._kill_switch = None
        except QvpnError as error:
            failures = (*failures, str(error))
        return failures

    # -- the end

    def undo(self) -> tuple[str, ...]:
        """Undo the network and the names, but no kill switch; the failures, which stay recorded."""
        failures = list(self._undo(self._journal.network))
        self._network.forget()
        keeper, self._dns = self._dns, None
        self._files.set(())
        if keeper is not None:
            try:
                failures += map(str, keeper.remove())
            except QvpnError as error:  # the journal cannot be written, which changes nothing here
                self._log.warning(str(error))
        return tuple(failures)

    def _undo(self, records: Sequence[Record]) -> tuple[str, ...]:
        failed = undo.run((*self._journal.failed, *records))
        self._journal.undone([record for record, _ in reversed(failed)])
        for _, error in failed:
            self._log.warning(f"not undone: {error}")
        return tuple(str(error) for _, error in failed)

    # -- interference

    def filenos(self) -> tuple[int, ...]:
        """Descriptors that are readable when `turn` has something to see."""
        return (*self._kernel.filenos(), self._files.fileno())

    def due(self) -> float | None:
        """When `turn` has something to do although nothing is readable."""
        return self._next_look if self._suspected or self._names_suspected else None

    def turn(self, now: float) -> None:
        """Look whether what is ours is still there, and put it back."""
        self._suspected |= self._kernel.read(self._network.index)
        self._names_suspected |= self._files.read()
        if now < self._next_look or self.due() is None:
            return
        self._next_look = now + _LOOK
        if self._names_suspected and self._dns is not None:
            before = self._dns.report
            report = self._dns.look(now)
            self._files.set(self._dns.watch_paths)
            if report != before and report.error:
                self._log.warning(report.error)
        # What failed may pass without a file's news of it, as a resolver's restart does.
        self._names_suspected = self._dns is not None and self._dns.pending
        suspected, self._suspected = self._suspected, set()
        if not suspected:
            return
        try:
            repairs = self._repair(Loss.FIREWALL in suspected)
        except QvpnError as error:
            self._suspected |= suspected
            self._next_look = now + _TRUCE
            self._log.warning(f"not put back: {error}")
            return
        if repairs:
            self._repairs += repairs
            self._repaired.append(now)
            self._log.warning(f"put back {repairs} things that another program had removed")
            if len(self._repaired) == _MAX_REPAIRS and now - self._repaired[0] < _PERIOD:
                self._next_look = now + _TRUCE

    def _repair(self, firewall: bool) -> int:
        repairs = 0
        if firewall and self._kill_switch is not None:
            if ("inet", KILL_SWITCH_NFT_TABLE) not in nft.tables():
                killswitch.install(self._kill_switch)
                repairs += 1
        return repairs + self._network.repair()


def unlock(directory: RunDirectory, log: Log) -> tuple[str, ...]:
    """Undo whatever a dead session left, its kill switch and a stored one; the failures.

    The caller holds the lock.
    """
    journal = Journal(directory, log)
    failed = undo.run((*_lost_records(log), *journal.left_behind()))
    journal.undone([record for record, _ in reversed(failed)])
    failures = [str(error) for _, error in failed]
    try:
        killswitch.unlock()
    except QvpnError as error:
        failures.append(str(error))
    return tuple(failures)


def boot(log: Log) -> None:
    """What a reboot or a power failure left: a lasting kill switch stands, files are as before.

    Raises NetworkSetupFailed.
    """
    killswitch.release()
    for _, error in undo.run(_lost_records(log)):
        log.warning(f"not undone: {error}")


def _lost_records(log: Log) -> tuple[Record, ...]:
    """What outlived a reboot, which the journal does not."""
    try:
        return dns.leftovers()
    except QvpnError as error:
        log.warning(str(error))
        return ()


def _dns_state(keeper: DnsKeeper) -> protocol.DnsState:
    report = keeper.report
    return protocol.DnsState(report.backend, report.reason, report.error)
