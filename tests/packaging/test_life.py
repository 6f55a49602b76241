"""The packages in a fresh Debian: install, connect, upgrade in mid-session, remove, purge."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.packaging import system
from tests.packaging.conftest import Built
from tests.packaging.system import System
from tests.world import World, plan, probes, unavailable
from tests.world.namespaces import Namespace
from tests.world.snapshot import snapshot

pytestmark = [pytest.mark.netns, pytest.mark.slow, pytest.mark.timeout(600)]

STATE = ("--state", "/var/lib/qvpn-server")


@pytest.fixture(scope="module", params=["bookworm", "trixie"])
def suite(request: pytest.FixtureRequest, built: Built) -> str:
    name = str(request.param)
    if reason := unavailable() or system.unavailable(name):
        pytest.skip(reason)
    system.download(name, [built.client, built.server])
    return name


@pytest.fixture
def place(suite: str, built: Built, tmp_path: Path) -> Iterator[tuple[World, System, System]]:
    """A world whose gateway and client are systems of their own, with nothing of ours installed."""
    packages = built.client.parent
    with (
        World() as world,
        System(suite, world.gateway, tmp_path / "gateway", packages) as gateway,
        System(suite, world.client, tmp_path / "client", packages) as client,
    ):
        yield world, gateway, client


def status(client: System) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(client.run("qvpn", "status", "--json").stdout)
    return found


def wait_for_download(world: World, seconds: float) -> float:
    """Seconds until a download through the tunnel succeeds."""
    begin = time.monotonic()
    while True:
        try:
            if probes.download(world.client, plan.ALPHA.v4, 1000, timeout=0.5).size == 1000:
                return time.monotonic() - begin
        except (OSError, http.client.HTTPException):
            if time.monotonic() - begin > seconds:
                raise
        time.sleep(0.05)


def test_from_nothing_to_a_tunnel_and_back_to_nothing(
    place: tuple[World, System, System], built: Built
) -> None:
    world, gateway, client = place
    files = gateway.files(), client.files()
    networks = snapshot(world.gateway), snapshot(world.client)

    # The gateway, by what its package says at the end of its installation.
    said = gateway.install(built.server)
    assert "sudo qvpn-server init --state /var/lib/qvpn-server" in said
    refused = gateway.run("systemctl", "start", "qvpn-server", check=False)
    assert refused.returncode != 0
    assert "qvpn-server init" in gateway.run("journalctl", "-u", "qvpn-server").stdout
    assert gateway.run("systemctl", "is-active", "qvpn-server", check=False).stdout == "failed\n"
    gateway.run("qvpn-server", "init", *STATE, "--host", plan.GATEWAY4)
    gateway.run("systemctl", "enable", "--now", "qvpn-server")
    invite = gateway.run("qvpn-server", "invite", *STATE, "laptop").stdout.split()
    link = next(word for word in invite if word.startswith("qvpn://"))
    owner = gateway.sh("stat -c %U /var/lib/qvpn-server/*")
    assert set(owner.split()) == {"qvpn-server"}

    # The client.
    client.install(built.client)
    client.run("qvpn", "enroll", "--profile", "home", link)
    client.run("qvpn", "up", "home", "--only", plan.NETS[0][0])
    before = status(client)
    assert before["state"] == "connected"
    assert probes.download(world.client, plan.ALPHA.v4, 1 << 20).size == 1 << 20

    # A newer gateway: the same key, registry and addresses, and seconds without a tunnel.
    gateway.install(built.newer_server)
    gap = wait_for_download(world, 20)
    print(f"the upgrade of the gateway cost {gap:.1f} s after dpkg was done")
    assert gap < 5
    assert status(client)["addresses"] == before["addresses"]

    # A newer client: the session goes on, and another one begins.
    client.install(built.newer_client)
    assert status(client)["state"] == "connected"
    assert probes.download(world.client, plan.ALPHA.v4, 1000).size == 1000
    client.run("qvpn", "down")
    client.run("qvpn", "up", "home", "--kill-switch", "always")

    # Removed while it is connected: nothing is blocked, and profiles stay.
    client.run("apt-get", "remove", "-y", "-q", "qvpn")
    assert snapshot(world.client) == networks[1]
    assert client.run("test", "-e", "/etc/qvpn/profiles/home.toml").returncode == 0
    client.run("apt-get", "purge", "-y", "-q", "--autoremove", "qvpn")
    gateway.run("apt-get", "purge", "-y", "-q", "--autoremove", "qvpn-server")
    assert snapshot(world.gateway) == networks[0]
    assert snapshot(world.client) == networks[1]
    for machine, was in ((gateway, files[0]), (client, files[1])):
        left = {name: how for name, how in machine.files().items() if was.get(name) != how}
        assert [name for name in left if "qvpn" in name] == []
        assert gateway.run("getent", "passwd", "qvpn-server", check=False).returncode != 0


@pytest.fixture(scope="module")
def alone(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """One system with a gateway that runs and a client, without a world around."""
    if reason := unavailable() or system.unavailable("bookworm"):
        pytest.skip(reason)
    system.download("bookworm", [built.client, built.server])
    directory = tmp_path_factory.mktemp("alone") / "system"
    with (
        Namespace("alone") as network,
        System("bookworm", network, directory, built.client.parent) as machine,
    ):
        network.set_link("lo", up=True)
        machine.install(built.server, built.client)
        machine.run("qvpn-server", "init", *STATE, "--host", "127.0.0.1")
        machine.run("systemctl", "start", "qvpn-server")
        yield machine


def test_nothing_is_written_beside_what_is_installed(alone: System) -> None:
    alone.run("qvpn", "status")
    alone.run("/usr/lib/qvpn/qvpn-helper", "unlock")
    assert alone.run("dpkg", "--verify", "qvpn", "qvpn-server").stdout == ""
    listed = set(alone.run("dpkg", "-L", "qvpn", "qvpn-server").stdout.split("\n"))
    found = set(alone.sh("find /usr/lib/qvpn /usr/lib/qvpn-server").splitlines())
    assert found - listed == set()


def test_nothing_of_the_users_is_loaded(alone: System) -> None:
    alone.sh("mkdir -p /root/evil && echo 'raise SystemExit(77)' > /root/evil/msgspec.py")
    for command in ("qvpn status", "qvpn-server --help", "/usr/lib/qvpn/qvpn-helper unlock"):
        alone.sh(f"cd /root/evil && PYTHONPATH=/root/evil PYTHONHOME=/nowhere {command}")


def test_the_gateway_is_confined(alone: System) -> None:
    said = alone.run("systemd-analyze", "security", "--no-pager", "qvpn-server").stdout
    score = said.split("exposure level for qvpn-server.service:")[1].split()[0]
    assert float(score) <= 2.0
    lines = alone.sh(f"cat /proc/{_main_pid(alone)}/status").splitlines()
    held = next(line for line in lines if line.startswith("CapEff")).split()[1]
    assert int(held, 16) == 1 << 12 | 1 << 10  # CAP_NET_ADMIN, CAP_NET_BIND_SERVICE


def test_a_gateway_that_hangs_is_replaced(alone: System) -> None:
    drop_in = "/run/systemd/system/qvpn-server.service.d"
    alone.sh(f"mkdir -p {drop_in}; printf '[Service]\nWatchdogSec=3s\n' > {drop_in}/quick.conf")
    alone.sh("systemctl daemon-reload && systemctl restart qvpn-server")
    hung = _main_pid(alone)
    alone.sh(f"kill -STOP {hung}")
    end = time.monotonic() + 60
    while _main_pid(alone) in (hung, "0"):
        assert time.monotonic() < end, "it is still the one that hangs"
        time.sleep(0.2)
    alone.run("systemctl", "stop", "qvpn-server")


def _main_pid(machine: System) -> str:
    return machine.sh("systemctl show -P MainPID qvpn-server").strip()
