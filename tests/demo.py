"""``make demo``: the main job of qvpn on this machine, in network namespaces, in half a minute.

A client behind a home router connects to a gateway across a small internet. Every command is run as
it is shown, and every line that says ok was checked; the exit status is 1 when anything is off.
Nothing is left behind, also after Ctrl-C, and this machine's own network is not touched.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Final

from tests.world import World, WorldError, plan, probes, snapshot, unavailable
from tests.world.payload import payload_sha256
from tests.world.vpn import CommandFailed, VpnClient, VpnGateway

#: Seconds that the relay holds each packet, in either direction.
DELAY: Final = 0.01
LOSS: Final = 0.01
SIZE: Final = 16 << 20
SMALL_SIZE: Final = 8 << 20
DEVICE: Final = "laptop"
GATEWAY_SOURCES: Final = (plan.GATEWAY4, plan.GATEWAY6)
DIRECT_SOURCES: Final = (plan.ROUTER4, plan.CLIENT6)

_WIDTH: Final = 34  # columns of what a line is about


class Show:
    """Lines on standard output: what is typed, what is measured, what is checked."""

    def __init__(self) -> None:
        self.failed = 0
        self._colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ

    def title(self, text: str) -> None:
        """The name of a part."""
        self._line("\n" + self._in("1", text))

    def typed(self, host: str, *words: str) -> None:
        """A command, with long secrets cut short."""
        line = shlex.join(words)
        for word in words:
            if len(word) >= 44:
                line = line.replace(word, word[:14] + "…")
        self._line(self._in("2", f"  {host + '$':<9}") + line)

    def measured(self, what: str, value: str) -> None:
        """A number that is neither right nor wrong."""
        self._line(f"        {what:<{_WIDTH}}{value}")

    def check(self, what: str, ok: bool, value: str = "") -> None:
        """A fact that has to hold."""
        self.failed += not ok
        mark = self._in("32", "ok  ") if ok else self._in("31", "FAIL")
        self._line(f"  {mark}  {what:<{_WIDTH}}{value}".rstrip())

    def _in(self, code: str, text: str) -> str:
        return f"\033[{code}m{text}\033[0m" if self._colour else text

    def _line(self, text: str) -> None:
        print(text, flush=True)


class Demo:
    """The parts, in the order of `run`."""

    def __init__(self, show: Show, world: World, gateway: VpnGateway, client: VpnClient) -> None:
        self.show = show
        self.world = world
        self.gateway = gateway
        self.client = client

    def run(self) -> None:
        """Everything, from an untouched network to an untouched network."""
        before = {host.label: snapshot(host) for host in (self.world.client, self.world.gateway)}
        self._before()
        self._start_gateway()
        self._connect()
        self._use()
        self._split()
        self._lose_packets()
        self._end(before)

    def _before(self) -> None:
        self.show.title("Without a tunnel")
        self._sources(DIRECT_SOURCES, ("its router", "itself"))
        self.show.measured("ping", f"{self._ping():.1f} ms")

    def _start_gateway(self) -> None:
        self.show.title("A gateway")
        self._on_gateway(
            "init", "--host", plan.GATEWAY4, "--dns", plan.COMPANY_DNS.v4, plan.COMPANY_DNS.v6
        )
        self.show.typed("gateway", "qvpn-server", "run", "--state", self.gateway.state.name)
        begin = time.monotonic()
        self.gateway.start()
        self.show.measured("listening after", f"{time.monotonic() - begin:.2f} s")

    def _connect(self) -> None:
        self.show.title("A device is invited, enrols itself, and connects")
        link = self._on_gateway("invite", DEVICE).stdout.strip()
        begin = time.monotonic()
        self._on_client("enroll", link, "--profile", DEVICE)
        self.show.measured("enrolled after", f"{time.monotonic() - begin:.2f} s")
        self._up()
        self._sources(GATEWAY_SOURCES, ("the gateway", "the gateway"))
        status = self.client.status()
        self.show.measured("addresses in the tunnel", " ".join(status["addresses"]))
        self.show.measured("largest packet in the tunnel", f"{status['mtu']} bytes, discovered")

    def _use(self) -> None:
        self.show.title("Everything uses the tunnel")
        self.show.measured("ping through the tunnel", f"{self._ping():.1f} ms")
        self._download(SIZE)
        self._explain(plan.BETA.v4, "tunnel")

    def _split(self) -> None:
        self.show.title("Only one network uses the tunnel")
        self._on_client("down")
        self._up("--only", *plan.NETS[0])
        self._sources(GATEWAY_SOURCES, ("the gateway", "the gateway"))
        self._sources(DIRECT_SOURCES, ("its router", "itself"), plan.BETA)
        self._explain(plan.ALPHA.v4, "tunnel")
        self._explain(plan.BETA.v4, "direct")

    def _lose_packets(self) -> None:
        self.show.title(f"The path loses {LOSS:.0%} of all packets, both ways")
        self.world.relay.set(loss=LOSS)
        self._download(SMALL_SIZE)
        lost = self.world.relay.counters("up").lost + self.world.relay.counters("down").lost
        self.show.check("packets lost on the way", lost > 0, str(lost))
        self.world.relay.set(loss=0.0)

    def _end(self, before: dict[str, str]) -> None:
        self.show.title("The end")
        self._on_client("down")
        self._unchanged("the client's network", before["client"], snapshot(self.world.client))
        status = self.gateway.stop()
        self.show.check("the gateway ends on SIGTERM", status == 0, f"exit status {status}")
        self._unchanged("the gateway's network", before["gateway"], snapshot(self.world.gateway))
        self._sources(DIRECT_SOURCES, ("its router", "itself"))

    # Commands

    def _on_gateway(self, *words: str) -> subprocess.CompletedProcess[str]:
        self.show.typed("gateway", "qvpn-server", *words, "--state", self.gateway.state.name)
        return self.gateway.command(*words)

    def _on_client(self, *words: str) -> subprocess.CompletedProcess[str]:
        self.show.typed("client", "qvpn", *words)
        return self.client.command(*words)

    def _up(self, *options: str) -> None:
        begin = time.monotonic()
        self._on_client("up", DEVICE, *options)
        seconds = time.monotonic() - begin
        state = self.client.status()["state"]
        self.show.check("state", state == "connected", f"{state}, after {seconds:.2f} s")

    # Measurements

    def _ping(self) -> float:
        return probes.ping_ms(self.world.client, plan.ALPHA.v4)

    def _sources(
        self, expected: tuple[str, str], whose: tuple[str, str], site: plan.Site = plan.ALPHA
    ) -> None:
        for address, wanted, owner in zip((site.v4, site.v6), expected, whose, strict=True):
            seen = probes.source_seen(self.world.client, address)
            value = f"{seen}, {owner}" if seen == wanted else f"{seen}, not {wanted}"
            version = 6 if ":" in address else 4
            self.show.check(f"{site.name} sees over IPv{version}", seen == wanted, value)

    def _download(self, size: int) -> None:
        got = probes.download(self.world.client, plan.ALPHA.v4, size)
        right = got.size == size and got.sha256 == payload_sha256(size)
        speed = f"{got.mbit_per_second:.0f} Mbit/s, SHA-256 {'right' if right else 'WRONG'}"
        self.show.check(f"download of {size >> 20} MiB", right, speed)

    def _explain(self, destination: str, way: str) -> None:
        words = self._on_client("routes", "explain", destination).stdout.strip()
        sentence = {"tunnel": "uses the tunnel", "direct": "goes direct"}[way]
        self.show.check(words, words.startswith(f"{destination} {sentence}:"))

    def _unchanged(self, what: str, before: str, after: str) -> None:
        lines = len(before.splitlines())
        value = f"as before, byte for byte ({lines} facts)" if before == after else "CHANGED"
        self.show.check(what, before == after, value)


def main() -> int:
    """Run the demo; returns the exit status."""
    if os.geteuid() != 0:
        return _give_up("make demo needs root for network namespaces: run it with sudo")
    if reason := unavailable():
        return _give_up(f"make demo cannot run here: {reason}")
    show = Show()
    begin = time.monotonic()
    try:
        with _ended_by_sigterm():
            print("qvpn: a client, a home router, an internet and a gateway, each in a namespace")
            _run(show)
    except (CommandFailed, WorldError, OSError, subprocess.TimeoutExpired) as error:
        return _give_up(f"the demo failed: {error}")
    except KeyboardInterrupt:
        return _give_up("the demo was interrupted", 130)
    seconds = time.monotonic() - begin
    if show.failed:
        return _give_up(f"the demo failed: {show.failed} of the lines above say FAIL")
    show.title(f"All as it should be, in {seconds:.0f} seconds; nothing is left behind.")
    return 0


def _run(show: Show) -> None:
    with tempfile.TemporaryDirectory(prefix="qvpn-demo-") as name, World() as world:
        directory = Path(name)
        world.relay.set(delay=DELAY)
        gateway = VpnGateway(world.gateway, directory / "gateway")
        with VpnClient(world.client, directory / "client") as client:
            Demo(show, world, gateway, client).run()


def _give_up(why: str, status: int = 1) -> int:
    print(why, file=sys.stderr)
    return status


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM unwind as Ctrl-C does, so that everything is taken down."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


if __name__ == "__main__":
    sys.exit(main())
