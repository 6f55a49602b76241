"""From the output of iperf3, ping and /proc to medians, ratios and a table.

Pure functions: text and numbers in, text and numbers out. It measures nothing.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict


@dataclass(frozen=True, slots=True)
class Metric:
    """One thing that is measured. `better` is "higher", "lower", or "" for a plain fact."""

    name: str
    unit: str
    label: str
    better: str
    digits: int = 0


METRICS: tuple[Metric, ...] = (
    Metric("inner_mtu", "bytes", "inner MTU", ""),
    Metric("tcp_up", "Mbit/s", "TCP to the gateway", "higher"),
    Metric("tcp_down", "Mbit/s", "TCP from the gateway", "higher"),
    Metric("tcp_up_4", "Mbit/s", "TCP to the gateway, 4 flows", "higher"),
    Metric("tcp_down_4", "Mbit/s", "TCP from the gateway, 4 flows", "higher"),
    Metric("udp64_delivered", "packets/s", "UDP 64 bytes, delivered", "higher"),
    Metric("udp64_loss", "%", "UDP 64 bytes, lost at full offer", "", 1),
    Metric("rtt_idle_median", "ms", "RTT idle, median", "lower", 3),
    Metric("rtt_idle_p95", "ms", "RTT idle, p95", "lower", 3),
    Metric("rtt_added", "ms", "RTT idle, added to raw", "lower", 3),
    Metric("rtt_loaded_p95", "ms", "RTT under TCP load, p95", "lower", 2),
    Metric("ping_loaded_loss", "%", "pings lost under TCP load", "lower", 1),
    Metric("cpu_machine", "s/GB", "CPU of the machine", "lower", 2),
    Metric("cpu_tunnel", "s/GB", "CPU of the two tunnel processes", "lower", 2),
    Metric("connect", "ms", "command to first ping reply", "lower"),
    Metric("client_rss", "MB", "client RSS", "lower", 1),
    Metric("client_pss", "MB", "client PSS", "lower", 1),
    Metric("gateway_rss", "MB", "gateway RSS", "lower", 1),
    Metric("gateway_pss", "MB", "gateway PSS", "lower", 1),
    Metric("gateway_session", "kB", "gateway memory per idle session", "lower"),
)

#: Peers that ratios refer to, the first one present wins.
BASELINES = ("wireguard-go", "raw")

#: Samples[peer][metric name] holds one value per round.
Samples = Mapping[str, Mapping[str, Sequence[float]]]


class Entry(TypedDict):
    """One line of ``latest.json``; `value` is the median of the rounds."""

    name: str
    unit: str
    value: float
    peer: str
    ratio: float | None


@dataclass(frozen=True, slots=True)
class Throughput:
    """What one iperf3 run delivered to its receiver."""

    sent_bytes: int
    received_bytes: int
    seconds: float

    @property
    def megabits(self) -> float:
        """Mbit/s received."""
        return self.received_bytes * 8 / self.seconds / 1e6

    @property
    def loss_percent(self) -> float:
        """Of the bytes sent, how many never arrived; meant for UDP."""
        return 100 * (1 - self.received_bytes / self.sent_bytes) if self.sent_bytes else 0.0


def parse_iperf(text: str) -> Throughput:
    """Read the JSON report of an iperf3 client; ValueError with its own words when it failed."""
    try:
        report: dict[str, Any] = json.loads(text)
    except json.JSONDecodeError:
        raise ValueError("iperf3 wrote no report") from None
    if "error" in report:
        raise ValueError(f"iperf3: {report['error']}")
    try:
        end = report["end"]
        result = Throughput(
            sent_bytes=int(end["sum_sent"]["bytes"]),
            received_bytes=int(end["sum_received"]["bytes"]),
            seconds=float(end["sum_received"]["seconds"]),
        )
    except KeyError as error:
        raise ValueError(f"iperf3's report lacks {error}") from None
    if not result.seconds or not result.received_bytes:
        raise ValueError("iperf3 delivered nothing")
    return result


@dataclass(frozen=True, slots=True)
class Pings:
    """Round-trip times in milliseconds, in order of arrival, and how many were asked for."""

    times: tuple[float, ...]
    sent: int

    @property
    def loss_percent(self) -> float:
        return 100 * (1 - len(self.times) / self.sent) if self.sent else 0.0


def parse_ping(text: str) -> Pings:
    """Read the output of iputils ping; ValueError without its summary or without any reply."""
    summary = re.search(r"^(\d+) packets transmitted, (\d+) received", text, re.MULTILINE)
    if summary is None:
        raise ValueError("ping gave no summary")
    # A late or repeated reply is marked by ping and is no sample of its own.
    lines = (line for line in text.splitlines() if "(DUP!)" not in line)
    found = (re.search(r"icmp_seq=\d+ .*\btime=([\d.]+) ms", line) for line in lines)
    times = tuple(float(match[1]) for match in found if match)
    if not times:
        raise ValueError("no ping was answered")
    return Pings(times, int(summary[1]))


def percentile(values: Iterable[float], share: float) -> float:
    """The nearest-rank percentile: the smallest value that `share` percent do not exceed."""
    ordered = sorted(values)
    if not ordered:
        raise ValueError("no values")
    rank = -(-len(ordered) * share // 100)  # ceiling
    return ordered[max(0, int(rank) - 1)]


def parse_cpu_busy(text: str) -> int:
    """Ticks that the whole machine spent working, from /proc/stat (proc(5)).

    Idle, waiting for a disk, and time taken by the hypervisor do not count; guest time is already
    inside user time.
    """
    fields = text.split("\n", 1)[0].split()
    if fields[:1] != ["cpu"] or len(fields) < 8:
        raise ValueError("not /proc/stat")
    user, nice, system, _idle, _iowait, irq, softirq = map(int, fields[1:8])
    return user + nice + system + irq + softirq


def parse_process_cpu(text: str) -> int:
    """utime + stime in ticks, from /proc/PID/stat; the process name may hold anything."""
    fields = text.rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def parse_memory(text: str) -> tuple[float, float]:
    """(RSS, PSS) in MB of 10**6 bytes, from /proc/PID/smaps_rollup."""
    sizes = {
        match[1]: int(match[2]) * 1024 / 1e6
        for match in re.finditer(r"^(Rss|Pss):\s+(\d+) kB$", text, re.MULTILINE)
    }
    if len(sizes) != 2:
        raise ValueError("not smaps_rollup")
    return sizes["Rss"], sizes["Pss"]


def aggregate(samples: Samples) -> list[Entry]:
    """Medians of the rounds and their ratios to the baseline's, in the order of METRICS."""
    medians = {
        peer: {name: statistics.median(values) for name, values in metrics.items() if values}
        for peer, metrics in samples.items()
    }
    raw_rtt = medians.get("raw", {}).get("rtt_idle_median")
    if raw_rtt is not None:
        for peer, values in medians.items():
            if peer != "raw" and "rtt_idle_median" in values:
                values["rtt_added"] = values["rtt_idle_median"] - raw_rtt
    baseline = next((medians[peer] for peer in BASELINES if medians.get(peer)), {})
    return [
        Entry(
            name=metric.name,
            unit=metric.unit,
            value=round(value, 6),
            peer=peer,
            ratio=round(value / base, 4) if (base := baseline.get(metric.name)) else None,
        )
        for metric in METRICS
        for peer, values in medians.items()
        if (value := values.get(metric.name)) is not None
    ]


def spread(values: Sequence[float]) -> float:
    """Half the range in percent of the median: how far rounds differ."""
    middle = statistics.median(values)
    return 50 * (max(values) - min(values)) / abs(middle) if middle else 0.0


def render(entries: Sequence[Entry], samples: Samples) -> str:
    """The comparison as a Markdown table: one row per metric, one column per peer.

    A cell is the median, how far the rounds differ, and the ratio to the baseline.
    """
    peers = list(dict.fromkeys(entry["peer"] for entry in entries))
    baseline = next((peer for peer in BASELINES if peer in peers), None)
    by_key = {(entry["name"], entry["peer"]): entry for entry in entries}
    arrows = {"higher": " ↑", "lower": " ↓", "": ""}
    rows = [["", *peers]]
    for metric in METRICS:
        found = [by_key.get((metric.name, peer)) for peer in peers]
        if not any(found):
            continue
        row = [f"{metric.label}, {metric.unit}{arrows[metric.better]}"]
        for peer, entry in zip(peers, found, strict=True):
            if entry is None:
                row.append("–")
                continue
            cell = f"{entry['value']:,.{metric.digits}f}"
            rounds = samples[peer].get(metric.name, ())
            if metric.better and metric.unit != "%" and len(rounds) > 1:
                cell += f" ±{spread(rounds):.0f}%"
            if metric.better and entry["ratio"] is not None and peer != baseline:
                cell += f" (×{entry['ratio']:.2f})"
            row.append(cell)
        rows.append(row)
    return markdown(rows)


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A padded Markdown table; the first row is the head, the first column reads to the left."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]

    def line(row: Sequence[str]) -> str:
        cells = [
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        return f"| {' | '.join(cells)} |"

    rule = [
        "-" * width if column == 0 else "-" * (width - 1) + ":"
        for column, width in enumerate(widths)
    ]
    return "\n".join([line(rows[0]), line(rule), *map(line, rows[1:])])
