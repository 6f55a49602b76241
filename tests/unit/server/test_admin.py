"""The admin socket: real sockets between a server on a loop and a client in a thread."""

import asyncio
import os
import socket
import stat
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest

from qvpn_core.errors import QvpnError, UsageError
from qvpn_server.admin import MAX_LINE, ask, serve_admin
from qvpn_server.admin_protocol import (
    Failure,
    Reply,
    Request,
    Revoked,
    RevokeRequest,
    StatusRequest,
)
from qvpn_server.statedir import StateDir


def answer(request: Request, uid: int) -> Reply:
    match request:
        case RevokeRequest("nobody"):
            raise UsageError("no device is named nobody", "see the list")
        case RevokeRequest(name):
            return Revoked(name, disconnected=True)
        case _:
            return Failure("not here")


async def in_thread(state: StateDir, request: Request) -> Reply | None:
    return await asyncio.to_thread(ask, state, request)


async def send_raw(state: StateDir, data: bytes) -> bytes:
    reader, writer = await asyncio.open_unix_connection(str(state.path / "admin.sock"))
    try:
        writer.write(data)
        writer.write_eof()
        return await reader.read()
    except ConnectionError:
        return b""  # closed with our bytes unread
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


def test_a_request_gets_its_reply(tmp_path: Path) -> None:
    async def scenario() -> None:
        state = StateDir(tmp_path)
        async with serve_admin(state, answer):
            assert await in_thread(state, RevokeRequest("alice")) == Revoked("alice", True)
            assert stat.S_IMODE((tmp_path / "admin.sock").stat().st_mode) == 0o600
        assert not (tmp_path / "admin.sock").exists()

    asyncio.run(scenario())


def test_a_refusal_keeps_its_words(tmp_path: Path) -> None:
    async def scenario() -> None:
        state = StateDir(tmp_path)
        async with serve_admin(state, answer):
            with pytest.raises(QvpnError, match="no device is named nobody: see the list"):
                await in_thread(state, RevokeRequest("nobody"))

    asyncio.run(scenario())


def test_without_a_gateway_there_is_no_reply(tmp_path: Path) -> None:
    state = StateDir(tmp_path)
    assert ask(state, StatusRequest()) is None
    # What a killed gateway leaves behind:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "admin.sock"))
    assert ask(state, StatusRequest()) is None


def test_the_socket_of_a_killed_gateway_is_replaced(tmp_path: Path) -> None:
    async def scenario() -> None:
        state = StateDir(tmp_path)
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(tmp_path / "admin.sock"))
        async with serve_admin(state, answer):
            assert await in_thread(state, RevokeRequest("alice")) == Revoked("alice", True)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "junk", [b"{}\n", b"\n", b"nonsense\n", b'{"command":"status","x":1', b"[1,2]\n", b"\xff\n"]
)
def test_nonsense_gets_an_error_and_the_next_request_an_answer(tmp_path: Path, junk: bytes) -> None:
    async def scenario() -> None:
        state = StateDir(tmp_path)
        async with serve_admin(state, answer):
            reply = msgspec.json.decode(await send_raw(state, junk), type=Failure)
            assert reply.what.startswith("not an admin request")
            assert await in_thread(state, RevokeRequest("alice")) == Revoked("alice", True)

    asyncio.run(scenario())


def test_an_endless_line_ends_the_connection(tmp_path: Path) -> None:
    async def scenario() -> None:
        state = StateDir(tmp_path)
        async with serve_admin(state, answer):
            assert await send_raw(state, b"x" * (4 * MAX_LINE)) == b""
            assert await in_thread(state, RevokeRequest("alice")) == Revoked("alice", True)

    asyncio.run(scenario())


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")
def test_other_users_get_no_answer(tmp_path: Path) -> None:
    async def scenario() -> None:
        state = StateDir(tmp_path)
        async with serve_admin(state, answer):
            os.chmod(tmp_path / "admin.sock", 0o666)  # even where the modes would let them in
            process = await asyncio.create_subprocess_exec(
                "python3",
                "-c",
                "import socket, sys\n"
                "s = socket.socket(socket.AF_UNIX)\n"
                f"s.connect('/proc/self/fd/{directory}/admin.sock')\n"
                "try:\n"
                '    s.sendall(b\'{"command":"status"}\\n\')\n'
                "    sys.stdout.buffer.write(s.recv(100))\n"
                "except ConnectionError:\n"
                "    pass\n",
                stdout=asyncio.subprocess.PIPE,
                user=65534,
                pass_fds=(directory,),
            )
            output, _ = await process.communicate()
            assert process.returncode == 0
            assert output == b""

    tmp_path.chmod(0o711)
    directory = os.open(tmp_path, os.O_PATH | os.O_DIRECTORY)
    try:
        asyncio.run(scenario())
    finally:
        os.close(directory)
