"""Two network namespaces joined by a veth pair, and the processes that run in them.

A :class:`Lab` lives for one peer's turn. Leaving it ends every process it started, by process ID,
and deletes both namespaces, whatever went wrong in between; when the benchmark itself is killed,
the kernel ends the processes (PR_SET_PDEATHSIG) and the next benchmark deletes the rest. It knows
nothing about tunnels and sends nothing outside its namespaces.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import re
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

# RFC 2544's range for benchmarks: never routed, so nothing real can be reached by mistake.
CLIENT_OUTER = "198.18.0.2"
GATEWAY_OUTER = "198.18.0.1"
#: The measured host: on the gateway's loopback, so that it is reached only through the tunnel.
TARGET = "198.18.100.1"
LINK_MTU = 1500
LINK = "wan0"

_CLONE_NEWNET = 0x40000000  # linux/sched.h
_NETNS = Path("/run/netns")
_PREFIX = "qvb"
_numbers = itertools.count()


class LabError(Exception):
    """A command failed or took too long; the message is one line."""


def last_line(text: str) -> str:
    """The last line of a program's output that says anything."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no output"


def execute(
    argv: Sequence[str],
    *,
    timeout: float = 10.0,
    stdin: str | None = None,
    env: Mapping[str, str] | None = None,
) -> str:
    """Run a command to its end within `timeout` seconds; its stdout, or LabError."""
    inner = argv[argv.index("--") + 1 :] if argv[0] == "nsenter" else argv
    shown = " ".join([Path(inner[0]).name, *inner[1:2]])
    try:
        done = subprocess.run(
            argv,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout,
            env={**os.environ, **(env or {})},
        )
    except subprocess.TimeoutExpired:
        raise LabError(f"{shown} did not finish within {timeout:g} s") from None
    except OSError as error:
        raise LabError(f"{argv[0]}: {error.strerror}") from None
    if done.returncode:
        raise LabError(f"{shown}: {last_line(done.stderr or done.stdout)}")
    return done.stdout


class Namespace:
    """One network namespace, by the name that ip(8) knows it under."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.path = _NETNS / name

    def wrap(self, argv: Sequence[str]) -> list[str]:
        """The command that runs `argv` in here; nsenter execs, so the process ID stays the same."""
        return ["nsenter", f"--net={self.path}", "--", *argv]

    def run(self, *argv: str, timeout: float = 10.0, stdin: str | None = None) -> str:
        """Run a command in here; see :func:`execute`."""
        return execute(self.wrap(argv), timeout=timeout, stdin=stdin)

    def ip(self, *lines: str) -> None:
        """Apply lines of ``ip -batch``, all or a LabError at the first that fails."""
        execute(["ip", "-n", self.name, "-batch", "-"], stdin="\n".join(lines) + "\n")

    def device_towards(self, address: str) -> str:
        """The interface that a packet to `address` would leave by."""
        found = re.search(r"\bdev (\S+)", self.run("ip", "route", "get", address))
        if found is None:
            raise LabError(f"no route to {address} in {self.name}")
        return found[1]

    def mtu(self, device: str) -> int:
        """The MTU of an interface, in bytes."""
        found = re.search(r"\bmtu (\d+)", self.run("ip", "-o", "link", "show", "dev", device))
        if found is None:
            raise LabError(f"{device} has no MTU")
        return int(found[1])

    def socket(self, kind: int, protocol: int) -> socket.socket:
        """An IPv4 socket that belongs to this namespace, for use from anywhere."""
        made: list[socket.socket | OSError] = []

        def make() -> None:
            # setns(2) moves the calling thread only, and this one ends right away.
            libc = ctypes.CDLL(None, use_errno=True)
            try:
                with self.path.open("rb") as handle:
                    if libc.setns(handle.fileno(), _CLONE_NEWNET):
                        raise OSError(ctypes.get_errno(), "setns")
                made.append(socket.socket(socket.AF_INET, kind, protocol))
            except OSError as error:
                made.append(error)

        thread = threading.Thread(target=make)
        thread.start()
        thread.join()
        (result,) = made
        if isinstance(result, OSError):
            raise LabError(f"cannot open a socket in {self.name}: {result}")
        return result


class Process:
    """A running program with its output in a file."""

    def __init__(self, popen: subprocess.Popen[bytes], name: str, log: Path) -> None:
        self._popen = popen
        self.name = name
        self.log = log

    @property
    def pid(self) -> int:
        return self._popen.pid

    def output(self) -> str:
        """What the program has written so far, stdout and stderr together."""
        return self.log.read_text(errors="replace")

    def check(self) -> None:
        """Raise LabError if the program has ended."""
        if self._popen.poll() is not None:
            raise LabError(f"{self.name} ended: {last_line(self.output())}")

    def wait(self, timeout: float) -> str:
        """Wait for an orderly end and return the output."""
        try:
            status = self._popen.wait(timeout)
        except subprocess.TimeoutExpired:
            raise LabError(f"{self.name} did not finish within {timeout:g} s") from None
        if status:
            raise LabError(f"{self.name}: {last_line(self.output())}")
        return self.output()

    def wait_until(self, ready: Callable[[], bool], timeout: float = 10.0) -> None:
        """Poll `ready` until it holds; LabError when the program ends or the time is up."""
        deadline = time.monotonic() + timeout
        while not ready():
            self.check()
            if time.monotonic() > deadline:
                raise LabError(f"{self.name} was not ready within {timeout:g} s")
            time.sleep(0.005)

    def wait_for(self, text: str, timeout: float = 10.0) -> None:
        """Wait until the program has written `text`."""
        self.wait_until(lambda: text in self.output(), timeout)

    def stop(self) -> None:
        """SIGTERM, then SIGKILL after five seconds."""
        if self._popen.poll() is None:
            self._popen.terminate()
            try:
                self._popen.wait(5.0)
            except subprocess.TimeoutExpired:
                self._popen.kill()
                self._popen.wait()


class Lab:
    """A client and a gateway namespace, one link between them, a scratch directory."""

    def __init__(self) -> None:
        number = next(_numbers)
        #: Distinguishes everything of this lab whose name is global: ``<pid>-<n>``.
        self.tag = f"{os.getpid()}-{number}"
        self.client = Namespace(f"{_PREFIX}-{self.tag}-c")
        self.gateway = Namespace(f"{_PREFIX}-{self.tag}-g")
        self._cleanup = contextlib.ExitStack()
        self.directory = Path()

    def __enter__(self) -> Lab:
        try:
            self.directory = Path(
                self._cleanup.enter_context(
                    tempfile.TemporaryDirectory(prefix=f"{_PREFIX}-{self.tag}-")
                )
            )
            for namespace in (self.client, self.gateway):
                execute(["ip", "netns", "add", namespace.name])
                self._cleanup.callback(delete_namespace, namespace.name)
            self._wire()
        except BaseException:
            self._cleanup.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._cleanup.close()

    def _wire(self) -> None:
        # Fixed, so that the machine's default (some run bbr) does not decide a result.
        cubic = "echo cubic > /proc/sys/net/ipv4/tcp_congestion_control || true"
        self.client.ip(
            f"link add {LINK} mtu {LINK_MTU} type veth"
            f" peer name {LINK} mtu {LINK_MTU} netns {self.gateway.name}",
            "link set lo up",
            f"addr add {CLIENT_OUTER}/24 dev {LINK}",
            f"link set {LINK} up",
        )
        self.gateway.ip(
            "link set lo up",
            f"addr add {GATEWAY_OUTER}/24 dev {LINK}",
            f"addr add {TARGET}/32 dev lo",
            f"link set {LINK} up",
        )
        for namespace in (self.client, self.gateway):
            namespace.run("sh", "-c", cubic)

    def spawn(
        self,
        where: Namespace,
        name: str,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
    ) -> Process:
        """Start a program that ends with the lab. `name` is for messages and for its log file."""
        log = self.directory / f"{name}.{next(_numbers)}.log"
        command = ["setpriv", "--pdeathsig", "KILL", *where.wrap(argv)]
        with log.open("wb") as output:
            popen = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(env or {})},
                start_new_session=True,  # Ctrl-C reaches the benchmark alone, which then cleans up.
            )
        process = Process(popen, name, log)
        self._cleanup.callback(process.stop)
        return process


def delete_namespace(name: str) -> None:
    """Delete a namespace if it is there."""
    with contextlib.suppress(LabError):
        execute(["ip", "netns", "delete", name])


def reap() -> None:
    """Delete the namespaces and scratch directories of benchmarks that no longer run."""
    for folder in (_NETNS, Path(tempfile.gettempdir())):
        for path in folder.glob(f"{_PREFIX}-*-*") if folder.is_dir() else ():
            owner = path.name.split("-")[1]
            if not owner.isdigit() or Path("/proc", owner).exists():
                continue
            if folder == _NETNS:
                delete_namespace(path.name)
            else:
                shutil.rmtree(path, ignore_errors=True)


def missing_tools() -> list[str]:
    """The programs that every measurement needs and that are not installed."""
    return [
        tool
        for tool in ("ip", "nsenter", "setpriv", "iperf3", "ping")
        if shutil.which(tool) is None
    ]
