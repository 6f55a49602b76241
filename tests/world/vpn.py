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
from ipaddress import ip_interface
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from qvpn_core.client.profiles import parse_gateway
from qvpn_server.credentials import new_token, token_hash
from qvpn_server.registry import Registry
from tests.world import plan
from tests.world.namespaces import Namespace
from tests.world.snapshot import snapshot
from tests.world.topology import World

BIN: Final = Path(sys.executable).parent
GATEWAY_PORT: Final = 443
#: Pools for a gateway whose addresses inside a test must know, and its own address in each.
POOL4: Final = "10.86.0.0/16"
POOL6: Final = "fd86:9484::/64"
INSIDE: Final = {4: "10.86.0.1", 6: "fd86:9484::1"}
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
        """Create the gateway's state; it listens on both of its addresses.

        Its resolvers are the company's, unless `options` name others.
        """
        if "--dns" not in options:
            options = ("--dns", plan.COMPANY_DNS.v4, plan.COMPANY_DNS.v6, *options)
        self.command("init", "--host", self.address, *options)

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

    def tokens(self, *names: str) -> list[Credentials]:
        """Create many devices as `token` does, without a process for each."""
        like = self.token("like-" + names[0])
        with Registry.open(self.state / "registry.sqlite3") as registry:
            made = [Credentials(name, new_token(), like.gateway, like.pin) for name in names]
            for device in made:
                registry.add_device(device.name, token_hash(device.token), int(time.time()))
        return made

    def status(self) -> dict[str, Any]:
        """What `status --json` prints."""
        status: dict[str, Any] = json.loads(self.command("status", "--json").stdout)
        return status

    def session(self, device: str) -> dict[str, Any] | None:
        """What `peek` says of one device, None while it is not connected."""
        sessions = self.peek().get("sessions", [])
        return next((session for session in sessions if session["device"] == device), None)

    def peek(self) -> dict[str, Any]:
        """As `status`, from the admin socket itself: without the half second of a command.

        Empty when no gateway answers.
        """
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            directory = os.open(self.state, os.O_PATH)  # an address holds only a short path
            try:
                return _ask(sock, f"/proc/self/fd/{directory}/admin.sock", {"command": "status"})
            finally:
                os.close(directory)


class VpnClient:
    """`qvpn` in a namespace, with directories of its own."""

    def __init__(self, host: Namespace, directory: Path) -> None:
        self.host = host
        self.directory = directory
        # A unix socket's path is short (108 bytes): not below a test's deep directory.
        self._runtime = tempfile.TemporaryDirectory(prefix="qvpn-run-")
        self.runtime = Path(self._runtime.name)
        self.config, self.state = directory / "config", directory / "state"
        self.environment = os.environ | {
            "QVPN_CONFIG_DIR": str(self.config),
            "QVPN_STATE_DIR": str(self.state),
            "QVPN_RUNTIME_DIR": str(self.runtime),
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

    def write_profile(
        self, credentials: Credentials, name: str, *, pin: bool = True, ca: Path | None = None
    ) -> Path:
        """Write a profile's file as `add_profile` makes it, without a process, and return it."""
        host, port = parse_gateway(credentials.gateway)
        pins = [credentials.pin] if pin else []
        lines = [
            "[gateway]", f"host = {json.dumps(host)}", f"port = {port}",
            "[credential]", f"token = {json.dumps(credentials.token)}",
            "[trust]", f"pins = {json.dumps(pins)}",
        ]  # fmt: skip
        if ca is not None:
            lines.append(f"ca_file = {json.dumps(str(ca))}")
        file = self.config / "profiles" / f"{name}.toml"
        file.write_text("\n".join(lines))
        return file

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

    def begin(self, *options: str, name: str = "home", **environment: str) -> subprocess.Popen[str]:
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
            reply = _ask(sock, f"{self.runtime}/agent.sock", {"command": "status"})
            status: dict[str, Any] = reply.get("status", {})
            return status

    def address(self, version: int) -> str:
        """The tunnel's own IPv4 or IPv6 address, without its prefix length."""
        found = (ip_interface(address).ip for address in self.peek()["addresses"])
        return next(str(address) for address in found if address.version == version)

    def way(self, destination: str) -> str:
        """What `routes explain` says of an address, in one word: tunnel, direct or refused."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            request = {"command": "explain", "destination": destination}
            way: str = _ask(sock, f"{self.runtime}/agent.sock", request)["way"]
            return way

    def agent(self) -> int | None:
        """The process that holds the tunnel, None when there is none."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            try:
                sock.connect(f"{self.runtime}/agent.sock")
            except (FileNotFoundError, ConnectionRefusedError):
                return None
            credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
            pid: int = struct.unpack("=iII", credentials)[0]
            return pid

    @property
    def log(self) -> str:
        """What agents in the background have logged."""
        file = self.state / "agent.log"
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

    `address` is the one by which the profiles know the gateway, further options are the world's.
    `before` are the snapshots of the client's, the second client's and the gateway's namespace from
    before the first command, by namespace.
    """

    world: World
    gateway: VpnGateway
    clients: tuple[VpnClient, VpnClient]
    before: dict[Namespace, str]

    def __init__(
        self,
        directory: Path,
        *init_options: str,
        address: str = plan.GATEWAY4,
        **world_options: Any,
    ) -> None:
        self._directory = directory
        self._init_options = init_options
        self._address = address
        self._world_options = world_options
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            world = self.world = stack.enter_context(
                World(second_client=True, **self._world_options)
            )
            hosts = (world.client, world.client2, world.gateway)
            self.before = {host: snapshot(host) for host in hosts}
            state = self._directory / "gateway"
            self.gateway = VpnGateway(world.gateway, state, address=self._address)
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
        if hasattr(self.world, "relay"):
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


def own_memory(pid: int) -> int:
    """Bytes of a process's memory that belong to no file: proc_pid_status(5), RssAnon.

    What it has of files comes and goes with who else uses them, and with what the kernel evicts.
    """
    lines = Path("/proc", str(pid), "status").read_text().splitlines()
    [line] = [line for line in lines if line.startswith("RssAnon:")]
    return int(line.split()[1]) * 1024


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

    Network state as before, and soon no process more; AssertionError with the difference otherwise.
    """
    before, running = snapshot(host), processes(host)
    yield
    end = time.monotonic() + within
    while (after := snapshot(host)) != before and time.monotonic() < end:
        time.sleep(0.02)
    changes = difflib.unified_diff(before.splitlines(), after.splitlines(), "before", "after")
    assert after == before, "\n".join(changes)
    # An interpreter needs a moment to end after it has said that all is done.
    until(lambda: not processes(host) - running, f"no process more: {processes(host)}")


def processes(host: Namespace) -> set[str]:
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
