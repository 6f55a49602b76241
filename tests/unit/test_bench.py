"""The benchmark: what it reads from iperf3, ping and /proc, and what it makes of that."""

from __future__ import annotations

import json
import os
import statistics
import struct
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.lab import CLIENT_OUTER, TARGET, Lab, LabError
from bench.measure import CpuClock, FirstReply, checksum, echo_request
from bench.peers.base import Raw
from bench.results import (
    METRICS,
    Entry,
    aggregate,
    markdown,
    parse_cpu_busy,
    parse_iperf,
    parse_memory,
    parse_ping,
    parse_process_cpu,
    percentile,
    render,
    spread,
)

# Shortened from iperf3 3.12: `iperf3 -c ... -u -l 64 -b 0 -t 2 -J`.
UDP_REPORT = {
    "start": {"version": "iperf 3.12"},
    "end": {
        "sum": {"seconds": 2.00006, "bytes": 27306240, "lost_packets": 7737, "packets": 426660},
        "sum_sent": {"seconds": 2.000009, "bytes": 27306240, "packets": 426660, "sender": True},
        "sum_received": {"seconds": 2.00006, "bytes": 26810880, "packets": 426657},
    },
}

PING_OUTPUT = """\
PING 198.18.100.1 (198.18.100.1) 56(84) bytes of data.
64 bytes from 198.18.100.1: icmp_seq=1 ttl=64 time=0.512 ms
64 bytes from 198.18.100.1: icmp_seq=2 ttl=64 time=0.041 ms
64 bytes from 198.18.100.1: icmp_seq=2 ttl=64 time=9.999 ms (DUP!)
64 bytes from 198.18.100.1: icmp_seq=4 ttl=64 time=12.0 ms

--- 198.18.100.1 ping statistics ---
4 packets transmitted, 3 received, +1 duplicates, 25% packet loss, time 30ms
rtt min/avg/max/mdev = 0.041/4.184/12.000/5.528 ms
"""


class TestIperf:
    def test_throughput_is_what_the_receiver_got(self) -> None:
        result = parse_iperf(json.dumps(UDP_REPORT))
        assert result.megabits == pytest.approx(107.24, abs=0.01)

    def test_loss_counts_what_was_sent_and_never_arrived(self) -> None:
        result = parse_iperf(json.dumps(UDP_REPORT))
        assert result.loss_percent == pytest.approx(1.814, abs=0.001)

    @pytest.mark.parametrize(
        ("text", "complaint"),
        [
            ("", "no report"),
            ("iperf3: interrupt", "no report"),
            ('{"error": "unable to connect to server: timed out"}', "unable to connect"),
            ('{"start": {}}', "lacks 'end'"),
            (
                '{"end": {"sum_sent": {"bytes": 9}, "sum_received": {"bytes": 0, "seconds": 4}}}',
                "nothing",
            ),
        ],
    )
    def test_a_failed_run_says_why(self, text: str, complaint: str) -> None:
        with pytest.raises(ValueError, match=complaint):
            parse_iperf(text)


class TestPing:
    def test_reads_each_reply_once(self) -> None:
        assert parse_ping(PING_OUTPUT).times == (0.512, 0.041, 12.0)

    def test_unanswered_pings_are_loss(self) -> None:
        assert parse_ping(PING_OUTPUT).loss_percent == 25

    @pytest.mark.parametrize(
        ("text", "complaint"),
        [
            ("ping: connect: Network is unreachable\n", "no summary"),
            ("5 packets transmitted, 0 received, 100% packet loss, time 4097ms\n", "answered"),
        ],
    )
    def test_no_answer_is_an_error_and_not_zero(self, text: str, complaint: str) -> None:
        with pytest.raises(ValueError, match=complaint):
            parse_ping(text)

    def test_the_first_reply_probe_sends_a_valid_echo_request(self) -> None:
        packet = echo_request(0x1234, 0x1_0005)
        assert struct.unpack("!BB2xHH", packet) == (8, 0, 0x1234, 5)
        assert checksum(packet) == 0, "a message with a right checksum sums up to zero"


class TestPercentile:
    @pytest.mark.parametrize(
        ("share", "expected"), [(50, 50), (95, 95), (99.5, 100), (100, 100), (0, 1)]
    )
    def test_is_the_nearest_rank(self, share: float, expected: int) -> None:
        assert percentile(range(100, 0, -1), share) == expected

    @given(st.lists(st.floats(0, 1e6), min_size=1), st.integers(1, 100))
    def test_at_least_that_share_is_not_above_it(self, values: list[float], share: int) -> None:
        limit = percentile(values, share)
        assert limit in values
        assert sum(value <= limit for value in values) * 100 >= share * len(values)

    def test_nothing_has_no_percentile(self) -> None:
        with pytest.raises(ValueError, match="no values"):
            percentile([], 50)


class TestProc:
    def test_idle_waiting_and_stolen_time_is_not_busy(self) -> None:
        text = "cpu  100 20 300 99999 8888 4 50 7777 60 6\ncpu0 1 2 3 4 5 6 7 8 9 10\n"
        assert parse_cpu_busy(text) == 100 + 20 + 300 + 4 + 50

    def test_a_process_name_may_look_like_the_end_of_a_name(self) -> None:
        rest = " S 1 2 3 4 5 6 7 8 9 10 1100 220 33 44"
        assert parse_process_cpu(f"42 (a) b) 9 9){rest}") == 1100 + 220

    def test_memory_is_in_megabytes(self) -> None:
        text = "55d0-7ffd ---p 00000000 00:00 0 [rollup]\nRss:  2000 kB\nPss:  1000 kB\n"
        assert parse_memory(text) == (2.048, 1.024)

    @pytest.mark.parametrize("parse", [parse_cpu_busy, parse_memory])
    def test_something_else_is_refused(self, parse: object) -> None:
        assert callable(parse)
        with pytest.raises(ValueError, match="not"):
            parse("")

    def test_the_real_files_parse(self) -> None:
        clock = CpuClock.read([os.getpid()])
        assert clock.machine > 0
        assert 0 < clock.processes <= sum(os.times()[:2]) + 0.02
        rss, pss = parse_memory(Path("/proc/self/smaps_rollup").read_text())
        assert 0 < pss <= rss


ROUNDS = {
    "raw": {"tcp_up": [16000.0, 17000.0, 9000.0], "rtt_idle_median": [0.06]},
    "wireguard-go": {"tcp_up": [400.0, 440.0, 420.0], "rtt_idle_median": [0.5, 0.48, 0.52]},
    "qvpn": {"tcp_up": [210.0, 100.0, 840.0], "rtt_idle_median": [0.46], "client_rss": [40.0]},
}


def entry(entries: Sequence[Entry], name: str, peer: str) -> Entry:
    (found,) = (entry for entry in entries if (entry["name"], entry["peer"]) == (name, peer))
    return found


class TestAggregate:
    def test_an_entry_has_exactly_the_promised_keys(self) -> None:
        for one in aggregate(ROUNDS):
            assert set(one) == {"name", "unit", "value", "peer", "ratio"}
        json.dumps(aggregate(ROUNDS), allow_nan=False)

    def test_the_value_is_the_median_of_the_rounds(self) -> None:
        assert entry(aggregate(ROUNDS), "tcp_up", "raw")["value"] == 16000

    def test_the_ratio_is_to_wireguard_go(self) -> None:
        assert entry(aggregate(ROUNDS), "tcp_up", "qvpn")["ratio"] == 0.5
        assert entry(aggregate(ROUNDS), "tcp_up", "wireguard-go")["ratio"] == 1

    def test_without_wireguard_go_the_ratio_is_to_raw(self) -> None:
        rounds = {peer: values for peer, values in ROUNDS.items() if peer != "wireguard-go"}
        assert entry(aggregate(rounds), "tcp_up", "qvpn")["ratio"] == pytest.approx(0.0131)

    def test_what_the_baseline_did_not_measure_has_no_ratio(self) -> None:
        assert entry(aggregate(ROUNDS), "client_rss", "qvpn")["ratio"] is None

    def test_added_latency_is_relative_to_raw(self) -> None:
        added = entry(aggregate(ROUNDS), "rtt_added", "qvpn")
        assert added["value"] == pytest.approx(0.40)
        assert added["ratio"] == pytest.approx(0.40 / 0.44, abs=1e-4)

    def test_a_peer_without_any_result_is_left_out(self) -> None:
        assert aggregate({"openvpn": {}, **ROUNDS}) == aggregate(ROUNDS)

    @given(
        st.dictionaries(
            st.sampled_from(["raw", "wireguard-go", "openvpn", "qvpn"]),
            st.dictionaries(
                st.sampled_from([m.name for m in METRICS if m.name != "rtt_added"]),
                st.lists(st.floats(0, 1e9), min_size=1, max_size=7),
            ),
        )
    )
    def test_any_set_of_results_gives_medians_and_a_table(
        self, samples: dict[str, dict[str, list[float]]]
    ) -> None:
        entries = aggregate(samples)
        for one in entries:
            if one["name"] != "rtt_added":
                median = statistics.median(samples[one["peer"]][one["name"]])
                assert one["value"] == pytest.approx(median, abs=1e-6)
        if entries:
            widths = {len(line) for line in render(entries, samples).splitlines()}
            assert len(widths) == 1, "columns line up"


class TestTable:
    def test_a_cell_is_median_spread_and_ratio(self) -> None:
        table = render(aggregate(ROUNDS), ROUNDS).splitlines()
        assert [cell.strip() for cell in table[0].split("|")[1:-1]] == [
            "",
            "raw",
            "wireguard-go",
            "qvpn",
        ]
        (row,) = (line for line in table if "TCP to the gateway" in line)
        assert [cell.strip() for cell in row.split("|")[1:-1]] == [
            "TCP to the gateway, Mbit/s ↑",
            "16,000 ±25% (×38.10)",
            "420 ±5%",
            "210 ±176% (×0.50)",
        ]

    def test_what_was_not_measured_is_a_dash(self) -> None:
        table = render(aggregate(ROUNDS), ROUNDS)
        (row,) = (line for line in table.splitlines() if "client RSS" in line)
        assert [cell.strip() for cell in row.split("|")[2:-1]] == ["–", "–", "40.0"]

    def test_spread_is_half_the_range(self) -> None:
        assert spread([90, 100, 120]) == 15
        assert spread([0, 0]) == 0

    def test_markdown_aligns_numbers_to_the_right(self) -> None:
        assert markdown([["", "a"], ["row", "10"]]).splitlines() == [
            "|     |  a |",
            "| --- | -: |",
            "| row | 10 |",
        ]


def test_metric_names_are_unique() -> None:
    names = [metric.name for metric in METRICS]
    assert len(set(names)) == len(names)


@pytest.mark.netns
class TestLab:
    def test_the_target_is_reached_only_as_the_peer_sets_it_up(self) -> None:
        with Lab() as lab:
            with pytest.raises(LabError, match="unreachable"):
                lab.client.device_towards(TARGET)
            raw = Raw(lab, 1400)
            raw.start_gateway()
            with FirstReply(lab) as probe:
                raw.start_client()
                probe.wait(raw.check, 5.0)
            raw.settle()
            assert lab.client.mtu(lab.client.device_towards(TARGET)) == 1400
            assert raw.client_address() == CLIENT_OUTER

    def test_nothing_is_left_behind_after_a_failure(self) -> None:
        lab = Lab()
        with pytest.raises(LabError, match="on purpose"):
            self.start_and_fail(lab)
        for path in (lab.client.path, lab.gateway.path, lab.directory, self.process):
            assert not path.exists()

    def start_and_fail(self, lab: Lab) -> None:
        with lab:
            self.process = Path("/proc", str(lab.spawn(lab.gateway, "x", ["sleep", "60"]).pid))
            assert self.process.exists()
            raise LabError("on purpose")

    def test_a_dead_program_is_told_by_its_last_words(self) -> None:
        with Lab() as lab:
            script = lab.spawn(lab.client, "script", ["sh", "-c", "echo no such luck; exit 3"])
            with pytest.raises(LabError, match="script ended: no such luck"):
                script.wait_for("success")
