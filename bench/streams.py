"""``python -m bench.streams``: services on streams beside SSH and OpenVPN over TCP, in one run.

`qvpn forward` and `qvpn proxy` over either transport, `ssh -L`, `ssh -D` and a tunnel of OpenVPN
over TCP carry the same load over the same link, one connection and ten at once, taking turns. It
prints a table and writes ``bench/results/streams.json`` and ``streams.md``. It needs root, for
namespaces, and Debian's openssh-server; without openvpn, that one is left out.
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
from datetime import UTC, datetime
from pathlib import Path
from typing import ClassVar

from bench.__main__ import cpu_model
from bench.lab import GATEWAY_OUTER, TARGET, Lab, LabError, Process, execute, reap
from bench.measure import FirstReply
from bench.peers.openvpn import OpenVpnTcp
from bench.peers.qvpn import Qvpn, installed
from bench.results import markdown
from qvpn_core.transport.interface import TransportName

RESULTS = Path(__file__).parent / "results"
_MTU = 1420
_SINK = 5201
_SOCKS = 1080
_SSH = 2022
_CONNECT_SECONDS = 15.0
_MEASUREMENTS = {
    "one stream, to the gateway": ("--connections", "1"),
    "one stream, from the gateway": ("--connections", "1", "--down"),
    "ten streams, to the gateway": ("--connections", "10"),
    "ten streams, from the gateway": ("--connections", "10", "--down"),
}


class Way(ABC):
    """Something that makes TARGET's sink reachable for the client."""

    name: ClassVar[str]
    #: Whether the load asks a SOCKS proxy for TARGET, and where it connects to otherwise.
    socks: ClassVar[bool] = False
    entrance: ClassVar[str] = "127.0.0.1"

    def __init__(self, lab: Lab) -> None:
        self.lab = lab

    @classmethod
    def missing(cls) -> str | None:
        """Why it cannot run here, or None."""
        return None

    @abstractmethod
    def start(self) -> Process | None:
        """Both ends; returns the client's, if it is one, when it is ready."""


class QvpnForward(Way):
    """This project."""

    name = "qvpn forward"
    transport: ClassVar[TransportName] = "quic"
    words: ClassVar[tuple[str, ...]] = ("forward", "bench", f"{_SINK}:{TARGET}:{_SINK}")

    def start(self) -> Process:
        peer = Qvpn(self.lab, _MTU)
        peer.start_gateway()
        peer.choose_transport(self.transport)
        state = str(self.lab.directory / "gateway")
        rule = ("--service", f"{TARGET}:{_SINK}")
        server = installed("qvpn-server") or ""
        execute([server, "group", "set", "everyone", *rule, "--state", state])
        client = self.lab.spawn(
            self.lab.client,
            "qvpn",
            [installed("qvpn") or "", *self.words],
            env=peer.environment(),
        )
        client.wait_for(" at ")
        return client


class QvpnForwardTls(QvpnForward):
    """The same where UDP is blocked."""

    name = "qvpn forward, TLS"
    transport = "tls"


class QvpnProxy(QvpnForward):
    """The same by SOCKS."""

    name = "qvpn proxy"
    socks = True
    words = ("proxy", "bench", "--socks", f"127.0.0.1:{_SOCKS}")


class SshForward(Way):
    """OpenSSH."""

    name = "ssh -L"
    words: ClassVar[tuple[str, ...]] = ("-L", f"127.0.0.1:{_SINK}:{TARGET}:{_SINK}")

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
                *(*self.words, f"root@{GATEWAY_OUTER}"),
            ],
        )
        client.wait_for("Entering interactive session")
        return client


class SshDynamic(SshForward):
    """The same by SOCKS."""

    name = "ssh -D"
    socks = True
    words = ("-D", f"127.0.0.1:{_SOCKS}")


class OpenVpnTunnel(Way):
    """No streams at all: TCP in a tunnel over TCP."""

    name = "openvpn-tcp"
    entrance = TARGET

    @classmethod
    def missing(cls) -> str | None:
        return OpenVpnTcp.missing()

    def start(self) -> None:
        peer = OpenVpnTcp(self.lab, _MTU)
        peer.start_gateway()
        with FirstReply(self.lab) as first:
            peer.start_client()
            first.wait(peer.check, _CONNECT_SECONDS)
        peer.settle()


WAYS: tuple[type[Way], ...] = (
    SshDynamic,
    SshForward,
    OpenVpnTunnel,
    QvpnForward,
    QvpnForwardTls,
    QvpnProxy,
)


def measure(lab: Lab, way: Way, seconds: int) -> dict[str, float]:
    """Mbit/s by measurement."""
    load = [sys.executable, "-m", "bench.load"]
    sink = lab.spawn(lab.gateway, "sink", [*load, "sink", f"{TARGET}:{_SINK}"])
    sink.wait_for("listening")
    client = way.start()
    values = {}
    for name, options in _MEASUREMENTS.items():
        where = (
            (f"{TARGET}:{_SINK}", "--socks", f"127.0.0.1:{_SOCKS}")
            if way.socks
            else (f"{way.entrance}:{_SINK}",)
        )
        words = ("run", *where, "--seconds", str(seconds), *options)
        values[name] = float(lab.spawn(lab.client, "load", [*load, *words]).wait(seconds + 40.0))
        if client is not None:
            client.check()
    return values


def main(argv: Sequence[str] | None = None) -> int:
    """Run the comparison; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.streams", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="default %(default)s")
    parser.add_argument(
        "--seconds", type=int, default=4, metavar="S", help="per measurement, default %(default)s"
    )
    chosen = parser.parse_args(argv)
    tools = ("ssh", "ssh-keygen")
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if os.geteuid() != 0 or missing:
        print(f"bench.streams: needs root and {', '.join(missing or tools)}", file=sys.stderr)
        return 1
    reap()
    load = os.getloadavg()[0]
    samples: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for _ in range(chosen.rounds):
        for kind in WAYS:
            reason = kind.missing()
            if reason is not None:
                print(f"bench.streams: {kind.name}: skipped: {reason}", file=sys.stderr)
                continue
            with Lab() as lab:
                try:
                    values = measure(lab, kind(lab), chosen.seconds)
                except (LabError, ValueError) as error:
                    print(f"bench.streams: {kind.name}: {error}", file=sys.stderr)
                    return 1
            for name, value in values.items():
                samples[kind.name][name].append(value)
    base = samples[SshDynamic.name]
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
    report = (
        f"Measured {datetime.now(UTC):%Y-%m-%d %H:%M} UTC on {cpu_model()}, {os.cpu_count()} CPUs, "
        f"load {load:.1f} before the start. Medians of {chosen.rounds} rounds of "
        f"{chosen.seconds} s.\n\n{markdown([['Mbit/s', *peers], *rows])}\n"
    )
    print(report)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "streams.json").write_text(json.dumps(entries, indent=1) + "\n")
    (RESULTS / "streams.md").write_text(report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
