"""The gateway as a process in a network namespace: starts, refusals, ends, and what they leave."""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from qvpn_server import cli
from qvpn_server.notify import notify
from qvpn_server.statedir import StateDir
from tests.world.namespaces import Namespace, unavailable
from tests.world.snapshot import snapshot
from tests.world.vpn import own_memory

COMMAND = [sys.executable, "-m", "qvpn_server.cli"]
PATIENCE = 20.0  # seconds, on a busy machine
MAX_MEMORY = 50_000_000  # bytes of a gateway without devices, its own


@pytest.fixture
def host() -> Iterator[Namespace]:
    """A host with nothing but a loopback interface that is up."""
    if reason := unavailable():
        pytest.skip(reason)
    with Namespace("gw") as namespace:
        namespace.set_link("lo", up=True)
        yield namespace


@pytest.fixture
def state(tmp_path: Path) -> StateDir:
    return created(tmp_path / "state")


def created(path: Path, *options: str) -> StateDir:
    init = ["init", "--state", str(path), "--host", "127.0.0.1", "--listen", "127.0.0.1:4433"]
    assert cli.main([*init, *options]) == 0
    return StateDir(path)


class Running:
    """`qvpn-server run` in a namespace."""

    def __init__(self, host: Namespace, state: StateDir, **environment: str) -> None:
        self._process = host.popen(
            [*COMMAND, "run", "--state", str(state.path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | environment,
        )

    @property
    def pid(self) -> int:
        """Of the gateway itself: ip(8) becomes it."""
        return self._process.pid

    def ready(self) -> str:
        """The line that says it is ready."""
        assert self._process.stdout is not None
        assert select.select([self._process.stdout], [], [], PATIENCE)[0]
        return str(self._process.stdout.readline())

    def stop(self, number: int = signal.SIGTERM) -> int:
        self._process.send_signal(number)
        status, _ = self.ended()
        return status

    def ended(self) -> tuple[int, str]:
        """Exit status and stderr, once it has ended."""
        _, errors = self._process.communicate(timeout=PATIENCE)
        return self._process.returncode, errors


def ask(host: Namespace, state: StateDir, *words: str) -> subprocess.CompletedProcess[str]:
    return host.run([*COMMAND, *words, "--state", str(state.path)], check=False)


def one_line(errors: str) -> bool:
    return errors.startswith("qvpn-server: ") and errors.count("\n") == 1


@pytest.mark.netns
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_gateway_leaves_the_machine_as_it_was(
    host: Namespace, state: StateDir, number: signal.Signals
) -> None:
    before = snapshot(host)
    gateway = Running(host, state)
    assert gateway.ready() == "qvpn-server: listening on 127.0.0.1:4433\n"
    assert "qvpns0" in host.ip("link show")
    assert host.sysctl("ipv4/ip_forward") == "1"
    assert ask(host, state, "status").returncode == 0
    assert gateway.stop(number) == 0
    assert snapshot(host) == before
    assert {file.name for file in state.path.iterdir()} == {
        "certificate.pem",
        "gateway.toml",
        "lock",
        "private-key.pem",
        "registry.sqlite3",
    }


@pytest.mark.netns
def test_the_next_start_cleans_up_after_a_kill(host: Namespace, state: StateDir) -> None:
    before = snapshot(host)
    gateway = Running(host, state)
    gateway.ready()
    gateway.stop(signal.SIGKILL)
    assert ask(host, state, "status").stdout.startswith("no gateway runs")
    again = Running(host, state)
    assert "listening" in again.ready()
    assert again.stop() == 0
    assert snapshot(host) == before


@pytest.mark.netns
def test_a_second_gateway_on_the_same_state_or_host_is_refused(
    host: Namespace, state: StateDir, tmp_path: Path
) -> None:
    gateway = Running(host, state)
    gateway.ready()
    during = snapshot(host)
    status, errors = Running(host, state).ended()
    assert status != 0
    assert one_line(errors)
    assert "already runs" in errors
    status, errors = Running(host, created(tmp_path / "other")).ended()
    assert status != 0
    assert one_line(errors)
    assert "qvpns0 is in use" in errors
    assert snapshot(host) == during
    assert gateway.stop() == 0


@pytest.mark.netns
def test_a_port_in_use_is_said_and_nothing_is_left(host: Namespace, state: StateDir) -> None:
    before = snapshot(host)
    with host.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 4433))
        status, errors = Running(host, state).ended()
    assert status != 0
    assert one_line(errors)
    assert "4433" in errors
    assert snapshot(host) == before


@pytest.mark.netns
def test_a_pool_that_overlaps_the_hosts_network_is_refused(
    host: Namespace, state: StateDir
) -> None:
    host.ip("address add 10.86.7.1/24 dev lo")
    before = snapshot(host)
    status, errors = Running(host, state).ended()
    assert status != 0
    assert one_line(errors)
    assert "10.86.0.0/16 overlaps this host's network 10.86.7.0/24" in errors
    assert snapshot(host) == before


# Everything is imported first: the interpreter's files may be root's own.
AS_NOBODY = """
import os, sqlite3, sys, tomllib
import sqlalchemy.dialects.sqlite
from qvpn_server import cli, service
os.setgroups([])
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.netns
def test_without_rights_there_is_one_clear_line() -> None:
    with tempfile.TemporaryDirectory() as directory:
        state = created(Path(directory) / "state")
        for file in (Path(directory), state.path, *state.path.iterdir()):
            os.chown(file, 65534, 65534)
        command = [sys.executable, "-c", AS_NOBODY, "run", "--state", str(state.path)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 1
    expected = "a gateway needs root: run it with sudo, or give it CAP_NET_ADMIN"
    assert done.stderr == f"qvpn-server: {expected}\n"


@pytest.mark.netns
def test_a_foreign_state_directory_is_said_to_be_foreign(state: StateDir) -> None:
    command = [sys.executable, "-c", AS_NOBODY, "list", "--state", str(state.path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode != 0
    assert one_line(done.stderr)
    assert "Permission denied" in done.stderr


@pytest.mark.netns
def test_a_deleted_tun_ends_the_gateway_with_a_reason(host: Namespace, state: StateDir) -> None:
    before = snapshot(host)
    gateway = Running(host, state)
    gateway.ready()
    host.ip("link delete qvpns0")
    status, errors = gateway.ended()
    assert status == 1
    assert "qvpns0 is gone" in errors
    assert "Traceback" not in errors
    assert snapshot(host) == before


@pytest.mark.netns
def test_the_service_manager_is_told_and_memory_stays_small(
    host: Namespace, state: StateDir
) -> None:
    path = state.path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(path))
        manager.settimeout(PATIENCE)
        gateway = Running(host, state, NOTIFY_SOCKET=str(path))
        assert manager.recv(100) == b"READY=1"
        status = json.loads(ask(host, state, "status", "--json").stdout)
        own = own_memory(gateway.pid)
        assert own < MAX_MEMORY
        assert status["memory_bytes"] > own, "with what it has of files"
        assert gateway.stop() == 0
        assert manager.recv(100) == b"STOPPING=1"


def test_notify_reaches_path_and_abstract_sockets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"qvpn-test-{os.getpid()}"
    for bound, announced in [(f"{tmp_path}/n", f"{tmp_path}/n"), (f"\0{name}", f"@{name}")]:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.bind(bound)
            manager.settimeout(PATIENCE)
            monkeypatch.setenv("NOTIFY_SOCKET", announced)
            notify("READY=1")
            assert manager.recv(100) == b"READY=1"
    monkeypatch.delenv("NOTIFY_SOCKET")
    notify("READY=1")
