"""``python -m bench.soak``: an hour of traffic through one tunnel, while another comes and goes.

It prints the resident memory of the gateway and of the client once a minute, and writes how it grew
to ``bench/results/soak.json`` and ``soak.md``. It needs root, for namespaces; it is light enough to
run beside other work.
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
from datetime import UTC, datetime
from pathlib import Path

from bench.__main__ import RESULTS, cpu_model, say
from bench.devices import GATEWAY, TARGET, wire
from bench.measure import memory
from bench.results import markdown
from tests.world.namespaces import Namespace, create, destroy
from tests.world.vpn import VpnClient, VpnGateway

#: Mbit/s in each direction.
RATE = 60
#: Seconds between two samples, and after how many minutes growth counts.
_EVERY = 15.0
_WARM = 5.0


def device_packets(host: Namespace) -> int:
    """What the tunnel's device has carried, both ways."""
    shown = host.run(["ip", "-j", "-s", "link", "show", "qvpn0"])
    (link,) = json.loads(shown.stdout)
    counts = link["stats64"]
    return int(counts["rx"]["packets"] + counts["tx"]["packets"])


def soak(directory: Path, minutes: float) -> dict[str, float]:
    """What there is to tell afterwards."""
    gateway, switch = Namespace("gateway"), Namespace("switch")
    hosts = [Namespace("steady"), Namespace("fleeting")]
    everything = [gateway, switch, *hosts]
    create(everything)
    try:
        wire(gateway, switch, hosts)
        server = VpnGateway(gateway, directory / "gateway", address=GATEWAY)
        server.init("--dns", "192.0.2.53")
        server.start()
        assert server.process is not None
        steady, fleeting = (VpnClient(host, directory / host.name) for host in hosts)
        for client, name in ((steady, "steady"), (fleeting, "fleeting")):
            client.add_profile(server.token(name))
        client = steady.foreground("--only", f"{TARGET}/32")
        datapath = steady.status()["datapath"]
        gateway.popen(["iperf3", "-s"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(0.5)
        load = hosts[0].popen(
            [
                "iperf3",
                "-c",
                TARGET,
                "--bidir",
                "-b",
                f"{RATE}M",
                "-t",
                str(int(minutes * 60) + 30),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        samples: list[tuple[float, float, float]] = []
        begin = time.monotonic()
        visits = 0
        while (now := time.monotonic() - begin) < minutes * 60:
            samples.append((now / 60, memory(server.process.pid)[0], memory(client.pid)[0]))
            if len(samples) % 4 == 1:
                minute, *sizes = samples[-1]
                say(f"minute {minute:4.0f}  gateway {sizes[0]:6.1f} MB  client {sizes[1]:6.1f} MB")
            fleeting.up("--only", f"{TARGET}/32")
            hosts[1].run(["ping", "-c", "1", "-W", "5", TARGET])
            fleeting.down()
            visits += 1
            if load.poll() is not None or client.poll() is not None:
                raise SystemExit("bench: the tunnel or the load in it ended early")
            time.sleep(max(0.0, begin + len(samples) * _EVERY - time.monotonic()))
        packets = device_packets(hosts[0])
        load.kill()
        load.wait()
    finally:
        destroy(everything)
    warm = [sample for sample in samples if sample[0] >= min(_WARM, minutes / 2)]
    values: dict[str, float] = {
        "minutes": minutes,
        "native": float(datapath == "native"),
        "million packets and super-packets": packets / 1e6,
        "other sessions that came and went": float(visits),
    }
    for name, column in (("gateway", 1), ("client", 2)):
        times, sizes = [one[0] for one in warm], [one[column] for one in warm]
        slope = statistics.linear_regression(times, sizes).slope
        values |= {
            f"{name}, MB at the beginning": samples[0][column],
            f"{name}, MB when warm": sizes[0],
            f"{name}, MB at the end": sizes[-1],
            f"{name}, growth when warm, MB/hour": slope * 60,
        }
    return values


def main() -> int:
    """Run it; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60, help="default %(default)s")
    chosen = parser.parse_args()
    if chosen.minutes < 2:
        parser.error("two minutes at least")
    if os.geteuid() != 0:
        say("bench: needs root to make network namespaces: run it with sudo")
        return 1
    with tempfile.TemporaryDirectory(prefix="qvpn-bench-") as directory:
        values = soak(Path(directory), chosen.minutes)
    head = (
        f"Measured {datetime.now(UTC):%Y-%m-%d %H:%M} UTC on {cpu_model()}, {os.cpu_count()} CPUs. "
        f"{RATE} Mbit/s each way; resident memory, warm after {_WARM:.0f} minutes.\n"
    )
    report = f"{head}\n{markdown([['', ''], *([key, f'{v:,.1f}'] for key, v in values.items())])}\n"
    print(report)
    (RESULTS / "soak.md").write_text(report)
    (RESULTS / "soak.json").write_text(json.dumps(values, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
