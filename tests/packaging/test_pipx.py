"""The wheel by pipx, typed from its page: the client, the app, the gateway; and removed again.

In fresh systems that reach no index: what pip would fetch is fetched before, in the versions of the
lock.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.packaging import place as places
from tests.packaging.pages import blocks, commands
from tests.packaging.place import Place
from tests.packaging.system import PROJECT
from tests.packaging.test_life import changed
from tests.world import plan, probes
from tests.world.snapshot import snapshot
from tests.world.vpn import until

pytestmark = [pytest.mark.netns, pytest.mark.slow, pytest.mark.timeout(900)]

PAGE: Final = "docs/install/pipx.md"
WHEELS: Final = PROJECT / "build/wheels"
#: The release whose Python has the version of the tests' own.
SUITE: Final = "bookworm"


@pytest.fixture(scope="module")
def wheels() -> Path:
    """A directory with the wheel of this checkout and all that it needs."""
    if sys.version_info[:2] != (3, 11):
        pytest.skip("the fresh system's Python is 3.11: run the tests by that")
    WHEELS.mkdir(parents=True, exist_ok=True)
    for old in WHEELS.glob("qvpn-*"):
        old.unlink()
    run = [sys.executable, "-m"]
    finished([*run, "hatchling", "build", "-t", "wheel", "-d", str(WHEELS)])
    (wheel,) = WHEELS.glob("qvpn-*.whl")
    lock = (PROJECT / "requirements.lock").read_text()
    pinned = re.findall(r"^([a-z0-9][^\\\n]*==[^\\\n]*?) *\\?$", lock, re.MULTILINE)
    (WHEELS / "constraints.txt").write_text("\n".join(pinned) + "\n")
    finished(
        [
            *(*run, "pip", "download", "-q", "--disable-pip-version-check"),
            *("-d", str(WHEELS), "--only-binary", ":all:"),
            *("-c", str(WHEELS / "constraints.txt"), f"{wheel}[gui,server]"),
            *("pip", "setuptools", "wheel"),  # pipx's own
        ]
    )
    return WHEELS


def finished(argv: list[str]) -> None:
    done = subprocess.run(
        argv, cwd=PROJECT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture
def place(wheels: Path, tmp_path: Path) -> Iterator[Place]:
    """A place with what the page has installed by apt; its user's pip knows no index."""
    if reason := places.unavailable(SUITE):
        pytest.skip(reason)
    lines = [line for line in commands(PAGE) if line.startswith("sudo apt install ")]
    (tools, libraries) = [line.removeprefix("sudo apt install ").split() for line in lines]
    needs = ", ".join(tools + libraries)
    with places.place(SUITE, tmp_path, gateway=needs, client=needs, packages=wheels) as made:
        made.variables.update(PIP_NO_INDEX="1", PIP_FIND_LINKS="/packages")
        yield made


def test_the_wheel_is_client_app_and_gateway(place: Place) -> None:
    world, gateway, client = place.world, place.gateway, place.client
    files, network = client.files(), snapshot(world.client)

    # The gateway, as root's; its page has the unit.
    install, init, enable, invite = commands_without_unit()
    place.type(gateway, install)
    place.type(gateway, init)
    (unit,) = (block for block in blocks(PAGE, "The gateway") if block.startswith("[Unit]"))
    gateway.sh(f"cat > /etc/systemd/system/qvpn-server.service <<'END'\n{unit}END")
    place.type(gateway, enable)
    link = next(word for word in place.type(gateway, invite).split() if word.startswith("qvpn://"))

    # The client, by commands, with a helper that only root can change.
    install, helper, enroll, up = commands(PAGE, "The client, by commands")
    place.type(client, install)
    refused = client.run_as("ada", "/home/ada/.local/bin/qvpn", "up", "any", check=False)
    assert refused.returncode != 0
    place.type(client, helper)
    assert (
        client.sh("find /usr/local/lib/qvpn -not -user root -o -perm /022 -not -type l").strip()
        == ""
    )
    place.type(client, enroll, link=link)
    place.type(client, up)
    assert place.connected()
    assert probes.download(world.client, plan.ALPHA.v4, 1 << 20).size == 1 << 20
    place.type(client, "qvpn down")
    assert snapshot(world.client) == network

    # Without their part the others say so in one line.
    for command, extra in (("qvpn-gui", "gui"), ("qvpn-server list --state /tmp/none", "server")):
        said = client.run_as("ada", "sh", "-c", f"$HOME/.local/bin/{command}", check=False)
        assert said.returncode != 0
        (line,) = said.stderr.splitlines()
        assert f"whl[{extra}]'" in line

    # The app.
    install, helper, app = commands(PAGE, "The app")[1:]
    place.type(client, install)
    place.type(client, helper)
    with place.app("--minimized", "--connect", program=f"/home/ada/.local/bin/{app}") as seconds:
        print(f"start to tray: {seconds:.2f} s")
        until(place.connected, "a tunnel", 40)
        assert probes.download(world.client, plan.ALPHA.v4, 1000).size == 1000

        # Removed while it is connected.
        for line in commands(PAGE, "Remove"):
            place.type(client, line)
        assert snapshot(world.client) == network
    assert changed(client, files) == []


def commands_without_unit() -> list[str]:
    return [
        line
        for block in blocks(PAGE, "The gateway")
        if not block.startswith("[Unit]")
        for line in block.splitlines()
    ]
