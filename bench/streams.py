"""``python -m bench.streams``: services on streams beside SSH's port forwarding, in one run.

`qvpn forward` and `ssh -L` carry the same iperf3 over the same link, one connection and ten at
once, taking turns. (`ssh -D` moves bytes as `-L` does; iperf3 speaks no SOCKS.) It prints a table
and writes ``bench/results/streams.json``. It needs root, for namespaces, and Debian's
openssh-server and iperf3.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from bench.lab import GATEWAY_OUTER, TARGET, Lab, LabError, Process, execute, reap
from bench.peers.qvpn import Qvpn, installed
from bench.results import markdown, parse_iperf

RESULTS = Path(__file__).parent / "results"
_IPERF = 5201
_SSH = 2022
_MEASUREMENTS = {
    "one stream, to the gateway": ("-P", "1"),
    "one stream, from the gateway": ("-P", "1", "-R"),
    "ten streams, to the gateway": ("-P", "10"),
    "ten streams, from the gateway": ("-P", "10", "-R"),
}


class Forwarder(ABC):
    """Something that makes TARGET's iperf3 reachable at the client's own port."""

    name: ClassVar[str]

    def __init__(self, lab: Lab) -> None:
        self.lab = lab

    @abstractmethod
    def start(self) -> Process:
        """Both ends; returns the client's when it listens."""


class QvpnForward(Forwarder):
    """This project."""

    name = "qvpn forward"

    def start(self) -> Process:
        peer = Qvpn(self.lab, 1420)
        peer.start_gateway()
        state = str(self.lab.directory / "gateway")
        rule = ("--service", f"{TARGET}:{_IPERF}")
        server = installed("qvpn-server") or ""
        execute([server, "group", "set", "everyone", *rule, "--state", state])
        client = self.lab.spawn(
            self.lab.client,
            "qvpn",
            [installed("qvpn") or "", "forward", "bench", f"{_IPERF}:{TARGET}:{_IPERF}"],
            env=peer.environment(),
        )
        client.wait_for(" at ")
        return client


class SshForward(Forwarder):
    """OpenSSH."""

    name = "ssh -L"

    def start(self) -> Process:
        # Not in the lab's directory: sshd wants keys that nobody else can replace.
        self._keys = tempfile.TemporaryDirectory(prefix="qvb-ssh-")
        folder = Path(self._keys.name)
        for key in ("host", "user"):
            execute(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / key)])
        options = {
            "HostKey": folder / "host",
            "AuthorizedKeysFile": folder / "user.pub",
            "StrictModes": "no",
            "UsePAM": "no",
            "PidFile": "none",
            "PermitRootLogin": "yes",
            "MaxSessions": "50",
        }
        config = folder / "config"
        config.write_text("".join(f"{name} {value}\n" for name, value in options.items()))
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        sshd = shutil.which("sshd", path="/usr/sbin:/usr/bin") or "sshd"
        server = self.lab.spawn(
            self.lab.gateway, "sshd", [sshd, "-D", "-e", "-f", str(config), "-p", str(_SSH)]
        )
        server.wait_for("listening")
        client = self.lab.spawn(
            self.lab.client,
            "ssh",
            [
                *("ssh", "-F", "none", "-v", "-N", "-i", str(folder / "user"), "-p", str(_SSH)),
                *("-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"),
                *("-o", "IdentitiesOnly=yes", "-o", "ExitOnForwardFailure=yes"),
                *("-L", f"127.0.0.1:{_IPERF}:{TARGET}:{_IPERF}", f"root@{GATEWAY_OUTER}"),
            ],
        )
        client.wait_for("Entering interactive session")
        return client


def measure(lab: Lab, forwarder: Forwarder, seconds: int) -> dict[str, float]:
    """Mbit/s by measurement."""
    server = lab.spawn(lab.gateway, "iperf3-server", ["iperf3", "-s", "-B", TARGET, "--forceflush"])
    server.wait_for("Server listening")
    client = forwarder.start()
    values = {}
    for name, options in _MEASUREMENTS.items():
        iperf = lab.spawn(
            lab.client, "iperf3", ["iperf3", "-c", "127.0.0.1", "-J", "-t", str(seconds), *options]
        )
        values[name] = parse_iperf(iperf.wait(seconds + 20.0)).megabits
        client.check()
    return values


def main(argv: Sequence[str] | None = None) -> int:
    """Run the comparison; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.streams", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="default %(default)s")
    parser.add_argument(
        "--seconds", type=int, default=4, metavar="S", help="per iperf3 run, default %(default)s"
    )
    chosen = parser.parse_args(argv)
    tools = ("ssh", "ssh-keygen", "iperf3")
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if os.geteuid() != 0 or missing:
        print(f"bench.streams: needs root and {', '.join(missing or tools)}", file=sys.stderr)
        return 1
    reap()
    samples: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for _ in range(chosen.rounds):
        for kind in (SshForward, QvpnForward):
            with Lab() as lab:
                try:
                    values = measure(lab, kind(lab), chosen.seconds)
                except (LabError, ValueError) as error:
                    print(f"bench.streams: {kind.name}: {error}", file=sys.stderr)
                    return 1
            for name, value in values.items():
                samples[kind.name][name].append(value)
    base = samples[SshForward.name]
    entries = [
        {
            "name": name,
            "unit": "Mbit/s",
            "value": round(statistics.median(rounds), 1),
            "peer": peer,
            "ratio": round(statistics.median(rounds) / statistics.median(base[name]), 2),
        }
        for peer, measured in samples.items()
        for name, rounds in measured.items()
    ]
    peers = list(samples)
    rows = [
        [name, *(f"{statistics.median(samples[peer][name]):,.0f}" for peer in peers)]
        for name in _MEASUREMENTS
    ]
    print(markdown([["Mbit/s", *peers], *rows]))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "streams.json").write_text(json.dumps(entries, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
