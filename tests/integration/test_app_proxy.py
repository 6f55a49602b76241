"""The app with a profile that asks for proxies: no rights, no tunnel, a real gateway."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.world import plan
from tests.world.vpn import BIN, PATIENCE, Vpn, VpnClient, leaves_nothing, no_defects, until

pytestmark = [pytest.mark.netns, pytest.mark.timeout(180)]

#: Whoever is without capabilities can change nothing of a network.
POWERLESS = ("setpriv", "--bounding-set=-all", "--inh-caps=-all")


@contextmanager
def app(client: VpnClient, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """The app without a display and without rights; it ends with the block, without a defect."""
    if shutil.which("setpriv") is None:
        pytest.skip("no setpriv: install the package util-linux")
    process = client.host.popen(
        [*POWERLESS, str(BIN / "qvpn-gui"), *options],
        env=client.environment | {"QT_QPA_PLATFORM": "offscreen", "DBUS_SESSION_BUS_ADDRESS": ""},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0
        no_defects((client.directory / "state" / "app.log").read_text())
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def client(vpn: Vpn) -> Iterator[VpnClient]:
    """A client whose profile asks for proxies on ports of the kernel's choice."""
    client = vpn.clients[0]
    file = client.directory / "config" / "profiles" / "home.toml"
    before = file.read_text()
    wanted = (
        '[proxy]\nenabled = true\nsocks = "127.0.0.1:0"\nhttp = "127.0.0.1:0"\n'
        f'forwards = ["0:{plan.BETA.v4}:80"]\n'
    )
    assert "[proxy]\n" in before
    file.write_text(before.replace("[proxy]\n", wanted))
    yield client
    file.write_text(before)


def served(client: VpnClient, kind: str) -> tuple[str, int]:
    """Where a kind of proxy listens."""
    (listen,) = (it["listen"] for it in client.status()["proxies"] if it["kind"] == kind)
    host, _, port = listen.rpartition(":")
    return host, int(port)


def seen(client: VpnClient, address: tuple[str, int], hello: bytes, answer: int) -> str:
    """The address that a site sees, by a proxy that is said `hello` and answers so many bytes."""

    def ask() -> bytes:
        with (
            socket.create_connection(address, timeout=PATIENCE) as sock,
            sock.makefile("rb") as file,
        ):
            sock.sendall(hello)
            assert len(file.read(answer)) == answer
            sock.sendall(b"GET /ip HTTP/1.0\r\n\r\n")
            return file.read()

    return client.host.call(ask).partition(b"\r\n\r\n")[2].decode().strip()


def by_socks(client: VpnClient) -> str:
    request = b"\x05\x01\x00\x05\x01\x00\x01" + socket.inet_aton(plan.ALPHA.v4) + b"\0\x50"
    return seen(client, served(client, "socks"), request, 12)


def test_programs_reach_the_gateway_and_nothing_else_is_changed(
    vpn: Vpn, client: VpnClient
) -> None:
    with leaves_nothing(client.host, within=5), app(client, "--connect", "home") as running:
        status = client.wait_for("connected", 40)
        assert status["interface"] is None
        assert status["routes"] == []
        # On a busy machine TLS may win the race at first.
        until(lambda: client.peek()["transport"] == "quic", "QUIC", 60)
        assert {it["kind"]: it["target"] for it in status["proxies"]} == {
            "socks": None,
            "http": None,
            "forward": f"{plan.BETA.v4}:80",
        }
        assert by_socks(client) == plan.GATEWAY4
        assert seen(client, served(client, "forward"), b"", 0) == plan.GATEWAY4
        connect = f"CONNECT {plan.ALPHA.v4}:80 HTTP/1.1\r\nHost: a\r\n\r\n".encode()
        assert seen(client, served(client, "http"), connect, 39) == plan.GATEWAY4
        printed = client.command("status").stdout
        assert "socks      127.0.0.1:" in printed
        assert "goes direct" in client.command("routes", "explain", plan.ALPHA.v4).stdout

        vpn.gateway.stop(signal.SIGTERM)
        assert client.wait_for("reconnecting", 40)["reason"]
        vpn.gateway.start()
        client.wait_for("connected", 70)
        assert by_socks(client) == plan.GATEWAY4

        client.command("down")
        client.wait_for("disconnected")
        assert running.poll() is None, "the app stays"


def test_an_address_that_is_taken_is_told(vpn: Vpn, client: VpnClient) -> None:
    with client.host.socket(socket.AF_INET, socket.SOCK_STREAM) as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        file = client.directory / "config" / "profiles" / "home.toml"
        port = taken.getsockname()[1]
        file.write_text(
            file.read_text().replace('socks = "127.0.0.1:0"', f'socks = "127.0.0.1:{port}"')
        )
        with app(client, "--connect", "home"):
            status = client.wait_for("failed", 40)
            assert status["reason"] == "port-in-use"
            assert str(port) in status["error"]


def test_a_logout_ends_the_proxies(vpn: Vpn, client: VpnClient, tmp_path: Path) -> None:
    with app(client, "--minimized", "--connect", "home") as running:
        client.wait_for("connected", 40)
        begin = time.monotonic()
        running.send_signal(signal.SIGTERM)
        assert running.wait(PATIENCE) == 0
        print(f"ended after {time.monotonic() - begin:.2f} s")
        until(lambda: client.status()["state"] == "disconnected", "nothing is up")
