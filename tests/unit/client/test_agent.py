"""``qvpn up`` against gateways that do not answer: the real agent, the real kernel, no traces.

Against gateways that do, see tests/integration.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(
        os.geteuid() != 0 or shutil.which("ip") is None, reason="needs root and iproute2"
    ),
]

_number = itertools.count()
#: Holds a UDP port without ever answering; says when it is ready.
SILENCE = (
    "import socket,sys,time; s=socket.socket(socket.AF_INET,socket.SOCK_DGRAM);"
    "s.bind(('127.0.0.1',4433)); print('ready',flush=True); sys.stdin.read()"
)


class Machine:
    """A network namespace with nothing but loopback, and one user's directories."""

    def __init__(self, name: str, directory: Path) -> None:
        self.name = name
        self.log = directory / "state" / "agent.log"
        self.environment = {
            **os.environ,
            "QVPN_CONFIG_DIR": str(directory / "config"),
            "QVPN_STATE_DIR": str(directory / "state"),
            "QVPN_RUNTIME_DIR": str(directory / "run"),
        }

    def command(self, *command: str) -> list[str]:
        return ["ip", "netns", "exec", self.name, *command]

    def popen(self, *command: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command(*command),
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def start_qvpn(self, *arguments: str) -> subprocess.Popen[str]:
        return self.popen(sys.executable, "-m", "qvpn_core.client.cli", *arguments)

    def qvpn(self, *arguments: str) -> tuple[int, str, str]:
        process = self.start_qvpn(*arguments)
        out, err = process.communicate(timeout=60)
        return process.returncode, out, err

    def network(self) -> str:
        """What qvpn could have changed."""
        shown = ""
        for query in ("-4 rule", "-6 rule", "-br link", "-4 route show table all"):
            command = self.command("ip", *query.split())
            shown += subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return shown


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    name = f"qv-agent-{os.getpid()}-{next(_number)}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)
        machine = Machine(name, tmp_path)
        added = machine.qvpn(
            "profile", "add", "home", "--gateway", "127.0.0.1:4433", "--token", "t"
        )
        assert added[0] == 0, added
        yield machine
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)


@pytest.fixture
def silence(machine: Machine) -> Iterator[None]:
    process = machine.popen(sys.executable, "-c", SILENCE)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    yield
    process.communicate("")


def until_connecting(machine: Machine) -> None:
    """Wait until the agent says on its control socket that it tries."""
    deadline = time.monotonic() + 30
    while json.loads(machine.qvpn("status", "--json")[1])["state"] != "connecting":
        assert time.monotonic() < deadline


@pytest.mark.parametrize("options", [[], ["--foreground"]], ids=["detached", "foreground"])
def test_nothing_listens(machine: Machine, options: list[str]) -> None:
    before = machine.network()
    status, out, err = machine.qvpn("up", "home", *options)
    assert (status, out) == (1, "")
    assert err.splitlines()[-1].startswith("qvpn: nothing answers at 127.0.0.1:4433")
    assert options or err.count("\n") == 1
    assert machine.network() == before

    failed = json.loads(machine.qvpn("status", "--json")[1])
    assert (failed["state"], failed["reason"]) == ("failed", "unreachable")
    machine.qvpn("down")
    assert json.loads(machine.qvpn("status", "--json")[1])["state"] == "disconnected"


@pytest.mark.usefixtures("silence")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interrupting_up_ends_the_agent_too(machine: Machine, number: signal.Signals) -> None:
    before = machine.network()
    up = machine.start_qvpn("up", "home")
    until_connecting(machine)
    up.send_signal(number)
    _, err = up.communicate(timeout=30)
    assert (up.returncode, err) == (130, "qvpn: interrupted\n")
    assert json.loads(machine.qvpn("status", "--json")[1])["state"] == "disconnected"
    assert machine.network() == before


@pytest.mark.usefixtures("silence")
def test_while_one_connects_a_second_is_refused_and_down_ends_the_first(machine: Machine) -> None:
    up = machine.start_qvpn("up", "home")
    until_connecting(machine)

    # Both together, for the attempt lasts for seconds only.
    second, other = machine.start_qvpn("up", "home"), machine.start_qvpn("down", "work")
    _, err = second.communicate(timeout=30)
    assert second.returncode == 2
    assert err == "qvpn: profile 'home' is connecting already: end it first: qvpn down\n"
    _, err = other.communicate(timeout=30)
    assert other.returncode == 1
    assert err == "qvpn: profile 'work' is not up, 'home' is: qvpn down home\n"

    assert machine.qvpn("down", "home") == (0, "", "")
    _, err = up.communicate(timeout=30)
    assert (up.returncode, err) == (1, "qvpn: it was ended before it was connected\n")
    assert "connecting" in machine.log.read_text()


@pytest.mark.usefixtures("silence")
def test_a_killed_agent_is_no_obstacle(machine: Machine) -> None:
    up = machine.start_qvpn("up", "home")
    until_connecting(machine)
    children = Path(f"/proc/{up.pid}/task/{up.pid}/children").read_text().split()
    assert len(children) == 1, "ip netns exec became qvpn, whose only child is the agent"
    os.kill(int(children[0]), signal.SIGKILL)
    _, err = up.communicate(timeout=30)
    assert up.returncode == 1
    assert err == f"qvpn: the qvpn process ended without a word: see {machine.log}\n"
    assert json.loads(machine.qvpn("status", "--json")[1])["state"] == "disconnected"
    assert machine.qvpn("down")[0] == 0
