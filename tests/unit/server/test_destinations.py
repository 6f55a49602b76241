"""Where devices may send: the table agrees with the rules as anybody would write them down."""

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qvpn_server.destinations import DestinationTable, Layer, Verdict, layers_of
from qvpn_server.pool import IPAddress
from qvpn_server.registry import Group, GroupPolicy
from qvpn_server.registry.policy import device_policy
from tests.unit.server.helpers import gateway_config

V4 = st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 32)).map(
    lambda t: IPv4Network(t, strict=False)
)
V6 = st.tuples(st.integers(0, 2**128 - 1), st.integers(0, 128)).map(
    lambda t: IPv6Network(t, strict=False)
)
LAYERS = st.lists(st.tuples(st.one_of(V4, V6), st.sampled_from(Verdict)), max_size=12)


def oracle(layers: list[Layer], address: IPAddress) -> Verdict:
    verdict = Verdict.NO_ROUTE
    for network, layer_verdict in layers:
        if address in network:
            verdict = layer_verdict
    return verdict


@given(LAYERS, st.data())
def test_the_last_layer_that_covers_an_address_decides(
    layers: list[Layer], data: st.DataObject
) -> None:
    for version, make, bits in ((4, IPv4Address, 32), (6, IPv6Address, 128)):
        table = DestinationTable(version, layers)
        edges = [int(n.network_address) for n, _ in layers if n.version == version]
        edges += [int(n.broadcast_address) for n, _ in layers if n.version == version]
        near = [edge + step for edge in edges for step in (-1, 0, 1)]
        drawn = data.draw(st.lists(st.integers(0, 2**bits - 1), max_size=5))
        for number in (number for number in near + drawn if 0 <= number < 2**bits):
            address = make(number)
            assert table.verdict(address.packed) is oracle(layers, address), address


@pytest.mark.parametrize(
    ("destination", "verdict"),
    [
        ("192.0.2.1", Verdict.FORWARD),
        ("2001:db8::1", Verdict.FORWARD),
        ("10.86.0.1", Verdict.FORWARD),  # the gateway itself
        ("10.86.0.9", Verdict.PROHIBITED),
        ("fd00:86::9", Verdict.PROHIBITED),
        ("127.0.0.1", Verdict.DISCARD),
        ("169.254.1.1", Verdict.DISCARD),
        ("224.0.0.251", Verdict.DISCARD),
        ("255.255.255.255", Verdict.DISCARD),
        ("0.0.0.0", Verdict.DISCARD),
        ("::", Verdict.DISCARD),
        ("::1", Verdict.DISCARD),
        ("fe80::1", Verdict.DISCARD),
        ("ff02::1", Verdict.DISCARD),
        ("::ffff:192.0.2.1", Verdict.DISCARD),
    ],
)
def test_a_full_tunnel_with_isolated_devices(destination: str, verdict: Verdict) -> None:
    assert verdict_of(destination) is verdict


@pytest.mark.parametrize(
    ("destination", "verdict"),
    [
        ("192.0.2.1", Verdict.FORWARD),
        ("192.0.3.1", Verdict.NO_ROUTE),
        ("10.86.0.1", Verdict.FORWARD),
        ("10.86.0.9", Verdict.FORWARD),
        ("2001:db8::1", Verdict.NO_ROUTE),
        ("127.0.0.1", Verdict.DISCARD),
    ],
)
def test_some_routes_and_devices_that_may_meet(destination: str, verdict: Verdict) -> None:
    assert verdict_of(destination, routes=["192.0.2.0/24"], isolation=False) is verdict


def verdict_of(destination: str, **changes: object) -> Verdict:
    address: IPAddress = (
        IPv6Address(destination) if ":" in destination else IPv4Address(destination)
    )
    config = gateway_config(**changes)
    layers = layers_of(config, device_policy([Group(1, "everyone", GroupPolicy())], config))
    return DestinationTable(address.version, layers).verdict(address.packed)
