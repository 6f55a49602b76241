"""Network namespaces for tests of the kernel's network.

The test's own thread moves into a fresh namespace, so that the code under test runs in this
process, with its threads and children. Namespaces are anonymous: they go with their last user.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.world.namespaces import forget_notes

_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


class Namespace:
    """A network namespace, with loopback up."""

    def __init__(self) -> None:
        home = self._current()
        try:
            _check(_libc.unshare(_CLONE_NEWNET))
            self.fd = self._current()
            forget_notes(os.fstat(self.fd).st_ino)
            self.ip("link set lo up")
        finally:
            _check(_libc.setns(home, _CLONE_NEWNET))
            os.close(home)

    @staticmethod
    def _current() -> int:
        return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)

    @contextmanager
    def entered(self) -> Iterator[None]:
        """This thread, and what it starts, is in the namespace."""
        home = self._current()
        _check(_libc.setns(self.fd, _CLONE_NEWNET))
        try:
            yield
        finally:
            _check(_libc.setns(home, _CLONE_NEWNET))
            os.close(home)

    def ip(self, arguments: str) -> str:
        """Run ip(8) in the current namespace."""
        return self.sh(f"ip {arguments}")

    def sh(self, command: str) -> str:
        """Run a command in the current namespace; its output."""
        done = subprocess.run(command.split(), capture_output=True, text=True)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    def wait_until_up(self, name: str) -> None:
        """Wait for the kernel's deferred words, which snapshots and routes show: the carrier, and
        that a link-local address is not tentative any more.
        """
        deadline = time.monotonic() + 10
        while (
            "state UP" not in self.ip(f"-o link show {name}")
            or "tentative" in (addresses := self.ip(f"-o address show dev {name}"))
            or "fe80" not in addresses
        ):
            assert time.monotonic() < deadline, f"{name} does not settle"

    def snapshot(self) -> str:
        """Everything that a tunnel may change, as text."""
        root = Path("/proc/sys/net")
        names = [*sorted(root.glob("ipv[46]/conf/*/*")), root / "ipv4/ip_forward"]
        settings = "".join(
            f"{path.relative_to(root)}={path.read_text()}"
            for path in names
            if path.name != "stable_secret"
        )
        commands = (
            "ip -o link",
            "ip -o address",
            "ip -4 rule",
            "ip -6 rule",
            "ip -4 route show table all",
            "ip -6 route show table all",
            "nft list ruleset",
        )
        return settings + "\n".join(f"# {command}\n{self.sh(command)}" for command in commands)

    def close(self) -> None:
        forget_notes(os.fstat(self.fd).st_ino)
        os.close(self.fd)


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    """A fresh namespace that the test runs in."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    for tool in ("ip", "nft"):
        if shutil.which(tool) is None:
            pytest.skip(f"needs {tool}")
    if not os.path.exists("/dev/net/tun"):
        pytest.skip("needs /dev/net/tun")
    created = Namespace()
    try:
        with created.entered():
            yield created
    finally:
        created.close()


@pytest.fixture
def neighbour(namespace: Namespace) -> Iterator[Namespace]:
    """A second namespace on one link with the first: eth0 in both, .1 here and .2 there."""
    other = Namespace()
    try:
        namespace.ip(
            f"link add eth0 type veth peer name eth0 netns /proc/{os.getpid()}/fd/{other.fd}"
        )
        for space, number in ((namespace, 1), (other, 2)):
            with space.entered():
                space.ip(f"address add 192.0.2.{number}/24 dev eth0")
                space.ip(f"address add 2001:db8:1::{number}/64 dev eth0 nodad")
                # Without duplicate detection addresses do not change in the middle of a test.
                Path("/proc/sys/net/ipv6/conf/eth0/accept_dad").write_text("0")
                space.ip("link set eth0 up")
        for space in (namespace, other):
            with space.entered():
                space.wait_until_up("eth0")
        yield other
    finally:
        other.close()
