"""``python -m bench.bottleneck``: a ping beside bulk traffic on a slow link, in one run.

The link carries 50 Mbit/s and has 20 ms round trip and a queue of 1,000 packets, as home routers
do. Without a tunnel and through both datapaths of qvpn, one TCP download and one upload (CUBIC) run
while pings go the same way. It prints a table and writes ``bench/results/bottleneck.json`` and
``bottleneck.md``. It needs root, for namespaces.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from bench.__main__ import RESULTS, cpu_model, say
from bench.results import markdown, parse_ping, percentile
from tests.world import plan
from tests.world.topology import World
from tests.world.vpn import VpnClient, VpnGateway

RATE = 50e6  # bits per second of IP packets
DELAY = 0.01  # seconds in each direction
QUEUE = 1000  # packets
_PORT = "5301"

#: What QVPN_DATAPATH says; None is no tunnel.
WAYS: dict[str, str | None] = {"no tunnel": None, "native": "", "aioquic": "aioquic"}


@contextmanager
def way(world: World, directory: Path, datapath: str | None) -> Iterator[None]:
    """While inside, the sites are reached as this way does it."""
    if datapath is None:
        yield
        return
    gateway = VpnGateway(world.gateway, directory / "gateway")
    gateway.init()
    gateway.start(QVPN_DATAPATH=datapath)
    client = VpnClient(world.client, directory / "client")
    client.environment |= {"QVPN_DATAPATH": datapath}
    with client:
        client.add_profile(gateway.token("bench"))
        client.up("--only", plan.ALPHA.v4)
        shown = client.status()["datapath"]
        if shown != (datapath or "native"):
            raise SystemExit(f"bench: the {shown} datapath serves where another was asked for")
        yield
    gateway.stop()


def measure(world: World, seconds: int) -> dict[str, float]:
    """Throughput, and the ping beside it, in both directions."""
    target = plan.ALPHA.v4
    values = {}

    def ping(duration: float) -> list[float]:
        argv = ["ping", "-n", "-i", "0.05", "-c", str(int(duration / 0.05)), "-W", "5", target]
        return parse_ping(world.client.run(argv, timeout=duration + 30, check=False).stdout).times

    values["idle"] = statistics.median(ping(2))
    server = world.internet.popen(
        ["iperf3", "-s", "-p", _PORT], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        for name, option in (("up", []), ("down", ["-R"])):
            argv = [
                "iperf3",
                "-c",
                target,
                "-p",
                _PORT,
                "-J",
                "-C",
                "cubic",
                "-t",
                str(seconds + 3),
                *option,
            ]
            load = world.client.popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
            world.client.run(["sleep", "2"])  # past slow start
            times = ping(seconds - 1)
            output, _ = load.communicate(timeout=60)
            received = json.loads(output)["end"]["sum_received"]["bits_per_second"]
            values[f"{name} Mbit/s"] = received / 1e6
            values[f"{name} ping p95"] = percentile(times, 95)
            values[f"{name} added p95"] = percentile(times, 95) - values["idle"]
    finally:
        server.kill()
        server.wait()
    return values


def main() -> int:
    """Run it; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.bottleneck", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="default %(default)s")
    parser.add_argument("--seconds", type=int, default=8, help="of load, default %(default)s")
    chosen = parser.parse_args()
    if os.geteuid() != 0:
        say("bench: needs root to make network namespaces: run it with sudo")
        return 1
    measured: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for number in range(chosen.rounds):
        for name, datapath in WAYS.items():
            with tempfile.TemporaryDirectory(prefix="qvpn-bench-") as directory, World() as world:
                world.relay.set(rate=RATE, delay=DELAY, queue=QUEUE)
                with way(world, Path(directory), datapath):
                    values = measure(world, chosen.seconds)
            for key, value in values.items():
                measured[name][key].append(value)
            say(f"round {number + 1}/{chosen.rounds}  {name:10} {_words(values)}")
    medians = {
        name: {key: statistics.median(each) for key, each in values.items()}
        for name, values in measured.items()
    }
    head = (
        f"Measured {datetime.now(UTC):%Y-%m-%d %H:%M} UTC on {cpu_model()}, {os.cpu_count()} CPUs. "
        f"A link of {RATE / 1e6:.0f} Mbit/s, {2000 * DELAY:.0f} ms and {QUEUE} packets; one TCP "
        f"flow; medians of {chosen.rounds} rounds. Pings in ms.\n"
    )
    keys = list(next(iter(medians.values())))
    rows = [[key, *(f"{values[key]:.1f}" for values in medians.values())] for key in keys]
    table = markdown([["", *medians], *rows])
    report = f"{head}\n{table}\n"
    print(report)
    (RESULTS / "bottleneck.md").write_text(report)
    (RESULTS / "bottleneck.json").write_text(json.dumps(medians, indent=1) + "\n")
    return 0


def _words(values: dict[str, float]) -> str:
    return ", ".join(f"{re.sub(' ', '_', key)} {value:.1f}" for key, value in values.items())


if __name__ == "__main__":
    sys.exit(main())
