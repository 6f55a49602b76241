"""The event loop of the real app goes on while a download fills it and every window is opened."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pytest

from bench.app import WINDOWS, load
from tests.gui.desktop import unavailable
from tests.gui.watched_app import judge
from tests.integration.conftest import namespaces_work  # noqa: F401
from tests.world.vpn import Vpn, no_defects

#: How much slower than alone this machine may be.
BUSY = 5


@pytest.mark.netns
@pytest.mark.timeout(240)
def test_no_turn_of_the_loop_is_long_with_a_full_tunnel_and_every_window(
    namespaces_work: None,  # noqa: F811
    tmp_path: Path,
) -> None:
    if reason := unavailable():
        pytest.skip(reason)
    recorded: defaultdict[str, list[float]] = defaultdict(list)
    with Vpn(tmp_path / "world") as vpn:
        client = vpn.clients[0]
        load(client, 5, tmp_path, recorded)
        no_defects((client.directory / "state" / "app.log").read_text())
    (longest,) = recorded["turn_max"]
    (rate,) = recorded["download"]
    print(f"{rate:.0f} Mbit/s, longest turn {longest:.0f} ms, windows {recorded['dialog']}")
    assert len(recorded["dialog"]) >= len(WINDOWS)
    assert rate > 1
    judge(tmp_path / "watch", BUSY)
