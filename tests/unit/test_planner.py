"""The route planner, against an oracle that asks each set directly instead of building a table."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network, ip_address, ip_interface, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qvpn_core.client.explain import explain, warnings
from qvpn_core.client.planner import (
    GatewayOffer,
    RouteMode,
    RoutePolicy,
    SystemState,
    lan_networks,
    plan_kill_switch,
    plan_network,
)
from qvpn_core.errors import GatewayRefused, PathTooNarrow, UsageError
from qvpn_core.net.plan import IPAddress, KillSwitch, Network, NetworkPlan, Route, transition
from qvpn_core.net.survey import Attached

V4, V6 = ip_network("0.0.0.0/0"), ip_network("::/0")
OWN4, OWN6 = ip_interface("100.64.7.2/32"), ip_interface("fd07::2/128")
LOCAL = [
    *map(ip_network, ("127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "255.255.255.255/32")),
    *map(ip_network, ("::1/128", "fe80::/10", "ff00::/8")),
]
MTU = 1280


def nets(*texts: str) -> tuple[Network, ...]:
    return tuple(map(ip_network, texts))


def plan(
    policy: RoutePolicy, routes: tuple[Network, ...], addresses: tuple[object, ...] = (OWN4, OWN6)
) -> NetworkPlan:
    return plan_network(policy, GatewayOffer(addresses, routes), SystemState(), MTU)  # type: ignore[arg-type]


def way(of: NetworkPlan, destination: str) -> str:
    return explain(of, ip_address(destination)).way


# --- the rules, one by one --------------------------------------------------------------------


def test_all_sends_what_the_gateway_advertises_and_keeps_local_scope_local() -> None:
    full = plan(RoutePolicy(), (V4, V6))
    assert way(full, "8.8.8.8") == way(full, "2606:4700::1") == "tunnel"
    for local in ("127.0.0.1", "169.254.1.1", "239.255.255.250", "255.255.255.255", "::1"):
        assert way(full, local) == "direct"
    assert way(full, "fe80::1") == way(full, "ff02::fb") == "direct"


def test_all_tunnels_the_lan_too_unless_it_is_excluded() -> None:
    assert way(plan(RoutePolicy(), (V4, V6)), "192.168.1.10") == "tunnel"
    policy = RoutePolicy("all-except", excluded=nets("192.168.1.0/24"))
    assert way(plan(policy, (V4, V6)), "192.168.1.10") == "direct"
    assert way(plan(policy, (V4, V6)), "192.168.2.10") == "tunnel"


def test_a_company_gateway_carries_its_own_networks_and_the_rest_stays_direct() -> None:
    split = plan(RoutePolicy(), nets("10.0.0.0/8"), (OWN4,))
    assert way(split, "10.1.2.3") == "tunnel"
    assert way(split, "8.8.8.8") == "direct"
    assert way(split, "2606:4700::1") == "direct"


@pytest.mark.parametrize("routes", [nets("0.0.0.0/0"), nets("0.0.0.0/1", "128.0.0.0/2")])
def test_ipv6_is_refused_beside_a_full_tunnel_without_it(routes: tuple[Network, ...]) -> None:
    tunnel = plan(RoutePolicy(), routes, (OWN4,))
    assert way(tunnel, "2606:4700::1") == "refused"
    assert way(tunnel, "fe80::1") == "direct"
    assert "IPv6" in explain(tunnel, ip_address("2606:4700::1")).words


def test_ipv4_is_refused_beside_a_full_tunnel_without_it() -> None:
    tunnel = plan(RoutePolicy(), nets("2000::/3"), (OWN6,))
    assert way(tunnel, "8.8.8.8") == "refused"
    assert way(tunnel, "127.0.0.1") == "direct"


def test_only_tunnels_the_named_and_never_lets_them_leak() -> None:
    policy = RoutePolicy("only", nets("10.0.0.0/8", "2001:db8::/32"))
    tunnel = plan(policy, nets("10.1.0.0/16"), (OWN4,))
    assert way(tunnel, "10.1.2.3") == "tunnel"
    assert way(tunnel, "10.2.2.3") == "refused"
    assert way(tunnel, "2001:db8::1") == "refused"
    assert way(tunnel, "8.8.8.8") == way(tunnel, "2606:4700::1") == "direct"


def test_an_exclusion_wins_over_anything_more_specific() -> None:
    policy = RoutePolicy("only", nets("10.1.0.0/16"), nets("10.0.0.0/8"))
    assert plan(policy, nets("10.1.0.0/16", "10.1.2.0/24")).routes == ()


def test_explain_names_the_rule() -> None:
    policy = RoutePolicy("all-except", excluded=nets("10.0.0.0/8"))
    tunnel = plan(policy, (V4, V6))
    assert explain(tunnel, ip_address("10.1.1.1")).rule == ip_network("10.0.0.0/8")
    assert "excludes 10.0.0.0/8" in explain(tunnel, ip_address("10.1.1.1")).words
    assert explain(tunnel, ip_address("8.8.8.8")).rule == V4
    assert explain(tunnel, OWN4.ip).way == "direct"
    assert explain(plan(policy, nets("10.0.0.0/8")), ip_address("8.8.8.8")).rule is None


def test_no_halves_stand_in_for_a_default_route() -> None:
    halves = nets("0.0.0.0/1", "128.0.0.0/1", "::/1", "8000::/1")
    routes = {route.prefix for route in plan(RoutePolicy(), halves).routes}
    assert routes == {V4, V6, *LOCAL}


@pytest.mark.parametrize(
    ("assigned", "used"),
    [
        ("10.0.0.7/32", "10.0.0.7/32"),
        ("10.0.0.0/24", "10.0.0.1/32"),
        ("10.0.0.7/24", "10.0.0.7/32"),
        ("2001:db8::/64", "2001:db8::1/128"),
    ],
)
def test_an_assigned_prefix_gives_one_host_address(assigned: str, used: str) -> None:
    assert plan(RoutePolicy(), (V4,), (ip_interface(assigned),)).addresses == (ip_interface(used),)


def test_endpoints_lose_zone_and_mapping() -> None:
    state = SystemState((("::ffff:203.0.113.1", 443), ("203.0.113.1", 443), ("fe80::1%eth0", 8)))
    made = plan_network(RoutePolicy(), GatewayOffer((OWN4,), (V4,)), state, MTU)
    assert made.endpoints == ((ip_address("203.0.113.1"), 443), (ip_address("fe80::1"), 8))


def test_ipv6_needs_1280_bytes_and_ipv4_does_not() -> None:
    with pytest.raises(PathTooNarrow):
        plan_network(RoutePolicy(), GatewayOffer((OWN6,), (V6,)), SystemState(), 1279)
    assert (
        plan_network(RoutePolicy(), GatewayOffer((OWN4,), (V4,)), SystemState(), 1279).mtu == 1279
    )


def test_a_useless_or_abusive_offer_is_refused() -> None:
    with pytest.raises(GatewayRefused):
        plan(RoutePolicy(), (V4,), ())
    many = tuple(IPv4Network((number << 9, 24)) for number in range(5000))
    with pytest.raises(GatewayRefused):
        plan(RoutePolicy(), many)


@pytest.mark.parametrize("policy", [("only", ()), ("all", (V4,)), ("all-except", (V4,))])
def test_a_policy_that_contradicts_itself_is_refused(policy: tuple[RouteMode, tuple]) -> None:  # type: ignore[type-arg]
    with pytest.raises(UsageError):
        RoutePolicy(*policy)


# --- any policy, any offer, any destination ---------------------------------------------------

#: Prefixes around few anchors, so that random ones nest and touch instead of missing each other.
ANCHORS = {4: (0x0A000000, 0x0A01FF00, 0xC0A80100, 0x7F000001), 6: (0x20010DB8 << 96, 0xFD << 120)}
BITS = {4: 32, 6: 128}


@st.composite
def addresses(draw: st.DrawFn) -> IPAddress:
    version = draw(st.sampled_from((4, 6)))
    bits = BITS[version]
    near = draw(st.sampled_from(ANCHORS[version])) ^ (1 << draw(st.integers(0, bits - 1)))
    anywhere = st.integers(0, 2**bits - 1)
    number = draw(st.one_of(st.just(near), st.just(near), anywhere))
    return type(ip_address("::"))(number) if version == 6 else type(ip_address("0.0.0.0"))(number)


@st.composite
def prefixes(draw: st.DrawFn, shortest: int = 0) -> Network:
    address = draw(addresses())
    length = draw(st.integers(shortest, BITS[address.version]))
    kind = IPv4Network if address.version == 4 else IPv6Network
    return kind((int(address), length), strict=False)


lists = st.lists(prefixes(), max_size=6).map(tuple)


@st.composite
def policies(draw: st.DrawFn) -> RoutePolicy:
    excluded = draw(lists)
    if draw(st.booleans()):
        return RoutePolicy(
            "only", draw(st.lists(prefixes(), min_size=1, max_size=6).map(tuple)), excluded
        )
    return RoutePolicy("all-except" if excluded else "all", (), excluded)


@st.composite
def offers(draw: st.DrawFn) -> GatewayOffer:
    """Whole versions, or a few prefixes far from the half that makes a tunnel a full one."""
    routes = draw(st.lists(prefixes(shortest=8), max_size=6))
    routes += draw(st.lists(st.sampled_from((V4, V6)), unique=True))
    own = draw(st.lists(st.sampled_from((OWN4, OWN6)), min_size=1, unique=True))
    return GatewayOffer(tuple(own), tuple(routes))


def oracle(policy: RoutePolicy, offer: GatewayOffer, destination: IPAddress) -> str:
    def within(networks: object) -> bool:
        return any(destination in network for network in networks)  # type: ignore[attr-defined]

    versions = {address.version for address in offer.addresses}
    carried = [route for route in offer.routes if route.version in versions]
    has_version = any(route.version == destination.version for route in carried)
    wanted = policy.mode != "only" or within(policy.destinations)
    if within(policy.excluded) or within(LOCAL) or not wanted:
        return "direct"
    if within(carried):
        return "tunnel"
    if policy.mode == "only":
        return "refused"
    full = V4 in carried or V6 in carried
    return "refused" if not has_version and (full or within(offer.routes)) else "direct"


@settings(max_examples=500)
@given(policies(), offers(), st.lists(addresses(), min_size=4, max_size=12))
def test_the_longest_match_is_what_the_sets_say(
    policy: RoutePolicy, offer: GatewayOffer, destinations: list[IPAddress]
) -> None:
    made = plan_network(policy, offer, SystemState(), MTU)
    edges = [route.prefix[-1] for route in made.routes if route.reason != "local-scope"]
    for destination in (*destinations, *edges):
        explanation = explain(made, destination)
        assert explanation.way == oracle(policy, offer, destination), explanation.words
        assert explanation.rule is None or destination in explanation.rule
    assert len({route.prefix for route in made.routes}) == len(made.routes)


def outcome(table: dict[Network, Route], destination: IPAddress) -> str:
    matching = [route for prefix, route in table.items() if destination in prefix]
    return max(matching, key=lambda route: route.prefix.prefixlen).kind if matching else "none"


@settings(max_examples=100)
@given(policies(), offers(), policies(), offers(), st.lists(addresses(), min_size=4, max_size=12))
def test_a_transition_never_sends_anything_a_third_way(
    policy: RoutePolicy,
    offer: GatewayOffer,
    policy_after: RoutePolicy,
    offer_after: GatewayOffer,
    destinations: list[IPAddress],
) -> None:
    old = plan_network(policy, offer, SystemState(), MTU).routes
    new = plan_network(policy_after, offer_after, SystemState(), MTU).routes
    table = {route.prefix: route for route in old}
    edges = [route.prefix[0] for route in (*old, *new) if route.reason != "local-scope"]
    before = {d: outcome(table, d) for d in (*destinations, *edges)}
    after = {d: outcome({route.prefix: route for route in new}, d) for d in before}
    for wanted, route in transition(old, new):
        if wanted:
            table[route.prefix] = route
        else:
            del table[route.prefix]
        for destination, earlier in before.items():
            assert outcome(table, destination) in (earlier, after[destination])
    assert {prefix: route.kind for prefix, route in table.items()} == {
        route.prefix: route.kind for route in new
    }


# --- the LAN, and what may surprise -----------------------------------------------------------

HOME = Attached("wlan0", ip_network("192.168.1.0/24"))
DOCKER = Attached("docker0", ip_network("172.17.0.0/16"))
HOME6 = Attached("wlan0", ip_network("fd00:1::/64"))
HOSTILE = (
    Attached("wlan0", ip_network("10.0.0.0/8")),
    Attached("wlan0", ip_network("8.8.0.0/16")),
    Attached("wlan0", ip_network("100.64.0.0/16")),
    Attached("wlan0", ip_network("2606:4700::/64")),
    Attached("wlan0", ip_network("fd00::/8")),
)


def planned(
    policy: RoutePolicy, state: SystemState, routes: tuple[Network, ...] = (V4, V6)
) -> NetworkPlan:
    return plan_network(policy, GatewayOffer((OWN4, OWN6), routes), state, MTU)


def test_the_lan_is_left_out_where_the_user_says_so_whichever_it_is() -> None:
    policy = RoutePolicy(lan=True)
    made = planned(policy, SystemState(attached=(HOME, DOCKER, HOME6)))
    assert way(made, "192.168.1.7") == way(made, "172.17.0.2") == way(made, "fd00:1::7") == "direct"
    assert way(made, "192.168.2.7") == way(made, "fd00:2::7") == "tunnel"
    assert "excludes the LAN" in explain(made, ip_address("192.168.1.7")).words
    moved = planned(policy, SystemState(attached=(DOCKER,)))
    assert way(moved, "192.168.1.7") == "tunnel"


def test_a_network_that_cannot_be_a_lan_is_not_left_out() -> None:
    policy = RoutePolicy(lan=True)
    state = SystemState(attached=HOSTILE)
    for attached in HOSTILE:
        assert way(planned(policy, state), str(attached.network[99])) == "tunnel"
    assert lan_networks(state) == ()
    assert plan_kill_switch(policy, state, always=False).exempt == ()


def test_a_kill_switch_protects_what_the_policy_wants_and_spares_what_it_excludes() -> None:
    state = SystemState(attached=(HOME,))
    everything = plan_kill_switch(RoutePolicy("all", (), nets("10.0.0.0/8")), state, always=True)
    assert everything == KillSwitch(None, nets("10.0.0.0/8"), lan=False, always=True)
    only = RoutePolicy("only", nets("10.0.0.0/8"), nets("10.1.0.0/16"), lan=True)
    assert plan_kill_switch(only, state, always=False) == KillSwitch(
        nets("10.0.0.0/8"), nets("10.1.0.0/16", "192.168.1.0/24"), lan=True
    )


@settings(max_examples=300)
@given(st.data())
def test_a_kill_switch_never_stops_a_route_that_the_policy_excluded(data: st.DataObject) -> None:
    policy, destination = data.draw(policies()), data.draw(addresses())
    kill_switch = plan_kill_switch(policy, SystemState(), always=False)
    made = plan_network(policy, data.draw(offers()), SystemState(), MTU)
    without, under = explain(made, destination), explain(made, destination, kill_switch)
    if any(destination in network for network in policy.excluded) or without.way != "direct":
        assert under == without
    elif policy.mode != "only" and destination not in (OWN4.ip, OWN6.ip):
        assert under.way == ("direct" if destination.is_loopback else "refused")


def test_without_a_tunnel_a_kill_switch_refuses_and_nothing_else_does() -> None:
    far = ip_address("8.8.8.8")
    assert explain(None, far).words == "8.8.8.8 goes direct: no tunnel is up"
    assert explain(None, far, KillSwitch()).way == "refused"
    assert explain(None, ip_address("127.0.0.1"), KillSwitch()).way == "direct"


def test_the_gateway_inside_a_tunnelled_prefix_is_explained() -> None:
    state = SystemState((("203.0.113.1", 443),))
    words = explain(planned(RoutePolicy(), state), ip_address("203.0.113.1")).words
    assert "uses the tunnel" in words
    assert "only qvpn's own packets to the gateway go direct" in words


def told(
    policy: RoutePolicy,
    state: SystemState,
    routes: tuple[Network, ...] = (V4, V6),
    kill_switch: KillSwitch | None = None,
) -> tuple[str, ...]:
    return warnings(policy, planned(policy, state, routes), state, kill_switch)


def test_networks_of_this_machine_that_are_out_of_reach_are_told() -> None:
    state = SystemState(attached=(HOME, DOCKER))
    out = "is out of reach: to keep it, leave the LAN out of the tunnel (--except lan)"
    assert told(RoutePolicy(), state) == (
        f"192.168.1.0/24 on wlan0 {out}",
        f"172.17.0.0/16 on docker0 {out}",
    )
    assert told(RoutePolicy(lan=True), state) == ()
    assert told(RoutePolicy(), state, nets("10.0.0.0/8")) == ()
    assert told(RoutePolicy("only", nets("8.0.0.0/8")), state) == ()


def test_a_network_that_is_here_and_behind_the_gateway_is_told() -> None:
    state = SystemState(attached=(HOME,))
    behind = nets("192.168.0.0/16")
    assert told(RoutePolicy(), state, behind) == (
        "192.168.1.0/24 is on wlan0 and behind the gateway: it uses the tunnel",
    )
    policy = RoutePolicy(lan=True)
    assert told(policy, state, (*behind, *nets("192.168.1.128/25"))) == (
        "192.168.1.0/24 is on wlan0 and behind the gateway: it goes to wlan0",
    )


def test_a_lan_that_is_too_large_or_public_is_told_once_it_was_asked_for() -> None:
    state = SystemState(attached=HOSTILE[:2])
    lines = told(RoutePolicy(lan=True), state)
    assert [line.split()[0] for line in lines] == ["10.0.0.0/8", "8.8.0.0/16"]
    assert "leave it out of the tunnel (--except 10.0.0.0/8)" in lines[0]
    assert told(RoutePolicy(), state) == ()


def test_others_rules_and_a_narrow_gateway_under_a_kill_switch_are_told() -> None:
    state = SystemState(rules_before=(5270,))
    (line,) = told(RoutePolicy(), state, kill_switch=KillSwitch())
    assert "priority 5270" in line
    (line,) = told(RoutePolicy(), SystemState(), nets("10.0.0.0/8"), KillSwitch())
    assert "the kill switch refuses the rest" in line
    assert told(RoutePolicy(), SystemState(), nets("10.0.0.0/8")) == ()


def test_warnings_are_no_more_than_a_person_reads() -> None:
    many = tuple(Attached(f"br{n}", ip_network(f"172.16.{n}.0/24")) for n in range(100))
    assert len(told(RoutePolicy(), SystemState(attached=many))) == 8
