"""Network namespaces that clean up after themselves, and what one does inside them.

A :class:`Namespace` is named after the process that made it, so that a later run can remove what a
killed one left. Processes are started inside with ``ip netns exec``, which also gives them the
namespace's own /etc/resolv.conf; Python functions run inside on a thread of this process, so they
can return sockets and file descriptors that stay inside. Needs root; knows nothing about qvpn but
where its helper keeps notes.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
import secrets
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Final, ParamSpec, Self, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

PREFIX: Final = "qv"
_NETNS: Final = Path("/run/netns")
_ETC: Final = Path("/etc/netns")
_CLONE_NEWNET: Final = 0x40000000  # linux/sched.h
#: How long processes have to end after SIGTERM before they are killed, in seconds.
_GRACE: Final = 2.0

_libc = ctypes.CDLL(None, use_errno=True)
_live: dict[str, Namespace] = {}
_owner = os.getpid()
_reaped = False


class WorldError(RuntimeError):
    """The kernel or a tool refused a step; the message is one line."""


def unavailable() -> str | None:
    """Why namespaces cannot be used here, in one line with the remedy, or None when they can."""
    if os.geteuid() != 0:
        return "network namespaces need root: run as root"
    missing = [tool for tool in ("ip", "nft", "ping") if shutil.which(tool) is None]
    if missing:
        return f"missing {', '.join(missing)}: install iproute2, nftables and iputils-ping"
    try:
        os.close(os.open("/dev/net/tun", os.O_RDWR))
    except OSError as error:
        return f"/dev/net/tun cannot be opened ({error.strerror}): load the tun module"
    try:
        _on_thread(_libc_call, "unshare", _CLONE_NEWNET)
    except OSError as error:
        return f"namespaces are refused ({error.strerror}): run with CAP_SYS_ADMIN"
    return None


class Namespace:
    """One network namespace with a name of its own; ``with Namespace("label")`` is its life."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.name = f"{PREFIX}-{os.getpid()}-{secrets.token_hex(3)}-{label}"
        self.path = _NETNS / self.name
        self.resolv_conf = _ETC / self.name / "resolv.conf"
        self._processes: list[subprocess.Popen[Any]] = []

    def __repr__(self) -> str:
        return f"Namespace({self.name!r})"

    def __enter__(self) -> Self:
        create([self])
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        destroy([self])

    # -- processes

    def command(self, argv: Sequence[str]) -> list[str]:
        """The command line that runs `argv` inside, for whoever starts processes by other means."""
        return ["ip", "netns", "exec", self.name, *argv]

    def run(
        self, argv: Sequence[str], *, check: bool = True, timeout: float = 30, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run a program inside and return its captured text output.

        Raises WorldError with its last line of stderr when it fails and `check` is set, and
        subprocess.TimeoutExpired after `timeout` seconds.
        """
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | options
        done = subprocess.run(self.command(argv), timeout=timeout, check=False, **options)
        if check and done.returncode:
            _refuse(argv, done)
        return done

    def popen(self, argv: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """Start a program inside, in a process group of its own; it ends with the namespace."""
        process = subprocess.Popen(self.command(argv), process_group=0, **options)
        self._processes.append(process)
        return process

    def ip(self, *lines: str) -> str:
        """Run ip(8) command lines inside as one batch and return their output."""
        return _batch(["-n", self.name], lines)

    def nft(self, ruleset: str) -> None:
        """Load an nftables ruleset inside."""
        self.run(["nft", "-f", "-"], input=ruleset)

    # -- this process, inside

    def call(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a function inside, on a thread of its own, and return what it returns or raises.

        Sockets, TUN devices and child processes that it makes belong to the namespace and stay so.
        Only the network is switched: files, and so the resolver's configuration, are this
        process's own. Awaiting code calls this through ``asyncio.to_thread``.
        """

        def inside() -> T:
            self._enter()
            return function(*args, **kwargs)

        return _on_thread(inside)

    def socket(self, family: int, kind: int, protocol: int = 0) -> socket.socket:
        """A socket that lives inside and can be used from anywhere in this process."""
        return self.call(socket.socket, family, kind, protocol)

    def sysctl(self, name: str, value: str | int | None = None) -> str:
        """Read, or set and read, a sysctl under net, such as ``ipv4/ip_forward``."""
        path = Path("/proc/sys/net", name)

        def access() -> str:
            if value is not None:
                path.write_text(str(value))
            return path.read_text().strip()

        return self.call(access)

    def set_link(self, name: str, *, up: bool) -> None:
        """Bring an interface up or down. Down removes its routes and most IPv6 addresses."""
        self.ip(f"link set {name} {'up' if up else 'down'}")

    def set_resolvers(self, servers: Iterable[str]) -> None:
        """Write the resolv.conf that programs started inside see, in place."""
        self.resolv_conf.parent.mkdir(parents=True, exist_ok=True)
        self.resolv_conf.write_text("".join(f"nameserver {server}\n" for server in servers))

    def _enter(self) -> None:
        fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _libc_call("setns", fd, _CLONE_NEWNET)
        finally:
            os.close(fd)

    def _signal(self, number: int) -> list[subprocess.Popen[Any]]:
        """Signal what still runs of our processes, and return it."""
        running = [process for process in self._processes if process.poll() is None]
        for process in running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
        return running

    def _forget_processes(self) -> None:
        for process in self._processes:
            process.wait()
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    with contextlib.suppress(OSError):
                        stream.close()
        self._processes.clear()


def create(namespaces: Sequence[Namespace]) -> None:
    """Make namespaces, with a loopback that is up and no IPv6 duplicate address detection.

    Raises WorldError where that is not possible.
    """
    if reason := unavailable():
        raise WorldError(reason)
    _clean_up_at_exit()
    _reap()
    _live.update((namespace.name, namespace) for namespace in namespaces)
    _batch([], [f"netns add {namespace.name}" for namespace in namespaces])
    for namespace in namespaces:
        forget_notes(namespace.path.stat().st_ino)
        namespace.call(_settle)


def forget_notes(number: int) -> None:
    """Remove what a helper that was killed in a namespace of this inode left for the next one.

    The kernel gives the number of a namespace that is gone to another.
    """
    for note in Path("/run/qvpn").glob(f"net-{number}.*"):
        note.unlink(missing_ok=True)


def destroy(namespaces: Sequence[Namespace]) -> None:
    """End all processes in the namespaces, then the namespaces. Never raises; may be repeated."""
    processes = [process for ns in namespaces for process in ns._signal(signal.SIGTERM)]
    deadline = time.monotonic() + _GRACE
    for process in processes:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, deadline - time.monotonic()))
    for namespace in namespaces:
        namespace._signal(signal.SIGKILL)
        namespace._forget_processes()
        with contextlib.suppress(OSError):
            forget_notes(namespace.path.stat().st_ino)
    _remove([namespace.name for namespace in namespaces])
    for namespace in namespaces:
        _live.pop(namespace.name, None)


def leftovers() -> list[str]:
    """The namespaces with our prefix whose maker is dead."""
    return [name for name in _listed() if not Path("/proc", name.split("-")[1]).exists()]


def own() -> list[str]:
    """The namespaces that this process made and that still exist."""
    return [name for name in _listed() if name.split("-")[1] == str(os.getpid())]


def _listed() -> Iterator[str]:
    if _NETNS.is_dir():
        for entry in sorted(_NETNS.iterdir()):
            parts = entry.name.split("-")
            if parts[0] == PREFIX and len(parts) >= 3 and parts[1].isdigit():
                yield entry.name


def _settle() -> None:
    """Give a new namespace the settings that make it quick and predictable."""
    for path, value in (
        ("ipv6/conf/default/accept_dad", "0"),
        ("ipv6/conf/default/dad_transmits", "0"),
        ("ipv6/conf/default/router_solicitations", "0"),
        ("ipv6/conf/default/accept_ra", "0"),
        # What most distributions give a desktop: loose reverse-path filtering.
        ("ipv4/conf/all/rp_filter", "2"),
        ("ipv4/conf/default/rp_filter", "2"),
    ):
        Path("/proc/sys/net", path).write_text(value)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)


def _reap() -> None:
    """Remove, once per process, what killed runs left behind."""
    global _reaped
    if not _reaped:
        _reaped = True
        _remove(leftovers())


def _remove(names: Sequence[str]) -> None:
    present = [name for name in names if (_NETNS / name).exists()]
    for pid in _members(present):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    if present:
        # Another process may reap the same leftovers; -force goes on past what is gone already.
        subprocess.run(
            ["ip", "-force", "-batch", "-"],
            input="".join(f"netns del {name}\n" for name in present),
            text=True,
            capture_output=True,
            check=False,
        )
    for name in names:
        shutil.rmtree(_ETC / name, ignore_errors=True)
    with contextlib.suppress(OSError):
        _ETC.rmdir()  # only when empty


def _members(names: Sequence[str]) -> Iterator[int]:
    """The processes in these namespaces, other than this one."""
    inodes = set()
    for name in names:
        with contextlib.suppress(OSError):
            inodes.add((_NETNS / name).stat().st_ino)
    for entry in Path("/proc").iterdir() if inodes else ():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                if (entry / "ns" / "net").stat().st_ino in inodes:
                    yield int(entry.name)


def _batch(options: Sequence[str], lines: Iterable[str]) -> str:
    argv = ["ip", *options, "-batch", "-"]
    done = subprocess.run(
        argv, input="\n".join(lines) + "\n", text=True, capture_output=True, check=False
    )
    if done.returncode:
        _refuse(argv, done)
    return done.stdout


def _refuse(argv: Sequence[str], done: subprocess.CompletedProcess[str]) -> None:
    said = " / ".join((done.stderr or "").strip().splitlines()[-2:])
    raise WorldError(f"{' '.join(argv)} failed with status {done.returncode}: {said}")


def _on_thread(function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Run a function on a new thread and return its result: namespaces are a thread's own."""
    future: Future[T] = Future()

    def body() -> None:
        try:
            future.set_result(function(*args, **kwargs))
        except BaseException as error:
            future.set_exception(error)

    thread = threading.Thread(target=body, daemon=True)
    thread.start()
    thread.join()
    return future.result()


def _libc_call(name: str, *args: int) -> None:
    if getattr(_libc, name)(*args):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _clean_up_at_exit() -> None:
    """Remove every namespace when this process exits, or is asked to by SIGTERM."""
    if _live:
        return
    atexit.unregister(_destroy_all)
    atexit.register(_destroy_all)
    if (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    ):
        signal.signal(signal.SIGTERM, _terminated)


def _terminated(number: int, frame: FrameType | None) -> None:
    _destroy_all()
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def _destroy_all() -> None:
    if os.getpid() == _owner:  # not in a child that was forked from us
        destroy(list(_live.values()))
