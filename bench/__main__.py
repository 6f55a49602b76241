"""``python -m bench``: qvpn beside other tunnels on this machine, in one run.

Peers take turns, round by round, so that a slow minute of the machine hits all of them. It prints a
table and writes ``bench/results/latest.json`` and ``latest.md``. It needs root, for namespaces.
Distributions ship versions of wireguard-go five times slower than today's; a newer one anywhere
on PATH is preferred (``go install golang.zx2c4.com/wireguard@latest``, renamed to wireguard-go).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

from bench.lab import LINK_MTU, Lab, LabError, missing_tools, reap
from bench.measure import Turn, memory_per_session
from bench.peers import PEERS, Peer
from bench.results import BASELINES, aggregate, render

RESULTS = Path(__file__).parent / "results"

#: Recorded[peer][metric name]: one value per round.
Recorded = defaultdict[str, defaultdict[str, list[float]]]


def say(line: str) -> None:
    """One line of progress, on stderr."""
    print(line, file=sys.stderr, flush=True)


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    names = [peer.name for peer in PEERS]
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="default %(default)s")
    parser.add_argument(
        "--seconds", type=int, default=4, metavar="S", help="per iperf3 run, default %(default)s"
    )
    parser.add_argument(
        "--mtu", type=int, default=1420, metavar="BYTES", help="inner MTU, default %(default)s"
    )
    parser.add_argument(
        "--peers", nargs="+", choices=names, default=names, metavar="PEER", help=", ".join(names)
    )
    parser.add_argument(
        "--sessions",
        type=int,
        default=20,
        metavar="N",
        help="idle sessions for the gateway's memory, 0 for none, default %(default)s",
    )
    chosen = parser.parse_args(argv)
    if chosen.rounds < 1 or chosen.seconds < 2 or chosen.sessions < 0:
        parser.error("--rounds of 1 or more, --seconds of 2 or more, --sessions of 0 or more")
    if not 1280 <= chosen.mtu <= LINK_MTU:
        parser.error(f"--mtu between 1280 and {LINK_MTU}: the link carries no more")
    return chosen


def available(names: Sequence[str]) -> list[type[Peer]]:
    """The chosen peers that can run here; says why another one cannot."""
    usable = []
    for peer in PEERS:
        if peer.name in names:
            reason = peer.missing()
            if reason is None:
                usable.append(peer)
            else:
                say(f"{peer.name}: skipped: {reason}")
    return usable


def header(peers: Sequence[type[Peer]], chosen: argparse.Namespace) -> str:
    """What was measured where; without it a number means nothing."""
    versions = ", ".join(f"{peer.name} {peer.version()}" for peer in peers)
    baseline = next(
        (name for name in BASELINES if name in [peer.name for peer in peers]), "nothing"
    )
    return (
        f"Measured {datetime.now(UTC):%Y-%m-%d %H:%M} UTC on {cpu_model()}, "
        f"{os.cpu_count()} CPUs, Linux {platform.release()}, "
        f"load {os.getloadavg()[0]:.1f} before the start. "
        f"Peers: {versions}. Inner MTU {chosen.mtu} bytes, TCP cubic, "
        f"{chosen.seconds} s per throughput run.\n"
        f"Medians of {chosen.rounds} rounds; ± is half the range of the rounds; "
        f"× is the ratio to {baseline}.\n"
    )


def cpu_model() -> str:
    """The processor's name as the kernel gives it."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the comparison; the exit status."""
    chosen = arguments(argv)
    if os.geteuid() != 0:
        say("bench: needs root to make network namespaces: run it with sudo")
        return 1
    if missing := missing_tools():
        say(f"bench: {', '.join(missing)} not found: install iproute2, util-linux, iperf3 and ping")
        return 1
    signal.signal(signal.SIGTERM, _terminate)
    reap()
    peers = available(chosen.peers)
    head = header(peers, chosen)
    samples: Recorded = defaultdict(lambda: defaultdict(list))
    for number in range(1, chosen.rounds + 1):
        for kind in list(peers):
            if not turn(kind, chosen, f"round {number}/{chosen.rounds}", samples[kind.name]):
                peers.remove(kind)
    if chosen.sessions:
        for kind in peers:
            idle_sessions(kind, chosen, samples[kind.name])
    entries = aggregate(samples)
    if not entries:
        say("bench: nothing was measured")
        return 1
    report = f"{head}\n{render(entries, samples)}\n"
    print(report)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "latest.md").write_text(report)
    (RESULTS / "latest.json").write_text(json.dumps(entries, indent=1) + "\n")
    say(f"wrote {RESULTS / 'latest.json'}")
    return 0


def turn(
    kind: type[Peer], chosen: argparse.Namespace, label: str, recorded: dict[str, list[float]]
) -> bool:
    """Measure a peer once into `recorded`; False when it has never worked here."""
    begin = time.monotonic()
    with Lab() as lab:
        measured = Turn(lab, kind(lab, chosen.mtu), chosen.seconds, say)
        try:
            measured.run()
        except LabError as error:
            say(f"{kind.name}: {error}")
    for name, value in measured.values.items():
        recorded[name].append(value)
    summary = ", ".join(
        f"{name} {measured.values[name]:,.0f}"
        for name in ("tcp_up", "tcp_down", "udp64_delivered")
        if name in measured.values
    )
    say(f"{label}  {kind.name:<13}{time.monotonic() - begin:5.1f} s  {summary}")
    return bool(recorded)


def idle_sessions(
    kind: type[Peer], chosen: argparse.Namespace, recorded: dict[str, list[float]]
) -> None:
    """Measure a gateway's memory per idle session into `recorded`, where the peer can tell."""
    try:
        with Lab() as lab:
            grown = memory_per_session(kind(lab, chosen.mtu), chosen.sessions)
    except (LabError, ValueError, OSError) as error:
        say(f"{kind.name}: memory per session left out: {error}")
    else:
        if grown is not None:
            recorded["gateway_session"].append(grown)


def _terminate(signum: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + signum)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
    sys.exit(130)
