"""Path MTU discovery against simulated paths: it finds the limit, and notices when it moves."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qvpn_core.transport.pmtud import (
    BASE_PLPMTU,
    MAX_PROBES,
    RAISE_TIMER,
    SEARCH_STEP,
    PathMtuDiscovery,
    Phase,
)

FLOOR = 1313
CEILING = 1472
RTT = 0.05

# Halving the distance from the floor to the ceiling until it is a step, each with every retry, and
# the two sizes of the start.
PROBE_BOUND = MAX_PROBES * (2 + ((CEILING - FLOOR) // SEARCH_STEP).bit_length())

limits = st.integers(FLOOR, CEILING + 100)


class Path:
    """A path that carries `limit` bytes, and loses what `loses` says of the n-th probe."""

    def __init__(
        self, limit: int, loses: Callable[[int], bool] = lambda _: False, local: int = 1 << 16
    ) -> None:
        self.limit = limit
        self.local = local  # what the own interface takes
        self.loses = loses
        self.now = 100.0
        self.probed: list[int] = []

    def settle(self, search: PathMtuDiscovery) -> PathMtuDiscovery:
        """Answer probes until the search wants no more."""
        while probes := search.probes(self.now):
            sent = [size for size in probes if size <= self.local]
            for size in probes:
                self.probed.append(size)
                if size > self.local:
                    search.refused(size, self.now)
            self.now += RTT
            for size in sent:
                if size <= self.limit and not self.loses(len(self.probed)):
                    search.probe_acked(size, self.now)
                else:
                    search.probe_lost(size, self.now)
            assert len(self.probed) <= 4 * PROBE_BOUND, "probes without end"
        return search


def discover(path: Path, floor: int = FLOOR, ceiling: int = CEILING) -> PathMtuDiscovery:
    return path.settle(PathMtuDiscovery(floor=floor, ceiling=ceiling))


@given(limits)
def test_finds_every_limit_to_within_a_step(limit: int) -> None:
    path = Path(limit)
    search = discover(path)
    truth = min(limit, CEILING)
    assert search.phase is Phase.SEARCH_COMPLETE
    assert search.usable
    assert truth - SEARCH_STEP < search.size <= truth
    assert len(path.probed) <= PROBE_BOUND


def test_a_path_of_the_usual_width_takes_one_round_trip() -> None:
    path = Path(CEILING)
    search = discover(path)
    assert search.size == CEILING
    assert path.probed == [FLOOR, CEILING]
    assert search.timer is None, "there is nothing larger to look for"


@given(st.integers(BASE_PLPMTU, FLOOR - 1))
def test_a_path_below_the_floor_is_an_error(limit: int) -> None:
    path = Path(limit)
    search = discover(path)
    assert search.phase is Phase.ERROR
    assert not search.usable
    assert search.size == BASE_PLPMTU
    assert len(path.probed) <= 2 * MAX_PROBES
    assert search.probes(path.now + 10 * RAISE_TIMER) == []


@given(limits, st.integers(0, 3), st.integers(1, 3))
def test_single_losses_by_chance_change_nothing(limit: int, first: int, spacing: int) -> None:
    """No two attempts for one size in a row are lost, as long as only every third is."""
    search = discover(Path(limit, loses=lambda count: count % (2 + spacing) == first))
    assert search.phase is Phase.SEARCH_COMPLETE
    assert min(limit, CEILING) - SEARCH_STEP < search.size <= min(limit, CEILING)


@given(limits, st.integers())
def test_random_losses_never_make_it_too_large(limit: int, seed: int) -> None:
    dice = random.Random(seed)
    search = discover(Path(limit, loses=lambda _: dice.random() < 0.3))
    assert search.size <= max(BASE_PLPMTU, min(limit, CEILING))
    assert search.phase is not Phase.SEARCHING


@given(limits, limits)
def test_a_suspected_black_hole_finds_the_lower_limit(before: int, after: int) -> None:
    path = Path(max(before, after))
    search = discover(path)
    path.limit = min(before, after)
    search.suspect()
    path.settle(search)
    truth = min(before, after, CEILING)
    assert truth - SEARCH_STEP < search.size <= truth
    assert search.phase is Phase.SEARCH_COMPLETE


@given(limits)
def test_an_unfounded_suspicion_costs_one_probe_and_changes_nothing(limit: int) -> None:
    path = Path(limit)
    search = discover(path)
    found = search.size
    path.probed.clear()
    search.suspect()
    assert search.size == found, "nothing changes before it is proven"
    path.settle(search)
    assert path.probed == [found]
    assert search.size == found
    assert search.phase is Phase.SEARCH_COMPLETE


def test_a_suspicion_while_the_search_goes_on_does_not_end_it() -> None:
    path = Path(CEILING)
    search = PathMtuDiscovery(floor=FLOOR, ceiling=CEILING)
    search.probes(path.now)
    search.probe_acked(FLOOR, path.now)
    search.suspect()
    search.probe_acked(CEILING, path.now)
    path.settle(search)
    assert search.size == CEILING
    assert search.phase is Phase.SEARCH_COMPLETE


def test_a_black_hole_below_the_floor_is_an_error() -> None:
    path = Path(CEILING)
    search = discover(path)
    path.limit = FLOOR - 1
    search.suspect()
    assert path.settle(search).phase is Phase.ERROR
    search.suspect()
    assert search.probes(path.now + 10 * RAISE_TIMER) == [], "an error is final"


@given(st.integers(FLOOR, CEILING), st.integers(FLOOR, CEILING))
def test_an_interface_that_became_narrower_counts_at_once(before: int, refused: int) -> None:
    path = Path(before)
    search = discover(path)
    found = search.size
    search.refused(refused, path.now)
    path.local = path.limit = refused - 1
    path.settle(search)
    if refused <= found:
        if refused <= FLOOR:
            assert search.phase is Phase.ERROR
        else:
            assert refused - 1 - SEARCH_STEP < search.size < refused
    else:
        assert search.size == found


@given(st.integers(FLOOR, CEILING - 1), st.integers(FLOOR, CEILING))
def test_the_raise_timer_finds_a_higher_limit_and_never_loses_the_present(
    before: int, after: int
) -> None:
    path = Path(before)
    search = discover(path)
    found = search.size
    assert search.timer is not None
    assert search.timer == pytest.approx(path.now + RAISE_TIMER)
    assert search.probes(search.timer - 1) == []
    path.limit = max(before, after)
    path.now = search.timer
    path.settle(search)
    assert search.phase is Phase.SEARCH_COMPLETE
    assert search.size >= found
    assert path.limit - SEARCH_STEP < search.size <= path.limit


@given(st.integers(FLOOR, CEILING), limits)
def test_sizes_that_the_interface_refuses_are_not_tried_again(local: int, limit: int) -> None:
    path = Path(limit, local=local)
    search = discover(path)
    truth = min(local, limit, CEILING)
    assert truth - SEARCH_STEP < search.size <= truth
    refused = [size for size in path.probed if size > local]
    assert len(refused) == len(set(refused)), "no retry can help"


def test_an_interface_below_the_floor_is_an_error() -> None:
    assert discover(Path(CEILING, local=FLOOR - 1)).phase is Phase.ERROR


def test_no_probe_is_sent_twice_while_it_is_in_flight() -> None:
    search = PathMtuDiscovery(floor=FLOOR, ceiling=CEILING)
    assert search.probes(0.0) == [FLOOR, CEILING]
    assert search.probes(0.1) == []
    search.probe_acked(FLOOR, 0.2)
    assert search.probes(0.2) == []
    assert search.usable
    search.probe_lost(CEILING, 0.3)
    assert search.probes(0.3) == [CEILING]


def test_late_news_of_an_earlier_search_is_ignored() -> None:
    path = Path(CEILING)
    search = discover(path)
    search.probe_acked(CEILING, path.now)
    search.probe_lost(FLOOR, path.now)
    assert search.size == CEILING
    assert search.phase is Phase.SEARCH_COMPLETE


@pytest.mark.parametrize(("floor", "ceiling"), [(1199, 1472), (1400, 1300)])
def test_limits_that_cannot_be_meant_are_refused(floor: int, ceiling: int) -> None:
    with pytest.raises(ValueError, match="must hold"):
        PathMtuDiscovery(floor=floor, ceiling=ceiling)


@pytest.mark.parametrize("floor", [BASE_PLPMTU, 1313])
def test_a_floor_that_is_the_ceiling_needs_one_probe(floor: int) -> None:
    path = Path(floor)
    search = discover(path, floor=floor, ceiling=floor)
    assert search.phase is Phase.SEARCH_COMPLETE
    assert search.size == floor
    assert path.probed == [floor]


# Another path


def moved(
    limit: int, *, floor: int = FLOOR, ceiling: int = CEILING
) -> tuple[PathMtuDiscovery, Path]:
    """A search that found the ceiling, and then goes over a path of `limit` bytes."""
    search = Path(CEILING).settle(PathMtuDiscovery(floor=FLOOR, ceiling=CEILING))
    search.moved(floor=floor, ceiling=ceiling)
    return search, Path(limit)


def test_the_size_of_before_stays_in_use_while_it_is_asked_for() -> None:
    search, path = moved(CEILING)
    assert (search.size, search.confirmed) == (CEILING, False)
    assert search.probes(path.now) == [CEILING]
    search.probe_acked(CEILING, path.now)
    assert (search.size, search.confirmed) == (CEILING, True)
    assert search.phase is Phase.SEARCH_COMPLETE


@given(limits)
def test_every_path_is_measured_after_a_move(limit: int) -> None:
    search, path = moved(limit)
    path.settle(search)
    assert limit - SEARCH_STEP <= search.size <= limit or search.size == CEILING <= limit
    assert search.confirmed


def test_a_wider_path_is_found_at_once_after_a_move() -> None:
    search = Path(FLOOR + 10).settle(PathMtuDiscovery(floor=FLOOR, ceiling=CEILING))
    assert search.size <= FLOOR + 10
    search.moved(floor=FLOOR, ceiling=CEILING)
    Path(CEILING).settle(search)
    assert search.size == CEILING


def test_a_path_that_is_too_narrow_after_a_move_is_an_error() -> None:
    search, path = moved(FLOOR - 1)
    path.settle(search)
    assert search.phase is Phase.ERROR
    search.moved(floor=FLOOR, ceiling=CEILING)
    assert search.confirmed
    Path(CEILING).settle(search)
    assert search.size == CEILING


def test_a_move_to_the_other_version_of_ip_keeps_to_its_ceiling() -> None:
    search, path = moved(CEILING, ceiling=CEILING - 20)
    assert search.size == BASE_PLPMTU
    path.settle(search)
    assert search.size == CEILING - 20
