"""The control socket: who may ask, what is answered, and what rubbish does."""

from __future__ import annotations

import asyncio
import os
import select
import socket
import stat
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, suppress
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from qvpn_core.client import control, instance, remote
from qvpn_core.client.states import State
from qvpn_core.client.status import Status
from qvpn_core.errors import QvpnError, UsageError

STATUS = Status(state=State.CONNECTED, profile="home", drops={"queue-full": 2})


@pytest.fixture(autouse=True)
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("QVPN_RUNTIME_DIR", str(tmp_path))
    return tmp_path


async def answer(request: control.Question) -> control.Reply:
    match request:
        case control.StatusRequest():
            return control.StatusReply(STATUS)
        case control.DownRequest():
            raise UsageError("cannot", "try otherwise")
        case control.ExplainRequest(destination):
            return control.ExplainReply("tunnel", "0.0.0.0/0", f"{destination} uses the tunnel")
        case control.RoutesRequest() | control.RetryRequest() | control.KillSwitchRequest("on"):
            return control.Done()


async def watch() -> AsyncGenerator[Status, None]:
    """A tunnel with more routes than a line of `ask` holds, which then is over."""
    yield replace(STATUS, routes=tuple(f"2001:db8:{number:x}::/48" for number in range(4096)))
    yield replace(STATUS, state=State.DISCONNECTED)


def with_server(client: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        async with control.serve(answer, watch):
            await asyncio.wait_for(client(), 10)

    asyncio.run(main())


def test_every_request_has_its_reply() -> None:
    async def client() -> None:
        assert await asyncio.to_thread(control.ask, control.StatusRequest()) == control.StatusReply(
            STATUS
        )
        reply = await asyncio.to_thread(control.ask, control.ExplainRequest("192.0.2.1"))
        assert isinstance(reply, control.ExplainReply)
        assert reply.words == "192.0.2.1 uses the tunnel"

    with_server(client)


def test_a_subscriber_hears_every_status_and_the_end() -> None:
    async def client() -> None:
        heard = [status async for status in remote.follow()]
        assert [status.state for status in heard] == [State.CONNECTED, State.DISCONNECTED]
        assert len(heard[0].routes) == 4096

    with_server(client)


def test_a_subscriber_that_leaves_is_forgotten() -> None:
    async def client() -> None:
        for _ in range(40):  # more than may be connected at once
            async with aclosing(remote.follow()) as statuses:
                assert await anext(statuses)

    with_server(client)


def test_without_an_agent_there_is_nothing_to_follow_and_nobody_to_ask() -> None:
    async def main() -> None:
        assert [status async for status in remote.follow()] == []
        assert await remote.ask(control.StatusRequest()) is None

    asyncio.run(main())


def test_from_a_loop_one_asks_the_same() -> None:
    async def client() -> None:
        assert await remote.ask(control.StatusRequest()) == control.StatusReply(STATUS)
        assert await remote.ask(control.RoutesRequest("all")) == control.Done()
        assert await remote.ask(control.KillSwitchRequest("on")) == control.Done()
        with pytest.raises(control.RefusedByAgent, match=r"^cannot: try otherwise$"):
            await remote.ask(control.DownRequest())

    with_server(client)


def test_an_error_of_the_agent_arrives_in_its_words() -> None:
    async def client() -> None:
        with pytest.raises(control.RefusedByAgent, match=r"^cannot: try otherwise$"):
            await asyncio.to_thread(control.ask, control.DownRequest())

    with_server(client)


def test_nobody_answers_when_nothing_runs_even_over_a_dead_socket(runtime: Path) -> None:
    assert control.ask(control.StatusRequest()) is None
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(runtime / "agent.sock"))
    assert control.ask(control.StatusRequest()) is None


@pytest.mark.parametrize("reads", [True, False])
def test_an_agent_that_ends_in_this_moment_does_not_run(runtime: Path, reads: bool) -> None:
    async def main() -> None:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(runtime / "agent.sock"))
            listener.listen()
            asking = [
                asyncio.create_task(asyncio.to_thread(control.ask, control.StatusRequest())),
                asyncio.create_task(remote.ask(control.StatusRequest())),
            ]
            ended = []
            for _ in asking:
                connection, _ = await asyncio.to_thread(listener.accept)
                if reads:
                    await asyncio.to_thread(connection.recv, 1024)
                else:  # with the request unread, the end is a reset
                    await asyncio.to_thread(select.select, [connection], [], [])
                ended.append(connection)
        for connection in ended:
            connection.close()
        assert await asyncio.wait_for(asyncio.gather(*asking), 10) == [None, None]

    asyncio.run(main())


def test_an_agent_that_hangs_up_and_goes_on_is_told_from_one_that_ended(runtime: Path) -> None:
    async def main() -> None:
        server = await asyncio.start_unix_server(
            lambda _reader, writer: writer.close(), runtime / "agent.sock"
        )
        async with server:
            with pytest.raises(control.AgentSilent):
                await asyncio.to_thread(control.ask, control.StatusRequest())
            with pytest.raises(control.AgentSilent):
                await remote.ask(control.StatusRequest())

    asyncio.run(main())


def test_the_socket_is_for_its_owner_and_goes_with_the_server(runtime: Path) -> None:
    (runtime / "agent.sock").touch()  # what a killed agent left

    async def client() -> None:
        mode = (runtime / "agent.sock").stat().st_mode
        assert stat.S_ISSOCK(mode)
        assert stat.S_IMODE(mode) == 0o600

    with_server(client)
    assert not (runtime / "agent.sock").exists()


@pytest.mark.parametrize(
    "line",
    [b"rubbish\n", b"{}\n", b'{"command":"format-disk"}\n', b'{"command":"explain"}\n', b"\xff\n"],
)
def test_rubbish_is_refused_and_the_next_request_is_still_answered(line: bytes) -> None:
    async def client() -> None:
        reader, writer = await asyncio.open_unix_connection(control.socket_path())
        writer.write(line + b'{"command":"status"}\n')
        refused = msgspec.json.decode(await reader.readline())
        assert refused["reply"] == "error"
        assert "\n" not in refused["what"]
        assert msgspec.json.decode(await reader.readline())["status"]["profile"] == "home"
        writer.close()

    with_server(client)


def test_an_endless_line_ends_the_connection_and_nothing_else() -> None:
    async def client() -> None:
        reader, writer = await asyncio.open_unix_connection(control.socket_path())
        writer.write(b"x" * (1 << 20))
        with suppress(ConnectionError):
            assert await reader.read() == b""
        writer.close()
        assert await asyncio.to_thread(control.ask, control.StatusRequest()) is not None

    with_server(client)


def test_too_many_clients_are_turned_away() -> None:
    async def client() -> None:
        connections = [await asyncio.open_unix_connection(control.socket_path()) for _ in range(20)]
        reader, _ = connections[-1]
        assert await reader.read(1) == b""
        for _, writer in connections:
            writer.close()

    with_server(client)


def test_a_path_too_long_for_a_socket_is_told(
    runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QVPN_RUNTIME_DIR", str(runtime / ("x" * 100)))
    with pytest.raises(QvpnError, match="too long for a socket: set QVPN_RUNTIME_DIR"):
        control.ask(control.StatusRequest())


def test_a_second_instance_is_refused_until_the_first_is_gone() -> None:
    with instance.single_instance():
        with pytest.raises(UsageError, match="up already"), instance.single_instance():
            pass
        assert not instance.wait_until_gone(0.02)
    assert instance.wait_until_gone(0.0)


def test_the_lock_dies_with_its_process_and_is_not_inherited(runtime: Path) -> None:
    with instance.single_instance():
        descriptor = max(int(name) for name in os.listdir("/proc/self/fd"))
        locks = [
            number
            for number in range(descriptor + 1)
            if _target(number) == str(runtime / "agent.lock")
        ]
        assert locks
        assert not any(os.get_inheritable(number) for number in locks)


def _target(descriptor: int) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}")
    except OSError:
        return ""


def test_a_failure_is_remembered_until_it_is_forgotten() -> None:
    assert instance.last_failure() is None
    failed = Status(state=State.FAILED, profile="home", reason="unreachable", error="no answer")
    instance.keep_failure(failed)
    assert instance.last_failure() == failed
    instance.forget_failure()
    assert instance.last_failure() is None
