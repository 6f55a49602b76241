"""``python -m bench.devices``: eight devices at once on one gateway, and one alone, in one run.

Each device has a namespace of its own on one switch; all download, then all upload, each by one TCP
flow (CUBIC) through its tunnel. It prints what each gets and what all get together, and writes
``bench/results/devices.json`` and ``devices.md``. It needs root, for namespaces.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.__main__ import RESULTS, cpu_model, say
from bench.results import markdown
from tests.world.namespaces import Namespace, create, destroy
from tests.world.vpn import VpnClient, VpnGateway

DEVICES = 8
#: RFC 2544's range for benchmarks, and a host behind the gateway.
_NETWORK = "198.18.0"
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


def measure(directory: Path, seconds: int) -> dict[str, float]:
    """One round."""
    gateway, switch = Namespace("gateway"), Namespace("switch")
    hosts = [Namespace(f"device{number}") for number in range(DEVICES)]
    everything = [gateway, switch, *hosts]
    create(everything)
    values: dict[str, float] = {}
    try:
        wire(gateway, switch, hosts)
        server = VpnGateway(gateway, directory / "gateway", address=f"{_NETWORK}.1")
        server.init("--dns", "192.0.2.53")
        server.start()
        with ExitStack() as stack:
            for number, host in enumerate(hosts):
                client = stack.enter_context(VpnClient(host, directory / f"device{number}"))
                client.add_profile(server.token(f"device{number}"))
                client.up("--only", f"{TARGET}/32")
                gateway.popen(["iperf3", "-s", "-p", str(_FIRST_PORT + number)],
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
            for name, options in (("from the gateway", ("-R",)), ("to the gateway", ())):
                (alone,) = load(hosts[:1], seconds, *options)
                each = load(hosts, seconds, *options)
                values[f"one device {name}, Mbit/s"] = alone
                values[f"all devices {name}, Mbit/s"] = sum(each)
                fair = sum(each) / len(each)
                apart = max(abs(one - fair) for one in each) / fair
                values[f"shares {name}, farthest from equal, %"] = 100 * apart
        server.stop()
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
    measured: dict[str, list[float]] = defaultdict(list)
    for number in range(chosen.rounds):
        with tempfile.TemporaryDirectory(prefix="qvpn-bench-") as directory:
            values = measure(Path(directory), chosen.seconds)
        for key, value in values.items():
            measured[key].append(value)
        words = ", ".join(f"{key} {value:,.0f}" for key, value in values.items())
        say(f"round {number + 1}/{chosen.rounds}  {words}")
    medians = {key: statistics.median(values) for key, values in measured.items()}
    head = (
        f"Measured {datetime.now(UTC):%Y-%m-%d %H:%M} UTC on {cpu_model()}, {os.cpu_count()} CPUs, "
        f"which all {DEVICES} devices and the gateway share; medians of {chosen.rounds} rounds.\n"
    )
    rows = [[key, f"{value:,.0f}"] for key, value in medians.items()]
    report = f"{head}\n{markdown([['', 'median'], *rows])}\n"
    print(report)
    (RESULTS / "devices.md").write_text(report)
    (RESULTS / "devices.json").write_text(json.dumps(medians, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
