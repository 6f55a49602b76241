"""Address pools: which addresses devices get, and in which order."""

from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qvpn_server.pool import IPNetwork, Pool, PoolExhausted


@st.composite
def networks(draw: st.DrawFn) -> IPNetwork:
    if draw(st.booleans()):
        prefix = draw(st.integers(20, 30))
        start = draw(st.integers(0, 2**prefix - 1)) << (32 - prefix)
        return IPv4Network((start, prefix))
    prefix = draw(st.integers(112, 126))
    start = draw(st.integers(0, 2**prefix - 1)) << (128 - prefix)
    return IPv6Network((start, prefix))


def test_a_small_ipv4_pool_leaves_out_network_gateway_and_broadcast() -> None:
    pool = Pool(ip_network("10.0.0.0/29"))
    offered = [str(a) for a in ip_network("10.0.0.0/28") if pool.offers(a)]
    assert offered == ["10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6"]
    assert str(pool.gateway_interface) == "10.0.0.1/29"


def test_ipv6_has_no_broadcast_address() -> None:
    pool = Pool(ip_network("fd00::/126"))
    assert [str(a) for a in pool.network if pool.offers(a)] == ["fd00::2", "fd00::3"]


def test_an_ipv6_address_below_2_to_the_32_stays_one() -> None:
    assert str(Pool(ip_network("::1:0/112")).next_free([])) == "::1:2"


@given(networks(), st.data())
def test_devices_get_distinct_addresses_until_the_pool_is_exhausted(
    network: IPNetwork, data: st.DataObject
) -> None:
    pool = Pool(network)
    taken = set(
        data.draw(
            st.sets(st.integers(0, min(pool.capacity, 40) - 1), max_size=min(pool.capacity, 40))
        )
    )
    addresses = {
        ip_address((pool.first + n).to_bytes(4 if pool.version == 4 else 16, "big")) for n in taken
    }
    for _ in range(3):
        if len(addresses) == pool.capacity:
            with pytest.raises(PoolExhausted):
                pool.next_free(sorted(addresses, key=int))
            return
        address = pool.next_free(sorted(addresses, key=int))
        assert pool.offers(address)
        assert address in network
        assert address not in addresses
        assert address != pool.gateway
        assert not any(
            pool.offers(lower) and lower not in addresses
            for lower in (address - n for n in range(1, min(4, int(address))))
            if lower in network
        ), "a lower address was free"
        addresses.add(address)


@given(networks(), networks())
def test_leases_of_another_pool_do_not_count(network: IPNetwork, other: IPNetwork) -> None:
    pool, former = Pool(network), Pool(other)
    foreign = [] if pool.offers(former.gateway) else [former.gateway]
    if not pool.offers(former.next_free([])):
        foreign.append(former.next_free([]))
    assert int(pool.next_free(foreign)) == pool.first


def test_exhaustion_says_what_to_do() -> None:
    pool = Pool(ip_network("10.0.0.0/30"))
    with pytest.raises(PoolExhausted, match=r"all 1 addresses .* revoke devices"):
        pool.next_free([ip_address("10.0.0.2")])
