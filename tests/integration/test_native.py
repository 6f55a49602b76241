"""What only the native datapath does, in the kernel's network."""

from __future__ import annotations

import json
import socket
import threading
import time

import pytest

from qvpn_core.datapath.engine import available
from tests.world import Namespace, plan
from tests.world.vpn import Vpn

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(not available(), reason="qvpn_datapath is not built (make native)"),
]

#: Mbit/s of the link, and how much more is offered.
RATE, EXCESS = 30, 3
SECONDS = 3.0


def flood(host: Namespace, stop: threading.Event) -> None:
    """UDP to a site, evenly, at `EXCESS` times the rate of the link."""

    def send() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            begin, sent = time.monotonic(), 0
            while not stop.is_set() and time.monotonic() < begin + 4 * SECONDS:
                due = (time.monotonic() - begin) * RATE * EXCESS * 1e6 / 8 / 1200
                while sent < due:
                    sock.sendto(bytes(1200), (plan.ALPHA.v4, 9))
                    sent += 1
                stop.wait(0.002)

    host.call(send)


def test_a_ping_passes_a_flood_through_a_slow_link_of_ones_own(vpn: Vpn) -> None:
    """The flow queue: bulk that does not slow down loses its own packets, and no others."""
    client = vpn.clients[0]
    host = client.host
    uplink = json.loads(host.run(["ip", "-j", "route", "get", plan.GATEWAY4]).stdout)[0]["dev"]
    client.up("--all")
    assert client.status()["datapath"] == "native"
    host.run(f"tc qdisc add dev {uplink} root tbf rate {RATE}mbit burst 32kb limit 3000000".split())
    stop = threading.Event()
    bulk = threading.Thread(target=flood, args=(host, stop))
    bulk.start()
    try:
        time.sleep(0.5)  # the queue fills
        count = int(SECONDS / 0.05)
        ping = host.run(
            ["ping", "-n", "-q", "-c", str(count), "-i", "0.05", "-W", "5", plan.ALPHA.v4],
            check=False,
        )
    finally:
        stop.set()
        bulk.join()
        host.run(["tc", "qdisc", "del", "dev", uplink, "root"])
    drops = client.status()["drops"]
    client.down()
    assert " 0% packet loss" in ping.stdout
    assert drops["queue-expired"] + drops.get("queue-full", 0) > 100
