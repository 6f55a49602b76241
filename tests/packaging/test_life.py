"""The packages in a fresh system: install, connect, upgrade in mid-session, remove, purge.

`QVPN_TEST_SUITES` names the releases, Debian 12 unless it is set.
"""

from __future__ import annotations

import http.client
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.packaging import place as places
from tests.packaging import system
from tests.packaging.conftest import Built
from tests.packaging.pages import commands
from tests.packaging.place import STATE, Place
from tests.packaging.system import System
from tests.world import World, plan, probes, unavailable
from tests.world.namespaces import Namespace
from tests.world.snapshot import snapshot
from tests.world.vpn import until

pytestmark = [pytest.mark.netns, pytest.mark.slow, pytest.mark.timeout(900)]

SUITES: Final = os.environ.get("QVPN_TEST_SUITES", "bookworm").split()
#: Seconds from the start of the app to its icon; how much slower than alone a machine may be.
START: Final = 1.5
BUSY: Final = 4


@pytest.fixture(params=SUITES)
def place(request: pytest.FixtureRequest, built: Built, tmp_path: Path) -> Iterator[Place]:
    """A place with nothing of ours installed, and all that our packages declare."""
    suite = str(request.param)
    if reason := places.unavailable(suite):
        pytest.skip(reason)
    needs = system.declared(built.server), system.declared(built.client)
    with places.place(
        suite, tmp_path, gateway=needs[0], client=needs[1], packages=built.client.parent
    ) as made:
        yield made


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


def test_from_nothing_to_a_tunnel_and_back_to_nothing(place: Place, built: Built) -> None:
    world, gateway, client = place.world, place.gateway, place.client
    files = gateway.files(), client.files()
    networks = snapshot(world.gateway), snapshot(world.client)

    # The gateway, by the README and nothing else; its package says the same when it is installed.
    install, *rest = commands("README.md", "On the gateway")
    said = place.type(gateway, install)
    assert "sudo qvpn-server init --state /var/lib/qvpn-server" in said
    refused = gateway.run("systemctl", "start", "qvpn-server", check=False)
    assert refused.returncode != 0
    assert "qvpn-server init" in gateway.run("journalctl", "-u", "qvpn-server").stdout
    assert gateway.run("systemctl", "is-active", "qvpn-server", check=False).stdout == "failed\n"
    said = "".join(place.type(gateway, line) for line in rest)
    link = next(word for word in said.split() if word.startswith("qvpn://"))
    owner = gateway.sh("stat -c %U /var/lib/qvpn-server/*")
    assert set(owner.split()) == {"qvpn-server"}

    # The client: an ordinary user and a link, by commands first.
    install, enroll, up, status, explain, down = commands("README.md", "On the client")
    for line in (install, enroll, up):
        place.type(client, line, link=link)
    assert place.connected()
    assert probes.download(world.client, plan.ALPHA.v4, 1 << 20).size == 1 << 20
    # An engine that is in the packages carries both ends, also as the gateway's unit confines it.
    native = "native" if built.native else "aioquic"
    # On a busy machine TLS may win the race at first; QUIC is back within seconds then.
    until(
        lambda: (place.status().get("datapath"), place.datapaths()) == (native, [native]),
        f"the {native} datapath",
        60,
    )
    said = place.type(client, status)
    assert "connected" in said
    assert f" {native} datapath " in said
    assert "tunnel" in place.type(client, explain)
    place.type(client, down)
    assert snapshot(world.client) == networks[1]

    # And by the app in the panel.
    with place.app("--minimized") as seconds:
        print(f"start to tray, the first time: {seconds:.2f} s")
        assert seconds < START * BUSY
    # What the entry's action starts, by the app of before.
    with place.app("--minimized", "--connect") as seconds:
        print(f"start to tray, from then on: {seconds:.2f} s")
        until(place.connected, "a tunnel", 40)
        before = place.status()
        assert probes.download(world.client, plan.ALPHA.v4, 1 << 20).size == 1 << 20

        # A newer gateway: the same key, registry and addresses, and seconds without a tunnel.
        gateway.install(built.newer_server)
        gap = wait_for_download(world, 20)
        print(f"the upgrade of the gateway cost {gap:.1f} s after dpkg was done")
        assert gap < 15
        assert place.status()["addresses"] == before["addresses"]
        until(
            lambda: (place.status().get("datapath"), place.datapaths()) == (native, [native]),
            f"the {native} datapath again",
            60,
        )

        # A newer client: the session goes on.
        process = place.app_process()
        client.install(built.newer_client)
        assert place.connected()
        assert place.app_process() == process
        assert probes.download(world.client, plan.ALPHA.v4, 1000).size == 1000
    assert snapshot(world.client) == networks[1]

    # Root's own session, and a power failure in the middle of it: blocked from the boot on.
    client.run("qvpn", "enroll", "--profile", "home", place.invite("root"))
    client.run("qvpn", "up", "home", "--kill-switch", "always")
    client.power_off()
    world.client.nft("flush ruleset")  # the network of the test outlives a system that ends
    world.client.run(["sysctl", "-q", "-w", "net.ipv4.conf.all.src_valid_mark=0"])
    client.power_on()
    assert "qvpn" in world.client.run(["nft", "list", "tables"]).stdout
    with pytest.raises(OSError, match=r"."):
        probes.download(world.client, plan.ALPHA.v4, 1000, timeout=1)

    # Removed while it is connected and the app is there: nothing is blocked, and profiles stay.
    client.run("qvpn", "up", "home", "--kill-switch", "always")
    client.reach_display(int(place.desktop.environment["DISPLAY"].removeprefix(":")))
    with place.app("--minimized"):
        client.run("apt-get", "remove", "-y", "-q", "qvpn")
        assert place.app_process() == ""
    assert snapshot(world.client) == networks[1]
    client.run("test", "-e", "/etc/qvpn/profiles/home.toml")
    client.run("apt-get", "purge", "-y", "-q", "qvpn")
    gateway.run("apt-get", "purge", "-y", "-q", "qvpn-server")
    assert snapshot(world.gateway) == networks[0]
    assert snapshot(world.client) == networks[1]
    assert changed(gateway, files[0]) == []
    assert changed(client, files[1]) == []
    assert gateway.run("getent", "passwd", "qvpn-server", check=False).returncode != 0


def changed(machine: System, was: dict[str, str]) -> list[str]:
    """What is on the disk, or gone from it, and was not, but for what is the user's own."""
    now = machine.files()
    names = {name for name in now.keys() | was.keys() if now.get(name) != was.get(name)}
    # A system whose power failed leaves the temporary directories of its own services.
    others = ("/home/ada/", "/var/tmp/systemd-private-")
    return sorted(name for name in names if not name.startswith(others))


@pytest.fixture(scope="module")
def alone(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """One system with a gateway that runs and a client, without a world around."""
    if reason := unavailable() or system.unavailable(SUITES[0]):
        pytest.skip(reason)
    directory = tmp_path_factory.mktemp("alone") / "system"
    with (
        Namespace("alone") as network,
        System(
            SUITES[0],
            network,
            directory,
            needs=f"{system.declared(built.client)}, {places.SUDO_PACKAGE}",
            packages=built.client.parent,
            name="alone",
        ) as machine,
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


def test_only_root_can_write_what_was_installed(alone: System) -> None:
    trees = "/usr/lib/qvpn /usr/lib/qvpn-server"
    found = alone.sh(f"find {trees} ! -type l \\( ! -user root -o ! -group root -o -perm /6022 \\)")
    assert found == ""
    listed = alone.sh("dpkg -L qvpn qvpn-server | sort -u | xargs stat -c '%a %u %n' | grep -v ^$")
    for line in listed.splitlines():
        mode, owner, name = line.split(" ", 2)
        assert (int(mode, 8) & 0o022, owner) == (0, "0") or mode == "777", name


def test_nothing_of_the_users_is_loaded(alone: System) -> None:
    alone.sh("mkdir -p /root/evil && echo 'raise SystemExit(77)' > /root/evil/msgspec.py")
    for command in ("qvpn status", "qvpn-server --help", "/usr/lib/qvpn/qvpn-helper unlock"):
        alone.sh(f"cd /root/evil && PYTHONPATH=/root/evil PYTHONHOME=/nowhere {command}")


def test_the_helper_runs_with_an_empty_environment(alone: System) -> None:
    """Whoever starts it: what it starts in turn has nothing but a path and a language."""
    alone.sh(
        """
        mv /usr/sbin/nft /usr/sbin/nft.real
        cat > /usr/sbin/nft <<'END'
#!/bin/sh
cat /proc/$$/environ >> /run/seen
exec /usr/sbin/nft.real "$@"
END
        chmod 755 /usr/sbin/nft
        rm -f /run/seen
        """
    )
    try:
        evil = ("EVIL=1", "PYTHONPATH=/tmp", "PYTHONSTARTUP=/tmp/x", "HOME=/tmp", "LANGUAGE=de")
        alone.run("env", *evil, "/usr/lib/qvpn/qvpn-helper", "unlock")
        names = {part.partition("=")[0] for part in alone.sh("cat /run/seen").split("\0") if part}
    finally:
        alone.sh("mv /usr/sbin/nft.real /usr/sbin/nft")
    assert names == {"PATH", "LC_ALL"}


def test_the_gateway_is_confined(alone: System) -> None:
    said = alone.run("systemd-analyze", "security", "--no-pager", "qvpn-server").stdout
    score = said.split("exposure level for qvpn-server.service:")[1].split()[0]
    assert float(score) <= 2.0
    lines = alone.sh(f"cat /proc/{_main_pid(alone)}/status").splitlines()
    held = next(line for line in lines if line.startswith("CapEff")).split()[1]
    assert int(held, 16) == 1 << 12 | 1 << 10  # CAP_NET_ADMIN, CAP_NET_BIND_SERVICE
    assert "Seccomp:\t2" in lines


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
