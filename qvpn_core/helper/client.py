"""A client's half of the helper: requests to await, on any asyncio event loop that has readers.

Requests are answered in order, also those whose caller was cancelled. Nothing is undone here: the
helper does that when it is closed, or when this process is gone.
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections import deque
from contextlib import suppress
from typing import Final, Literal, Self, TypeVar

from qvpn_core.errors import (
    DnsSetupFailed,
    GatewayUnreachable,
    NetworkSetupFailed,
    PermissionMissing,
    ProtocolViolation,
    QvpnError,
    TunUnavailable,
)
from qvpn_core.helper import launch, protocol, wire
from qvpn_core.helper.errors import (
    HelperEnded,
    HelperFailed,
    HelperLost,
    HelperVersion,
    NetworkTaken,
    NotAllowed,
)
from qvpn_core.helper.protocol import MAX_MESSAGE, DnsState, ProtocolError, Reply, Request
from qvpn_core.net.dns.plan import DnsPlan
from qvpn_core.net.plan import KillSwitch, NetworkPlan
from qvpn_core.net.tun import Tun

#: Seconds for one request: nft, netlink and a resolver that is asked to change, all slow.
_REQUEST: Final = 60.0
#: Seconds from the last word to the end of the process.
_END: Final = 5.0
_DESCRIPTOR: Final = socket.CMSG_SPACE(4)
_ERRORS: Final[dict[str, type[QvpnError]]] = {
    error.reason: error
    for error in (
        DnsSetupFailed,
        GatewayUnreachable,
        HelperVersion,
        NetworkSetupFailed,
        NetworkTaken,
        NotAllowed,
        PermissionMissing,
        ProtocolViolation,
        TunUnavailable,
    )
}

_Reply = TypeVar("_Reply", bound=Reply)
_Waiting = asyncio.Future[tuple[Reply, "int | None"]]


class Helper:
    """A running helper. Every request may raise HelperLost and HelperEnded, beside its own."""

    def __init__(self, process: subprocess.Popen[bytes], channel: socket.socket) -> None:
        self._loop = asyncio.get_running_loop()
        self._process = process
        self._channel = channel
        self._waiting: deque[_Waiting] = deque()
        self._answered = asyncio.Event()
        #: The exit status, and what was written to stderr.
        self._exited: asyncio.Future[tuple[int, str]] = self._loop.create_future()
        #: Why no request is answered any more, once that is so.
        self.lost: asyncio.Future[QvpnError] = self._loop.create_future()
        self._exit = os.pidfd_open(process.pid)
        self._loop.add_reader(self._exit, self._on_exit)
        self._loop.add_reader(channel.fileno(), self._readable)

    @classmethod
    async def start(cls) -> Self:
        """Start one, which may ask the user for a password, and wait until the network is ours.

        Raises what :mod:`qvpn_core.helper.errors` has: it is missing, denied, or the network taken.
        A cancellation ends what was started.
        """
        helper = cls(*launch.spawn())
        try:
            # A person who is asked takes as long as they take.
            await helper._ask(protocol.Hello(protocol.VERSION), protocol.Welcome, None)
        except HelperLost:
            status, words = await helper._end()
            raise await asyncio.to_thread(launch.refusal, status, words) from None
        except BaseException:
            with suppress(ProcessLookupError, PermissionError):
                helper._process.terminate()  # pkexec may still wait for a password
            await helper._end()
            raise
        launch.words_of(helper._process)  # none come any more
        return helper

    async def open_tun(self, mtu: int) -> Tun:
        """The tunnel's device, for packets of up to `mtu` bytes.

        Raises TunUnavailable, NetworkSetupFailed.
        """
        opened, descriptor = await self._request(protocol.OpenTun(mtu), protocol.Opened)
        if descriptor is None:
            raise self._broken("a device without a descriptor")
        return Tun(descriptor, opened.name)

    async def open_socket(self, family: int, kind: int) -> socket.socket:
        """A :data:`qvpn_core.transport.dial.SocketFactory`: its packets do not enter the tunnel.

        Raises GatewayUnreachable without this address family.
        """
        version: Literal["ipv4", "ipv6"] = "ipv6" if family == socket.AF_INET6 else "ipv4"
        proto: Literal["udp", "tcp"] = "tcp" if kind == socket.SOCK_STREAM else "udp"
        _, descriptor = await self._request(protocol.OpenSocket(version, proto), protocol.Done)
        if descriptor is None:
            raise self._broken("a socket without a descriptor")
        return socket.socket(fileno=descriptor)

    async def apply(self, network: NetworkPlan, dns: DnsPlan | None) -> DnsState | None:
        """Change to these plans; how names are resolved then. Idempotent.

        Raises NetworkSetupFailed, TunUnavailable.
        """
        request = protocol.Apply(
            wire.pack_network(network), None if dns is None else wire.pack_dns(dns)
        )
        applied, _ = await self._request(request, protocol.Applied)
        return applied.dns

    async def detach(self) -> None:
        """Undo the plans and give up the device; the kill switch stays. Idempotent.

        Raises NetworkSetupFailed for what could not be undone.
        """
        await self._request(protocol.Detach(), protocol.Done)

    async def set_firewall(self, plan: KillSwitch | None) -> None:
        """Change to this kill switch, or to none. Raises NetworkSetupFailed."""
        packed = None if plan is None else wire.pack_kill_switch(plan)
        await self._request(protocol.SetFirewall(packed), protocol.Done)

    async def sign_in(self, seconds: int) -> None:
        """Let this user reach a captive portal despite the kill switch. NetworkSetupFailed."""
        await self._request(protocol.SignIn(seconds), protocol.Done)

    async def report(self) -> protocol.Reported:
        """What is in force."""
        reported, _ = await self._request(protocol.Report(), protocol.Reported)
        return reported

    async def close(self) -> None:
        """Undo everything and end. Idempotent. Raises NetworkSetupFailed for what stays."""
        failures: tuple[str, ...] = ()
        try:
            if not self.lost.done():
                closed, _ = await self._request(protocol.Close(), protocol.Closed)
                failures = closed.failures
        except (HelperLost, HelperEnded):
            pass  # it undoes everything then, too
        finally:
            await self._end()
        if failures:
            raise NetworkSetupFailed(f"the network was not restored whole: {failures[0]}")

    async def rest(self) -> bool:
        """As `close`, but stay for `resume` if polkit keeps permissions; whether it does.

        Raises NetworkSetupFailed for what stays; it has ended then.
        """
        resting = False
        failures: tuple[str, ...] = ()
        try:
            if not self.lost.done():
                closed, _ = await self._request(protocol.Rest(), protocol.Closed)
                resting, failures = closed.resting, closed.failures
        except (HelperLost, HelperEnded):
            pass  # it undoes everything then, too
        finally:
            if not resting:
                await self._end()
        if failures:
            raise NetworkSetupFailed(f"the network was not restored whole: {failures[0]}")
        return resting

    async def resume(self) -> None:
        """Have the network again after `rest`. Raises as `start` does; it has ended then."""
        try:
            await self._ask(protocol.Hello(protocol.VERSION), protocol.Welcome, _REQUEST)
        except BaseException:
            await self._end()
            raise

    async def hang_up(self) -> None:
        """End a helper that rests. Idempotent."""
        await self._end()

    # -- the socket

    async def _request(self, request: Request, kind: type[_Reply]) -> tuple[_Reply, int | None]:
        return await self._ask(request, kind, _REQUEST)

    async def _ask(
        self, request: Request, kind: type[_Reply], timeout: float | None
    ) -> tuple[_Reply, int | None]:
        data = protocol.encode(request)
        try:
            async with asyncio.timeout(timeout):
                await self._send(data)
                waiting: _Waiting = self._loop.create_future()
                self._waiting.append(waiting)
                reply, descriptor = await waiting
        except TimeoutError:
            raise self._broken("it does not answer") from None
        if isinstance(reply, kind):
            return reply, descriptor
        if descriptor is not None:
            os.close(descriptor)
        if isinstance(reply, protocol.Failed):
            raise _ERRORS.get(reply.reason, HelperFailed)(reply.what, reply.hint)
        raise self._broken("it answers something else")

    async def _send(self, data: bytes) -> None:
        while True:
            if self.lost.done():
                raise self.lost.result()
            try:
                self._channel.send(data)
            except BlockingIOError:
                # Its buffer holds requests that nobody waits for any more.
                self._answered.clear()
                await self._answered.wait()
            except OSError as error:
                raise self._broken(str(error.strerror)) from None
            else:
                return

    def _readable(self) -> None:
        while not self.lost.done():
            try:
                data, ancillary, _, _ = self._channel.recvmsg(
                    MAX_MESSAGE, _DESCRIPTOR, socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                return
            except OSError:
                data, ancillary = b"", []
            descriptor = _descriptor(ancillary)
            if not data:
                self._broken("it is gone")
                return
            try:
                self._deliver(protocol.decode_reply(data), descriptor)
            except ProtocolError as error:
                self._broken(str(error))

    def _deliver(self, reply: Reply, descriptor: int | None) -> None:
        waiting: _Waiting | None = None
        if isinstance(reply, protocol.Goodbye):
            self._lose(HelperEnded("the tunnel was ended by root, or by qvpn unlock"))
        elif self._waiting:
            waiting = self._waiting.popleft()
            self._answered.set()
        else:
            raise ProtocolError("a reply to nothing")
        if waiting is not None and not waiting.done():
            waiting.set_result((reply, descriptor))
        elif descriptor is not None:
            os.close(descriptor)

    def _broken(self, why: str) -> QvpnError:
        """Nothing can be asked any more. Returns the reason, to be raised."""
        self._lose(HelperLost(f"the helper of qvpn is lost: {why}", "see the system's log"))
        return self.lost.result()

    def _lose(self, error: QvpnError) -> None:
        if self.lost.done():
            return
        self.lost.set_result(error)
        self._loop.remove_reader(self._channel.fileno())
        self._channel.close()  # which makes it undo everything, if it still lives
        self._answered.set()
        while self._waiting:
            waiting = self._waiting.popleft()
            if not waiting.done():
                waiting.set_exception(error)

    # -- the process

    async def _end(self) -> tuple[int, str]:
        """Hang up and wait for the process: its exit status, -1 when it does not end, and words."""
        self._broken("it was closed")
        with suppress(TimeoutError):
            async with asyncio.timeout(_END):
                return await asyncio.shield(self._exited)
        return -1, ""

    def _on_exit(self) -> None:
        self._loop.remove_reader(self._exit)
        os.close(self._exit)
        self._exited.set_result((self._process.wait(), launch.words_of(self._process)))


def _descriptor(ancillary: list[tuple[int, int, bytes]]) -> int | None:
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            return int.from_bytes(data[:4], sys.byteorder)
    return None
