"""The .rpm by rpm itself: installed, upgraded in mid-session, erased.

There is no Fedora within reach. rpm runs on a Debian, in whose database nothing provides what a
package requires, so it is told not to look; this module looks instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.packaging import place as places
from tests.packaging import system
from tests.packaging.conftest import Built
from tests.packaging.pages import commands
from tests.packaging.place import Place
from tests.packaging.system import System
from tests.packaging.test_life import changed, wait_for_download
from tests.world import plan, probes
from tests.world.snapshot import snapshot

pytestmark = [pytest.mark.netns, pytest.mark.slow, pytest.mark.timeout(900)]

SUITE: Final = "bookworm"
RPM: Final = ("rpm", "--force-debian", "--nodeps")
#: What rpm's own features are called, and what a Debian's packages call otherwise.
NO_LIBRARIES: Final = {"nftables", "polkit", "systemd", "glibc", "/bin/sh"}


@pytest.fixture
def place(built: Built, tmp_path: Path) -> Iterator[Place]:
    if reason := places.unavailable(SUITE):
        pytest.skip(reason)
    needs = f"{system.declared(built.client)}, rpm"
    with places.place(
        SUITE, tmp_path, gateway=needs, client=needs, packages=built.client.parent
    ) as made:
        yield made


def test_an_rpm_is_installed_upgraded_in_mid_session_and_erased(place: Place, built: Built) -> None:
    world, gateway, client = place.world, place.gateway, place.client
    files = gateway.files(), client.files()
    networks = snapshot(world.gateway), snapshot(world.client)

    # What each requires is what the same libraries of Debian's packages are called.
    for machine, package in ((gateway, built.server_rpm), (client, built.client_rpm)):
        known = machine.sh("ldconfig -p").split()
        required = machine.run("rpm", "-qpR", f"/packages/{package.name}").stdout.splitlines()
        names = {line.split()[0] for line in required if not line.startswith("rpmlib(")}
        libraries = {name for name in names if name.endswith("()(64bit)")}
        assert names - libraries <= NO_LIBRARIES
        assert {name.removesuffix("()(64bit)") for name in libraries} <= set(known)
        assert len(libraries) > 5

    said = gateway.run(*RPM, "-i", f"/packages/{built.server_rpm.name}").stdout
    assert "sudo qvpn-server init --state /var/lib/qvpn-server" in said
    lines = commands("docs/install/fedora.md", "The gateway")
    said = "".join(
        place.type(gateway, line) for line in lines if "dnf" not in line and "firewall" not in line
    )
    link = next(word for word in said.split() if word.startswith("qvpn://"))

    client.run(*RPM, "-i", f"/packages/{built.client_rpm.name}")
    _, enroll, up = commands("docs/install/fedora.md", "The client")
    place.type(client, enroll, link=link)
    place.type(client, up)
    before = place.status()
    assert before["state"] == "connected"
    with place.app("--minimized") as seconds:
        print(f"start to tray: {seconds:.2f} s")

    gateway.run(*RPM, "-U", f"/packages/{built.newer_server_rpm.name}")
    gap = wait_for_download(world, 20)
    print(f"the upgrade of the gateway cost {gap:.1f} s after rpm was done")
    assert gap < 15
    client.run(*RPM, "-U", f"/packages/{built.newer_client_rpm.name}")
    assert "-2." in client.run("rpm", "-q", "qvpn").stdout
    assert place.status()["addresses"] == before["addresses"]
    assert probes.download(world.client, plan.ALPHA.v4, 1 << 20).size == 1 << 20
    assert client.run("rpm", "--verify", "--nodeps", "qvpn", check=False).stdout == ""

    # Erased while it is connected.
    client.run(*RPM, "-e", "qvpn")
    assert snapshot(world.client) == networks[1]
    gateway.run(*RPM, "-e", "qvpn-server")
    assert snapshot(world.gateway) == networks[0]
    # rpm knows no purge: registry and user stay. Directories that a Fedora's own packages have,
    # such as those of icons, are nobody's here and stay, too.
    assert left(client, files[1]) == []
    assert left(gateway, files[0], "/var/lib/qvpn-server") == []


def left(machine: System, was: dict[str, str], *kept: str) -> list[str]:
    """What is of ours on the disk."""
    now = machine.files()
    others = ("/var/lib/rpm", "/etc/passwd-", "/etc/shadow-", "/etc/group-", "/etc/gshadow-", *kept)
    return [
        name
        for name in changed(machine, was)
        if not name.startswith(others)
        and not (now.get(name, "").startswith("d") and "qvpn" not in name)
    ]
