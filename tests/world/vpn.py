"""The gateway and the client in a world, driven by their commands as a person would drive them.

The only module of the test world that knows qvpn. Every call is bounded in time; what was started
ends with its namespace.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from tests.world import plan
from tests.world.namespaces import Namespace
from tests.world.snapshot import snapshot
from tests.world.topology import World

BIN: Final = Path(sys.executable).parent
GATEWAY_PORT: Final = 443
#: Seconds that a start or an end may take on a busy machine.
PATIENCE: Final = 20.0
#: Seconds in which the end of one side must reach the other: far below the keepalive (10 s) and the
#: idle timeout (30 s), so that only a message can be the cause, and enough for a busy machine.
AT_ONCE: Final = 5.0
#: What no log may contain: a defect of ours, or a task that nobody waited for.
DEFECTS: Final = (
    "Traceback",
    "was destroyed but it is pending",
    "was never awaited",
    "never retrieved",
    "Exception ignored",
    "ResourceWarning",
    "has a defect",
)

T = TypeVar("T")


class CommandFailed(AssertionError):
    """A command that had to succeed did not; the text is what it wrote to stderr."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """What `qvpn-server token --json` prints."""

    name: str
    token: str
    gateway: str
    pin: str


class VpnGateway:
    """`qvpn-server` in a namespace, with a state directory of its own."""

    def __init__(self, host: Namespace, state: Path, *, address: str = plan.GATEWAY4) -> None:
        self.host = host
        self.state = state
        self.address = address
        self.process: subprocess.Popen[Any] | None = None
        self.log = state.with_name(state.name + ".log")

    def command(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run `qvpn-server` with these words and ``--state``."""
        argv = [str(BIN / "qvpn-server"), *words, "--state", str(self.state)]
        return _checked(self.host.run(argv, check=False, timeout=PATIENCE), check)

    def init(self, *options: str) -> None:
        """Create the gateway's state; it listens on both of its addresses."""
        self.command(
            "init", "--host", self.address, "--dns", plan.COMPANY_DNS.v4, plan.COMPANY_DNS.v6,
            *options,
        )  # fmt: skip

    def start(self, **environment: str) -> None:
        """Run the gateway, with more in its environment, and wait until it listens."""
        with self.log.open("ab") as log:
            self.process = self.host.popen(
                [str(BIN / "qvpn-server"), "run", "--state", str(self.state)],
                stdout=subprocess.PIPE,
                stderr=log,
                env=os.environ | environment,
            )
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], PATIENCE)
        line = self.process.stdout.readline() if ready else b""
        if b"listening" not in line:
            raise CommandFailed(f"the gateway did not start: {line!r} {self.log.read_text()}")

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End the gateway with a signal and return its exit status."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(PATIENCE)

    @property
    def running(self) -> bool:
        """Whether the process that `start` made still runs."""
        return self.process is not None and self.process.poll() is None

    def token(self, name: str) -> Credentials:
        """Create a device."""
        printed = json.loads(self.command("token", name, "--json").stdout)
        return Credentials(**printed)

    def status(self) -> dict[str, Any]:
        """What `status --json` prints."""
        status: dict[str, Any] = json.loads(self.command("status", "--json").stdout)
        return status

    def peek(self) -> dict[str, Any]:
        """As `status`, from the admin socket itself: without the half second of a command.

        Empty when no gateway answers.
        """
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            directory = os.open(self.state, os.O_PATH)  # an address holds only a short path
            try:
                return _ask(sock, f"/proc/self/fd/{directory}/admin.sock", {"request": "status"})
            finally:
                os.close(directory)


class VpnClient:
    """`qvpn` in a namespace, with directories of its own."""

    def __init__(self, host: Namespace, directory: Path) -> None:
        self.host = host
        self.directory = directory
        # A unix socket's path is short (108 bytes): not below a test's deep directory.
        self._runtime = tempfile.TemporaryDirectory(prefix="qvpn-run-")
        self.environment = os.environ | {
            "QVPN_CONFIG_DIR": str(directory / "config"),
            "QVPN_STATE_DIR": str(directory / "state"),
            "QVPN_RUNTIME_DIR": self._runtime.name,
        }

    def close(self) -> None:
        """Disconnect if need be and forget everything."""
        self.command("down", check=False)
        self._runtime.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def command(
        self, *words: str, check: bool = True, timeout: float = PATIENCE
    ) -> subprocess.CompletedProcess[str]:
        """Run `qvpn` with these words."""
        argv = [str(BIN / "qvpn"), *words]
        done = self.host.run(argv, check=False, timeout=timeout, env=self.environment)
        return _checked(done, check)

    def add_profile(self, credentials: Credentials, name: str = "home") -> None:
        """Store a profile for a gateway."""
        self.command(
            "profile", "add", name, "--gateway", credentials.gateway,
            "--token", credentials.token, "--pin", credentials.pin,
        )  # fmt: skip

    def up(self, *options: str, name: str = "home") -> None:
        """Connect in the background; returns when connected."""
        self.command("up", name, *options)

    def foreground(self, *options: str, name: str = "home") -> subprocess.Popen[Any]:
        """Connect in a process of one's own and wait until it is connected."""
        process = self.host.popen(
            [str(BIN / "qvpn"), "up", name, "--foreground", *options],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=self.environment,
        )
        self.wait_for("connected")
        return process

    def begin(
        self, *options: str, name: str = "home", **environment: str
    ) -> subprocess.Popen[str]:
        """Start `qvpn up` with these options and do not wait for anything."""
        return self.host.popen(
            [str(BIN / "qvpn"), "up", name, *options],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=self.environment | environment,
        )

    def down(self) -> None:
        """Disconnect."""
        self.command("down")

    def peek(self) -> dict[str, Any]:
        """As `status`, from the control socket itself: without the half second of a command.

        Empty when no agent answers.
        """
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            return _ask(sock, f"{self._runtime.name}/agent.sock", {"command": "status"}).get(
                "status", {}
            )

    def agent(self) -> int | None:
        """The process that holds the tunnel, None when there is none."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            try:
                sock.connect(f"{self._runtime.name}/agent.sock")
            except (FileNotFoundError, ConnectionRefusedError):
                return None
            credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
            pid: int = struct.unpack("=iII", credentials)[0]
            return pid

    @property
    def log(self) -> str:
        """What agents in the background have logged."""
        file = self.directory / "state" / "agent.log"
        return file.read_text() if file.exists() else ""

    def status(self) -> dict[str, Any]:
        """What `status --json` prints."""
        status: dict[str, Any] = json.loads(self.command("status", "--json").stdout)
        return status

    def wait_for(self, state: str, timeout: float = PATIENCE) -> dict[str, Any]:
        """Poll until the client is in `state`; raises CommandFailed when it never is."""
        end = time.monotonic() + timeout
        while (status := self.status())["state"] != state:
            if time.monotonic() > end:
                raise CommandFailed(f"not {state} within {timeout} seconds: {status}")
            time.sleep(0.05)
        return status


def _checked(
    done: subprocess.CompletedProcess[str], check: bool
) -> subprocess.CompletedProcess[str]:
    if check and done.returncode:
        raise CommandFailed(f"{' '.join(done.args)}: {done.stderr.strip() or done.stdout.strip()}")
    return done


class Vpn:
    """A world with a gateway that runs, and two clients with one profile each, ``home``.

    `before` are the snapshots of the client's, the second client's and the gateway's namespace from
    before the first command, by namespace.
    """

    world: World
    gateway: VpnGateway
    clients: tuple[VpnClient, VpnClient]
    before: dict[Namespace, str]

    def __init__(self, directory: Path, *init_options: str) -> None:
        self._directory = directory
        self._init_options = init_options
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            world = self.world = stack.enter_context(World(second_client=True))
            hosts = (world.client, world.client2, world.gateway)
            self.before = {host: snapshot(host) for host in hosts}
            self.gateway = VpnGateway(world.gateway, self._directory / "gateway")
            self.gateway.init(*self._init_options)
            self.gateway.start()
            first, second = (
                stack.enter_context(VpnClient(host, self._directory / name))
                for host, name in ((world.client, "first"), (world.client2, "second"))
            )
            self.clients = first, second
            for client in self.clients:
                client.add_profile(self.gateway.token(client.directory.name))
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def settle(self) -> None:
        """For the end of a test, also of one that failed: no client is up, the gateway runs."""
        self.world.relay.clear()
        for client in self.clients:
            if client.agent() is not None:
                client.command("down", check=False)
        if not self.gateway.running:
            self.gateway.start()

    def check_logs(self) -> None:
        """Raises AssertionError when a log of either end shows a defect."""
        no_defects(self.gateway.log.read_text())
        for client in self.clients:
            no_defects(client.log)


def no_defects(log: str) -> None:
    """Raises AssertionError, with the whole log, when one of DEFECTS is in it."""
    found = [words for words in DEFECTS if words in log]
    assert not found, f"{found} in the log:\n{log}"


def until(condition: Callable[[], T], what: str, timeout: float = PATIENCE) -> T:
    """Poll until `condition()` is true and return that; AssertionError with `what` otherwise."""
    end = time.monotonic() + timeout
    while not (found := condition()):
        assert time.monotonic() < end, f"not within {timeout} seconds: {what}"
        time.sleep(0.01)
    return found


@contextlib.contextmanager
def leaves_nothing(host: Namespace, within: float = 0.0) -> Iterator[None]:
    """What is done inside leaves no trace in `host`, at the latest `within` seconds after it.

    No network state and no process, that is; AssertionError with the difference otherwise.
    """
    before, processes = snapshot(host), _processes(host)
    yield
    end = time.monotonic() + within
    while (after := snapshot(host)) != before or (running := _processes(host)) - processes:
        if time.monotonic() > end:
            changes = list(
                difflib.unified_diff(before.splitlines(), after.splitlines(), "before", "after")
            )
            assert not changes, "\n".join(changes)
            raise AssertionError(f"still running: {running - processes}")
        time.sleep(0.02)


def _processes(host: Namespace) -> set[str]:
    """The processes in a namespace: number and command line."""
    done = subprocess.run(
        ["ip", "netns", "pids", host.name], capture_output=True, text=True, check=True
    )
    found = set()
    for pid in done.stdout.split():
        with contextlib.suppress(OSError):
            line = Path("/proc", pid, "cmdline").read_bytes().replace(b"\0", b" ").decode()
            if line:  # one that has none has ended and waits for its parent
                found.add(f"{pid} {line}")
    return found


def _ask(sock: socket.socket, address: str, request: dict[str, str]) -> dict[str, Any]:
    """One line to a unix socket and one back, both JSON; empty when nobody answers."""
    sock.settimeout(PATIENCE)
    try:
        sock.connect(address)
        sock.sendall(json.dumps(request).encode() + b"\n")
        with sock.makefile("rb") as lines:
            answer = lines.readline()
    except OSError:
        return {}
    parsed: dict[str, Any] = json.loads(answer) if answer else {}
    return parsed
