"""The control socket between a running agent and whoever asks it: messages, server, client.

One unix stream socket in the runtime directory, mode 0600; one JSON document per line, a request
answered by a reply, in order; `subscribe` by one reply after the other until the tunnel is over.
Messages are a closed set and carry no secrets; only the socket's owner and root can connect.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path
from typing import Annotated

import msgspec

from qvpn_core.client import paths, profiles
from qvpn_core.client.planner import RouteMode, RoutePolicy
from qvpn_core.client.profiles import Profile, TransportChoice
from qvpn_core.client.states import KillSwitchMode
from qvpn_core.client.status import Status
from qvpn_core.errors import PermissionMissing, QvpnError

_MAX_LINE = 512 << 10  # bytes: as many routes as a plan may have
_MAX_CLIENTS = 16
_IDLE = 30.0  # seconds that a client may stay silent
_SUN_PATH = 107  # bytes of a path that fit sockaddr_un beside its NUL, unix(7)


class StatusRequest(msgspec.Struct, frozen=True, tag="status", tag_field="command"):
    """Answered by StatusReply."""


class DownRequest(msgspec.Struct, frozen=True, tag="down", tag_field="command"):
    """End the tunnel; answered by Done when nothing of it is left."""

    #: Only when this profile is the one connected; null for any.
    profile: str | None = None


class Wish(msgspec.Struct, frozen=True):
    """What `qvpn up` and the app ask for: a tunnel."""

    profile: str
    mode: RouteMode
    destinations: tuple[str, ...]
    excluded: tuple[str, ...]
    kill_switch: KillSwitchMode
    transport: TransportChoice

    @classmethod
    def of(cls, profile: Profile) -> Wish:
        """What a profile asks for."""
        policy = profile.policy
        return cls(
            profile.name,
            policy.mode,
            tuple(map(str, policy.destinations)),
            profiles.excluded_words(policy),
            profile.kill_switch,
            profile.transport,
        )

    def policy(self) -> RoutePolicy:
        """The route policy. Raises UsageError."""
        return profiles.route_policy(self.mode, self.destinations, self.excluded)


class ConnectRequest(msgspec.Struct, frozen=True, tag="connect", tag_field="command"):
    """Connect again while the kill switch blocks, without opening it: StatusReply, how it went."""

    wish: Wish


class ExplainRequest(msgspec.Struct, frozen=True, tag="explain", tag_field="command"):
    """Answered by ExplainReply."""

    #: An IPv4 or IPv6 address.
    destination: str


class SignInRequest(msgspec.Struct, frozen=True, tag="sign-in", tag_field="command"):
    """Let a browser out to the captive portal; answered by SignInReply."""

    #: For so many seconds.
    seconds: Annotated[int, msgspec.Meta(ge=1, le=600)]


class SubscribeRequest(msgspec.Struct, frozen=True, tag="subscribe", tag_field="command"):
    """Answered by a StatusReply now, after every change and every second.

    The connection ends after the tunnel's last status, or when the caller ends it; nothing else can
    be asked on it.
    """


class RoutesRequest(msgspec.Struct, frozen=True, tag="routes", tag_field="command"):
    """Replace the route policy of the running tunnel; answered by Done. The profile stays."""

    mode: RouteMode
    destinations: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()


class KillSwitchRequest(msgspec.Struct, frozen=True, tag="kill-switch", tag_field="command"):
    """Change the kill switch of the running tunnel; answered by Done. The profile stays."""

    mode: KillSwitchMode


class RetryRequest(msgspec.Struct, frozen=True, tag="retry", tag_field="command"):
    """Try again now, while a lost tunnel waits or a kill switch holds; answered by Done."""


class OfferRequest(msgspec.Struct, frozen=True, tag="offer", tag_field="command"):
    """Answered by OfferReply."""


class StatusReply(msgspec.Struct, frozen=True, tag="status", tag_field="reply"):
    """What the tunnel does."""

    status: Status


class ExplainReply(msgspec.Struct, frozen=True, tag="explain", tag_field="reply"):
    """Which way packets to the destination go, why, and the rule that says so."""

    way: str
    rule: str
    words: str


class SignInReply(msgspec.Struct, frozen=True, tag="sign-in", tag_field="reply"):
    """A browser gets out now."""

    #: What to open in it.
    url: str


class OfferReply(msgspec.Struct, frozen=True, tag="offer", tag_field="reply"):
    """What the gateway assigned and advertised; empty without a session."""

    addresses: tuple[str, ...] = ()
    routes: tuple[str, ...] = ()
    #: Bytes of the largest IP packet.
    mtu: int = 0


class Done(msgspec.Struct, frozen=True, tag="done", tag_field="reply"):
    """It is done."""


class Refusal(msgspec.Struct, frozen=True, tag="error", tag_field="reply"):
    """The request failed; the fields of a QvpnError."""

    reason: str
    what: str
    hint: str = ""


#: What depends on what the session is.
Concern = (
    ConnectRequest
    | ExplainRequest
    | SignInRequest
    | RoutesRequest
    | KillSwitchRequest
    | RetryRequest
    | OfferRequest
)
#: What has one answer.
Question = StatusRequest | DownRequest | Concern
Request = Question | SubscribeRequest
Reply = StatusReply | ExplainReply | SignInReply | OfferReply | Done | Refusal
Answer = Callable[[Question], Awaitable[Reply]]
Watch = Callable[[], AsyncGenerator[Status, None]]

_requests = msgspec.json.Decoder(Request)
_replies = msgspec.json.Decoder(Reply)


class RefusedByAgent(QvpnError):
    """The running agent refused a request; carries its words."""

    reason = "agent"

    def __init__(self, what: str, hint: str, cause: str) -> None:
        super().__init__(what, hint)
        #: The slug of the agent's own error.
        self.cause = cause


class AgentSilent(QvpnError):
    """Something holds the control socket but does not answer."""

    reason = "agent-silent"


def refusal(error: QvpnError) -> Refusal:
    """An error as a reply."""
    return Refusal(error.reason, error.what, error.hint)


def socket_path() -> Path:
    """Where the agent of this user listens."""
    return paths.runtime_dir() / "agent.sock"


@asynccontextmanager
async def serve(answer: Answer, watch: Watch) -> AsyncIterator[None]:
    """Answer requests while the block runs; those still pending at its end are answered first.

    `watch` is what subscribers get; it ends by itself when the tunnel is over.

    The caller holds the instance lock, so a socket that lies there is a dead agent's. Raises
    QvpnError when the path is too long for a socket, OSError from bind.
    """
    path = usable_socket_path()
    path.unlink(missing_ok=True)
    clients: set[asyncio.Task[None]] = set()

    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        if len(clients) >= _MAX_CLIENTS:
            writer.close()
            return
        clients.add(task)
        try:
            await _converse(reader, writer, answer, watch)
        finally:
            clients.discard(task)
            writer.close()

    mask = os.umask(0o177)
    try:
        server = await asyncio.start_unix_server(client, path, limit=_MAX_LINE)
    finally:
        os.umask(mask)
    try:
        yield
    finally:
        server.close()
        path.unlink(missing_ok=True)
        if clients:
            # A `down` that waits for the end gets its answer; idle connections are cut.
            _done, idle = await asyncio.wait(clients, timeout=0.2)
            for task in idle:
                task.cancel()
            if idle:
                await asyncio.wait(idle)


async def _converse(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answer: Answer, watch: Watch
) -> None:
    with suppress(ConnectionError, TimeoutError, asyncio.LimitOverrunError, ValueError):
        while line := await _line(reader):
            try:
                request = _requests.decode(line)
                if isinstance(request, SubscribeRequest):
                    await _stream(writer, watch())
                    return
                reply = await answer(request)
            except msgspec.MsgspecError as error:
                reply = Refusal("usage", f"not a request: {error}")
            except QvpnError as error:
                reply = refusal(error)
            writer.write(msgspec.json.encode(reply) + b"\n")
            await writer.drain()


async def _line(reader: asyncio.StreamReader) -> bytes:
    # Not `wait_for`: before Python 3.12 it loses a cancellation that comes together with the line.
    async with asyncio.timeout(_IDLE):
        return await reader.readline()


async def _stream(writer: asyncio.StreamWriter, statuses: AsyncGenerator[Status, None]) -> None:
    """Send each status; who does not take them in time is cut."""
    async with aclosing(statuses):
        async for status in statuses:
            writer.write(msgspec.json.encode(StatusReply(status)) + b"\n")
            async with asyncio.timeout(_IDLE):
                await writer.drain()


def ask(request: Question, *, timeout: float = 15.0) -> Reply | None:
    """Ask the running agent; None when none runs. Blocks up to `timeout` seconds.

    Raises RefusedByAgent with the agent's words, AgentSilent, and PermissionMissing.
    """
    path = usable_socket_path()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(timeout)
        try:
            sock.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return None
        except PermissionError:
            raise PermissionMissing(f"{path} belongs to another user", "use sudo") from None
        try:
            sock.sendall(encode(request))
            with sock.makefile("rb") as file:
                line = file.readline(_MAX_LINE)
        except OSError as error:
            if isinstance(error, ConnectionError) and has_ended():
                return None
            raise silent(error) from None
    if not line and has_ended():
        return None
    return understand(line)


def has_ended() -> bool:
    """Whether nobody listens any more, which is why a connection was cut."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(str(usable_socket_path()))
        except (FileNotFoundError, ConnectionRefusedError):
            return True
        except OSError:
            pass  # so many ask that we would have to wait
    return False


def encode(request: Request) -> bytes:
    """A request as the line that asks it."""
    return msgspec.json.encode(request) + b"\n"


def understand(line: bytes) -> Reply:
    """The reply in a line. Raises RefusedByAgent when it is a refusal, AgentSilent when none."""
    try:
        reply: Reply = _replies.decode(line)
    except msgspec.MsgspecError:
        raise AgentSilent("the running qvpn gave no sensible answer", _KILL) from None
    if isinstance(reply, Refusal):
        raise RefusedByAgent(reply.what, reply.hint, reply.reason)
    return reply


def silent(error: Exception) -> AgentSilent:
    """What to say when the agent's socket fails."""
    return AgentSilent(f"the running qvpn does not answer ({error})", _KILL)


_KILL = "end that process; the network is put back when it dies"


def usable_socket_path() -> Path:
    """The same, once it is known to fit a socket's address. Raises QvpnError."""
    path = socket_path()
    if len(os.fsencode(path)) > _SUN_PATH:
        raise QvpnError(f"{path} is too long for a socket", "set QVPN_RUNTIME_DIR to a shorter one")
    return path
