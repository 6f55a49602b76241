"""Fixtures of the interoperation tests: the third-party program, the network, and a way to start
the one in the other."""

from __future__ import annotations

import fcntl
import json
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.interop.gateway import RESOLVERS, Gateway, command
from tests.interop.network import Network
from tests.interop.program import Peer, Program, StartPeer
from tests.world.namespaces import Namespace, destroy, unavailable

HERE = Path(__file__).parent


def _build(source: Path) -> Path:
    """The Go program in a directory, built unless it is up to date."""
    go = shutil.which("go")
    if go is None:
        pytest.skip("the third-party peer is a Go program, and there is no `go` in PATH")
    program = source / source.name
    # Several test processes, one build. Not on go.mod: `go` itself takes a lock on that.
    with open(source / "main.go", "rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        build = subprocess.run(
            [go, "build", "-o", program.name, "."],
            cwd=source,
            capture_output=True,
            text=True,
        )
    assert build.returncode == 0, build.stderr
    return program


@pytest.fixture(scope="session")
def peer_program() -> Path:
    """The CONNECT-IP client and proxy."""
    return _build(HERE / "connect-ip-peer")


@pytest.fixture(scope="session")
def udp_program() -> Path:
    """The CONNECT-UDP client."""
    return _build(HERE / "connect-udp-peer")


@pytest.fixture
def network() -> Iterator[Network]:
    """A network without a past: the kernel remembers path MTUs for minutes."""
    if reason := unavailable():
        pytest.skip(reason)
    network = Network()
    try:
        network.build()
        yield network
    finally:
        destroy(network.namespaces)


@pytest.fixture
def start_peer(peer_program: Path) -> Iterator[StartPeer]:
    """Start connect-ip-peer in a namespace: ``start_peer(namespace, "client", "-url", ...)``."""
    with ExitStack() as cleanup:

        def start(namespace: Namespace, *arguments: str) -> Peer:
            peer = Peer(namespace, peer_program, *arguments)
            cleanup.callback(peer.close)
            return peer

        yield start


@pytest.fixture
def home() -> Iterator[Path]:
    """A directory with a short name: Unix sockets have no room for a long one."""
    with tempfile.TemporaryDirectory(prefix="qvpn-") as directory:
        yield Path(directory)


@pytest.fixture
def start(network: Network) -> Iterator[Callable[..., Program]]:
    with ExitStack() as cleanup:

        def start(*arguments: Any, **options: Any) -> Program:
            program = Program(*arguments, **options)
            cleanup.callback(program.close)
            return program

        yield start


@pytest.fixture
def gateway(
    request: pytest.FixtureRequest, network: Network, home: Path, start: Callable[..., Program]
) -> Gateway:
    """At 192.0.2.1, or at the address that a test asks for."""
    host = getattr(request, "param", "192.0.2.1")
    listen = f"[{host}]:4433" if ":" in host else f"{host}:4433"
    state = home / "gateway"
    init = ["--host", host, "--listen", listen, "--pool4", "10.97.0.0/24", "--pool6", "fd97::/64"]
    server = command("qvpn-server")
    for arguments in (["init", *init, "--dns", *RESOLVERS], ["token", "laptop", "--json"]):
        verb, *rest = arguments
        done = subprocess.run(
            [server, verb, "--state", str(state), *rest], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
    device = json.loads(done.stdout)
    program = start(network.proxy, [server, "run", "--state", str(state)])
    program.wait_for("listening")
    return Gateway(state, program, f"https://{listen}", device["pin"], device["token"])
