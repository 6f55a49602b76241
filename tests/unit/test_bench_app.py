"""What the benchmark of the app makes of its numbers."""

from __future__ import annotations

from collections import defaultdict

import pytest

from bench.app import METRICS, _quantile, report


@pytest.mark.parametrize(
    ("counts", "share", "delay"),
    [
        ([98, 0, 1, 1], 0.5, 0),
        ([98, 0, 1, 1], 0.99, 2),
        ([98, 0, 1, 1], 1.0, 3),
        ([0, 0, 0, 0, 7], 0.5, 4),
    ],
)
def test_a_quantile_is_the_delay_that_a_share_does_not_exceed(
    counts: list[int], share: float, delay: float
) -> None:
    assert _quantile(counts, share) == delay


def test_what_is_missed_is_marked_and_what_was_not_measured_is_left_out() -> None:
    recorded: defaultdict[str, list[float]] = defaultdict(list)
    recorded["start_notifier"] = [1.0, 2.0, 3.0]
    recorded["idle"] = [0.1]
    text, entries = report(recorded, "head")
    assert "MISSED: < 1.5" in text
    assert "< 0.5 |" in text
    assert [entry["name"] for entry in entries] == ["start_notifier", "idle"]
    assert entries[0] == {"name": "start_notifier", "unit": "s", "value": 2.0, "wanted": 1.5}
    assert {"start_cold", "rss", "turn_max"} <= METRICS.keys()
