"""Fixtures of the interoperation tests: the third-party program, the network, and a way to start
the one in the other."""

from __future__ import annotations

import fcntl
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.interop.network import Network
from tests.interop.program import Peer, StartPeer
from tests.world.namespaces import Namespace, destroy, unavailable

PEER_SOURCE = Path(__file__).with_name("connect-ip-peer")


@pytest.fixture(scope="session")
def peer_program() -> Path:
    """The Go program, built from the source beside this file unless it is up to date."""
    go = shutil.which("go")
    if go is None:
        pytest.skip("the third-party peer is a Go program, and there is no `go` in PATH")
    program = PEER_SOURCE / "connect-ip-peer"
    # Several test processes, one build. Not on go.mod: `go` itself takes a lock on that.
    with open(PEER_SOURCE / "main.go", "rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        build = subprocess.run(
            [go, "build", "-o", program.name, "."],
            cwd=PEER_SOURCE,
            capture_output=True,
            text=True,
        )
    assert build.returncode == 0, build.stderr
    return program


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
