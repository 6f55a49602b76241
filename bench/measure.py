"""Measures one peer in one lab: throughput, latency, CPU, memory, time to connect.

Every child has a time limit; a measurement that fails is reported and left out, the others go on.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.lab import TARGET, Lab, LabError, Process
from bench.peers import Peer
from bench.results import (
    Throughput,
    parse_cpu_busy,
    parse_iperf,
    parse_memory,
    parse_ping,
    parse_process_cpu,
    percentile,
)

_TICKS = os.sysconf("SC_CLK_TCK")
_CONNECT_TIMEOUT = 15.0
_PROBE_INTERVAL = 0.002
#: How long beyond its own duration an iperf3 run may take to say goodbye through a full tunnel.
_GRACE = 12.0


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071) of an even number of bytes."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    return ~(total + (total >> 16)) & 0xFFFF


def echo_request(identifier: int, sequence: int) -> bytes:
    """An ICMP echo request (RFC 792) without data."""
    head = struct.pack("!BBHHH", 8, 0, 0, identifier, sequence & 0xFFFF)
    return head[:2] + struct.pack("!H", checksum(head)) + head[4:]


class FirstReply:
    """Pings TARGET from a lab's client every two milliseconds until the first reply."""

    def __init__(self, lab: Lab) -> None:
        self._socket = lab.client.socket(socket.SOCK_RAW, socket.IPPROTO_ICMP)
        self._found: float | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._probe)

    def __enter__(self) -> FirstReply:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._socket.close()

    def wait(self, alive: Callable[[], None], timeout: float) -> float:
        """The time.monotonic() of the first reply; `alive` raises when waiting makes no sense."""
        deadline = time.monotonic() + timeout
        while self._thread.is_alive():
            alive()
            if time.monotonic() > deadline:
                raise LabError(f"no packet passed within {timeout:g} s")
            self._thread.join(0.05)
        assert self._found is not None
        return self._found

    def _probe(self) -> None:
        identifier = os.getpid() & 0xFFFF
        sequence = 0
        while not self._stop.is_set():
            try:
                self._socket.sendto(echo_request(identifier, sequence), (TARGET, 0))
            except OSError:
                pass  # No route yet.
            sequence += 1
            ready, _, _ = select.select([self._socket], [], [], _PROBE_INTERVAL)
            if ready:
                packet, (source, _) = self._socket.recvfrom(256)
                header = (packet[0] & 0xF) * 4
                kind, _, _, echoed = struct.unpack_from("!BBHH", packet, header)
                if (kind, echoed, source) == (0, identifier, TARGET):
                    self._found = time.monotonic()
                    return


@dataclass(frozen=True, slots=True)
class CpuClock:
    """CPU seconds used since boot or start: by the machine, and by some processes together."""

    machine: float
    processes: float

    @classmethod
    def read(cls, pids: list[int]) -> CpuClock:
        used = (parse_process_cpu(Path("/proc", str(pid), "stat").read_text()) for pid in pids)
        busy = parse_cpu_busy(Path("/proc/stat").read_text())
        return cls(busy / _TICKS, sum(used) / _TICKS)


def memory(pid: int) -> tuple[float, float]:
    """(RSS, PSS) of a process in MB."""
    return parse_memory(Path("/proc", str(pid), "smaps_rollup").read_text())


def memory_per_session(peer: Peer, count: int) -> float | None:
    """How much the gateway grows for each of `count` idle sessions, in kB of PSS.

    Starts the gateway in a fresh lab. None where the peer cannot open sessions without devices.
    """
    peer.start_gateway()
    _, gateway = peer.pids()
    if gateway is None or not peer.hold_idle_sessions(5):
        return None
    _, before = memory(gateway)  # What the first ones load, and the allocator's slack, is no one's.
    peer.hold_idle_sessions(count)
    peer.check()
    _, after = memory(gateway)
    return (after - before) * 1e3 / count


class Turn:
    """One peer's turn of one round. `values` fills up as measurements succeed."""

    def __init__(self, lab: Lab, peer: Peer, seconds: int, say: Callable[[str], None]) -> None:
        self.lab = lab
        self.peer = peer
        self.seconds = seconds
        self.say = say
        self.values: dict[str, float] = {}

    def run(self) -> None:
        """Start the peer (LabError when that fails) and measure it."""
        self.peer.start_gateway()
        self._connect()
        self.peer.settle()
        server = self.lab.spawn(
            self.lab.gateway, "iperf3-server", ["iperf3", "-s", "-B", TARGET, "--forceflush"]
        )
        server.wait_for("Server listening")
        for measurement in (
            self._idle,
            self._loaded,
            lambda: self._tcp("tcp_down", "-R"),
            lambda: self._tcp("tcp_up_4", "-P", "4"),
            lambda: self._tcp("tcp_down_4", "-P", "4", "-R"),
            self._udp,
            self._memory,
            self._inner_mtu,  # last: a peer may have changed it since it was set
        ):
            try:
                measurement()
            except (LabError, ValueError, OSError) as error:
                self.say(f"{self.peer.name}: left out: {error}")

    def _connect(self) -> None:
        with FirstReply(self.lab) as probe:
            begin = time.monotonic()
            self.peer.start_client()
            took = probe.wait(self.peer.check, _CONNECT_TIMEOUT) - begin
        if any(self.peer.pids()):
            self.values["connect"] = took * 1e3

    def _idle(self) -> None:
        output = self.lab.client.run("ping", "-i", "0.01", "-c", "100", "-w", "5", TARGET)
        times = parse_ping(output).times
        self.values["rtt_idle_median"] = percentile(times, 50)
        self.values["rtt_idle_p95"] = percentile(times, 95)

    def _loaded(self) -> None:
        """One flow to the gateway: throughput, CPU per byte, and the RTT beside it."""
        pids = [pid for pid in self.peer.pids() if pid is not None]
        before = CpuClock.read(pids)
        client = self._iperf("-t", str(self.seconds))
        time.sleep(min(0.5, self.seconds / 4))  # past slow start
        count = max(1, int((self.seconds - 1) / 0.02))
        ping = self.lab.spawn(
            self.lab.client,
            "ping",
            ["ping", "-i", "0.02", "-c", str(count), "-w", str(self.seconds), TARGET],
        )
        result = self._finish(client)
        used = CpuClock.read(pids)
        gigabytes = result.received_bytes / 1e9
        self.values["tcp_up"] = result.megabits
        self.values["cpu_machine"] = (used.machine - before.machine) / gigabytes
        if pids:
            self.values["cpu_tunnel"] = (used.processes - before.processes) / gigabytes
        pings = parse_ping(ping.wait(_GRACE))
        self.values["rtt_loaded_p95"] = percentile(pings.times, 95)
        self.values["ping_loaded_loss"] = pings.loss_percent

    def _tcp(self, name: str, *options: str) -> None:
        client = self._iperf("-t", str(self.seconds), *options)
        self.values[name] = self._finish(client).megabits

    def _udp(self) -> None:
        """64-byte payloads as fast as iperf3 can: what arrives per second, and what is lost."""
        result = self._finish(self._iperf("-u", "-l", "64", "-b", "0", "-t", str(self.seconds)))
        self.values["udp64_delivered"] = result.received_bytes / 64 / result.seconds
        self.values["udp64_loss"] = result.loss_percent

    def _memory(self) -> None:
        for end, pid in zip(("client", "gateway"), self.peer.pids(), strict=True):
            if pid is not None:
                self.values[f"{end}_rss"], self.values[f"{end}_pss"] = memory(pid)

    def _inner_mtu(self) -> None:
        client = self.lab.client
        self.values["inner_mtu"] = client.mtu(client.device_towards(TARGET))

    def _iperf(self, *options: str) -> Process:
        return self.lab.spawn(
            self.lab.client,
            "iperf3",
            ["iperf3", "-c", TARGET, "-J", "--connect-timeout", "3000", *options],
        )

    def _finish(self, client: Process) -> Throughput:
        try:
            client.wait(self.seconds + _GRACE)
        except LabError:
            self.peer.check()  # A dead tunnel is the better explanation,
            parse_iperf(client.output())  # and iperf3's report the next best.
            raise
        return parse_iperf(client.output())
