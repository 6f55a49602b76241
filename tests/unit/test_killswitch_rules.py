"""The kill switch's text, as far as it can be judged without a kernel."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qvpn_core.net.killswitch_rules import script, sign_in_script
from qvpn_core.net.plan import KillSwitch

networks = st.one_of(
    st.builds(
        lambda number, length: IPv4Network((number, length), strict=False),
        st.integers(0, 2**32 - 1), st.integers(0, 32),
    ),
    st.builds(
        lambda number, length: IPv6Network((number, length), strict=False),
        st.integers(0, 2**128 - 1), st.integers(0, 128),
    ),
)  # fmt: skip


def test_the_table_has_no_owner_for_it_must_outlive_its_maker() -> None:
    assert "flags owner" not in script(KillSwitch())


def test_what_is_exempt_is_let_out_before_anything_is_refused() -> None:
    text = script(KillSwitch((ip_network("10.0.0.0/8"),), (ip_network("10.1.0.0/16"),)))
    assert text.index("10.1.0.0/16 } accept") < text.index("10.0.0.0/8 } goto refuse")


@given(st.lists(networks, max_size=20))
def test_no_set_overlaps_itself(exempt: list[IPv4Network | IPv6Network]) -> None:
    text = script(KillSwitch(exempt=tuple(exempt)))
    for line in text.splitlines():
        if "daddr {" not in line or "ff02" in line or not line.endswith("} accept"):
            continue
        found = [ip_network(word.strip()) for word in line[line.index("{") + 1 : -8].split(",")]
        for version in (4, 6):
            ordered = sorted(network for network in found if network.version == version)  # type: ignore[type-var]
            for left, right in pairwise(ordered):
                assert left[-1] < right[0]  # type: ignore[operator]


@pytest.mark.parametrize(("uid", "count"), [(0, 3), (500, 3), (1000, 4)])
def test_an_exception_names_each_user_and_port_once(uid: int, count: int) -> None:
    assert sign_in_script(uid, 60).count("timeout 60s") == count


def test_a_plan_says_what_it_blocks() -> None:
    plan = KillSwitch(None, (ip_network("192.168.1.0/24"),))
    assert plan.blocks(ip_address("192.168.2.1"))
    assert plan.blocks(ip_address("fe80::1"))
    assert not plan.blocks(ip_address("192.168.1.1"))
    assert not KillSwitch(lan=True).blocks(ip_address("fe80::1"))
    assert not KillSwitch((ip_network("10.0.0.0/8"),)).blocks(ip_address("2001:db8::1"))
