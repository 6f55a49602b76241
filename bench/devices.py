"""``python -m bench.devices``: eight devices at once on one gateway, and one alone, in one run.

Each device has a namespace of its own on one switch; all download, then all upload, each by one TCP
flow (CUBIC): without a tunnel, through wireguard-go, and through qvpn. It prints what each gets and
what all get together, and writes ``bench/results/devices.json`` and ``devices.md``. It needs root,
for namespaces.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.__main__ import RESULTS, cpu_model, say
from bench.lab import execute
from bench.peers.wireguard import WireGuardGo
from bench.results import markdown
from tests.world.namespaces import Namespace, create, destroy
from tests.world.vpn import VpnClient, VpnGateway

DEVICES = 8
#: RFC 2544's range for benchmarks, and a host behind the gateway.
_NETWORK = "198.18.0"
GATEWAY = f"{_NETWORK}.1"
TARGET = "198.18.100.1"
_FIRST_PORT = 5400


def wire(gateway: Namespace, switch: Namespace, clients: list[Namespace]) -> None:
    """One switch, with the gateway at .1 and the devices behind it."""
    switch.ip("link add sw type bridge", "link set sw up")
    ends = [(gateway, 1), *((client, number + 2) for number, client in enumerate(clients))]
    for host, number in ends:
        host.ip(
            f"link add wan type veth peer name p{number} netns {switch.name}",
            f"addr add {_NETWORK}.{number}/24 dev wan",
            "link set wan up",
        )
        switch.ip(f"link set p{number} master sw up")
    gateway.ip(f"addr add {TARGET}/32 dev lo")


def load(clients: list[Namespace], seconds: int, *options: str) -> list[float]:
    """What each of these gets at the same time, in Mbit/s."""
    running = [
        client.popen(
            [
                *("iperf3", "-c", TARGET, "-p", str(_FIRST_PORT + number), "-J"),
                *("-C", "cubic", "-t", str(seconds), *options),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        for number, client in enumerate(clients)
    ]
    reports: list[dict[str, Any]] = [
        json.loads(process.communicate(timeout=seconds + 60)[0]) for process in running
    ]
    return [report["end"]["sum_received"]["bits_per_second"] / 1e6 for report in reports]


@contextmanager
def no_tunnel(directory: Path, gateway: Namespace, hosts: list[Namespace]) -> Iterator[None]:
    """The target by the gateway's own address."""
    for host in hosts:
        host.ip(f"route add {TARGET}/32 via {GATEWAY}")
    yield


@contextmanager
def wireguard_go(directory: Path, gateway: Namespace, hosts: list[Namespace]) -> Iterator[None]:
    """A tunnel of wireguard-go for each device."""
    keys = {host: execute(["wg", "genkey"]).strip() for host in (gateway, *hosts)}
    public = {host: execute(["wg", "pubkey"], stdin=key).strip() for host, key in keys.items()}
    peers = {
        gateway: [
            (host, f"AllowedIPs = 10.99.1.{number + 2}/32") for number, host in enumerate(hosts)
        ]
    } | {
        host: [(gateway, f"AllowedIPs = {TARGET}/32\nEndpoint = {GATEWAY}:51820")] for host in hosts
    }
    # They end with their namespace, also when a step fails.
    for number, (host, others) in enumerate(peers.items()):
        # Control sockets are named after the device in one directory, across namespaces.
        device = f"wgd{os.getpid()}n{number}"
        process = host.popen(
            [WireGuardGo.binary() or "", "-f", device],
            env=os.environ | {"WG_PROCESS_FOREGROUND": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        control = Path("/var/run/wireguard", f"{device}.sock")
        while not control.exists() and process.poll() is None:
            time.sleep(0.01)
        config = [f"[Interface]\nPrivateKey = {keys[host]}\nListenPort = 51820"]
        config += [f"[Peer]\nPublicKey = {public[other]}\n{rest}" for other, rest in others]
        file = directory / device
        file.touch(mode=0o600)
        file.write_text("\n".join(config) + "\n")
        host.run(["wg", "setconf", device, str(file)])
        host.ip(f"addr add 10.99.1.{number + 1}/32 dev {device}", f"link set {device} mtu 1420 up")
        for target in ["10.99.1.0/24"] if host is gateway else [f"{TARGET}/32"]:
            host.ip(f"route add {target} dev {device}")
    yield


@contextmanager
def qvpn(directory: Path, gateway: Namespace, hosts: list[Namespace]) -> Iterator[None]:
    """A tunnel of qvpn for each device."""
    server = VpnGateway(gateway, directory / "gateway", address=GATEWAY)
    server.init("--dns", "192.0.2.53")
    server.start()
    with ExitStack() as stack:
        for number, host in enumerate(hosts):
            client = stack.enter_context(VpnClient(host, directory / f"device{number}"))
            client.add_profile(server.token(f"device{number}"))
            client.up("--only", f"{TARGET}/32")
        yield
    server.stop()


WAYS = {"no tunnel": no_tunnel, "wireguard-go": wireguard_go, "qvpn": qvpn}


def measure(way: str, directory: Path, seconds: int) -> dict[str, float]:
    """One round."""
    gateway, switch = Namespace("gateway"), Namespace("switch")
    hosts = [Namespace(f"device{number}") for number in range(DEVICES)]
    everything = [gateway, switch, *hosts]
    create(everything)
    values: dict[str, float] = {}
    try:
        wire(gateway, switch, hosts)
        for number in range(DEVICES):
            gateway.popen(["iperf3", "-s", "-p", str(_FIRST_PORT + number)],
                          stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
        with WAYS[way](directory, gateway, hosts):
            time.sleep(1)  # path MTU discovery, and whatever else a start does
            for name, options in (("from the gateway", ("-R",)), ("to the gateway", ())):
                (alone,) = load(hosts[:1], seconds, *options)
                each = load(hosts, seconds, *options)
                fair = sum(each) / len(each)
                apart = max(abs(one - fair) for one in each) / fair
                values |= {
                    f"one device {name}, Mbit/s": alone,
                    f"all devices {name}, Mbit/s": sum(each),
                    f"all over one, {name}": sum(each) / alone,
                    f"shares {name}, farthest from equal, %": 100 * apart,
                }
    finally:
        destroy(everything)
    return values


def main() -> int:
    """Run it; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.devices", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="default %(default)s")
    parser.add_argument("--seconds", type=int, default=6, help="of load, default %(default)s")
    chosen = parser.parse_args()
    if os.geteuid() != 0:
        say("bench: needs root to make network namespaces: run it with sudo")
        return 1
    ways = dict(WAYS)
    if (missing := WireGuardGo.missing()) is not None:
        say(f"bench: without wireguard-go: {missing}")
        del ways["wireguard-go"]
    measured: dict[str, dict[str, list[float]]] = {way: defaultdict(list) for way in ways}
    for number in range(chosen.rounds):
        for way, values_of in measured.items():
            with tempfile.TemporaryDirectory(prefix="qvpn-bench-") as directory:
                values = measure(way, Path(directory), chosen.seconds)
            for key, value in values.items():
                values_of[key].append(value)
            words = ", ".join(f"{key} {value:,.3g}" for key, value in values.items())
            say(f"round {number + 1}/{chosen.rounds}  {way:12} {words}")
    medians = {
        way: {key: statistics.median(each) for key, each in values_of.items()}
        for way, values_of in measured.items()
    }
    head = (
        f"Measured {datetime.now(UTC):%Y-%m-%d %H:%M} UTC on {cpu_model()}, {os.cpu_count()} CPUs, "
        f"which all {DEVICES} devices and the gateway share; medians of {chosen.rounds} rounds.\n"
    )
    keys = list(medians["qvpn"])
    rows = [
        [key, *(f"{v[key]:.2f}" if "over" in key else f"{v[key]:,.0f}" for v in medians.values())]
        for key in keys
    ]
    report = f"{head}\n{markdown([['', *ways], *rows])}\n"
    print(report)
    (RESULTS / "devices.md").write_text(report)
    (RESULTS / "devices.json").write_text(json.dumps(medians, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
