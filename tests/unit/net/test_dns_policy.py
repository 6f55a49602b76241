"""Which names go to a tunnel's servers: what is offered, what is wanted, what routes carry."""

from __future__ import annotations

from ipaddress import ip_address, ip_interface, ip_network

from hypothesis import given
from hypothesis import strategies as st

from qvpn_core.client.dns_policy import choose_dns
from qvpn_core.client.planner import GatewayOffer, RoutePolicy, SystemState, plan_network
from qvpn_core.masque.dns import DnsAssign, DnsConfiguration, Nameserver, SvcParamKey
from qvpn_core.net.dns.plan import MAX_DOMAINS, MAX_SEARCH, MAX_SERVERS, DnsPlan
from qvpn_core.net.plan import NetworkPlan

SERVER, SECOND, SIX = map(ip_address, ("10.0.0.53", "10.0.0.54", "fd00::53"))
EVERYTHING = (ip_network("0.0.0.0/0"), ip_network("::/0"))
ALL = RoutePolicy()
ONLY = RoutePolicy("only", (ip_network("10.0.0.0/8"),))


def network(policy: RoutePolicy = ALL, routes: tuple[object, ...] = EVERYTHING) -> NetworkPlan:
    own = (ip_interface("10.9.0.2/32"), ip_interface("fd09::2/128"))
    return plan_network(policy, GatewayOffer(own, routes), SystemState(), 1280)  # type: ignore[arg-type]


def offer(*servers: object, internal: tuple[str, ...] = ("",), search: tuple[str, ...] = ()) -> (
    tuple[DnsConfiguration, ...]
):  # fmt: skip
    return DnsAssign.plain(servers, internal, search).configurations  # type: ignore[arg-type]


def test_with_everything_in_the_tunnel_all_names_are_asked_there() -> None:
    choice = choose_dns(offer(SERVER, SIX, search=("corp.example",)), ALL, network())
    assert choice.plan == DnsPlan((SERVER, SIX), (".", "corp.example"), ("corp.example",))


def test_a_gateway_whose_servers_know_only_its_own_names_gets_only_those() -> None:
    choice = choose_dns(offer(SERVER, internal=("corp.example",)), ALL, network())
    assert choice.plan == DnsPlan((SERVER,), ("corp.example",))
    assert "some domains only" in choice.reason


def test_with_only_some_networks_in_the_tunnel_only_internal_names_are_asked_there() -> None:
    some = offer(SERVER, internal=("", "corp.example"), search=("lab.example",))
    choice = choose_dns(some, ONLY, network(ONLY))
    assert choice.plan == DnsPlan((SERVER,), ("corp.example", "lab.example"), ("lab.example",))


def test_with_only_some_networks_servers_without_domains_are_not_used() -> None:
    choice = choose_dns(offer(SERVER), ONLY, network(ONLY))
    assert choice.plan is None
    assert "no domains of their own" in choice.reason


def test_a_server_beside_the_tunnel_is_not_used() -> None:
    policy = RoutePolicy("all-except", excluded=(ip_network("10.0.0.53"),))
    choice = choose_dns(offer(SERVER, SECOND), policy, network(policy))
    assert choice.plan == DnsPlan((SECOND,))
    alone = choose_dns(offer(SERVER), policy, network(policy))
    assert alone.plan is None
    assert "10.0.0.53 is not reached through the tunnel" in alone.reason
    # Refused traffic, here IPv6 without a tunnel for it, is no way to a server either.
    only4 = network(routes=(ip_network("0.0.0.0/0"),))
    assert choose_dns(offer(SIX), ALL, only4).plan is None
    # Nor is this device itself.
    assert choose_dns(offer(ip_address("10.9.0.2")), ALL, network()).plan is None


def test_an_address_that_no_far_host_can_have_is_not_used() -> None:
    assert choose_dns(offer(ip_address("127.0.0.1")), ALL, network()).plan is None


def test_servers_that_cannot_be_asked_in_the_clear_on_port_53_are_not_used() -> None:
    port = Nameserver(ipv4=(SERVER,), service_parameters=((SvcParamKey.PORT, b"\x14\xe9"),))
    encrypted = Nameserver(
        ipv4=(SERVER,), authentication_domain="dns.example",
        service_parameters=((SvcParamKey.ALPN, b"\x03dot"), (SvcParamKey.NO_DEFAULT_ALPN, b"")),
    )  # fmt: skip
    for server in (port, encrypted):
        choice = choose_dns([DnsConfiguration((server,), ("",))], ALL, network())
        assert choice.plan is None
        assert "plain DNS" in choice.reason


def test_servers_are_asked_in_the_order_of_their_priority() -> None:
    servers = (Nameserver(9, ipv4=(SECOND,)), Nameserver(1, ipv4=(SERVER,)))
    choice = choose_dns([DnsConfiguration(servers, ("",))], ALL, network())
    assert choice.plan is not None
    assert choice.plan.servers == (SERVER, SECOND)


def test_of_several_sets_of_servers_the_one_for_everything_is_used() -> None:
    both = offer(SERVER, internal=("corp.example",)) + offer(SECOND)
    choice = choose_dns(both, ALL, network())
    assert choice.plan == DnsPlan((SECOND,))
    split = choose_dns(both, ONLY, network(ONLY))
    assert split.plan == DnsPlan((SERVER,), ("corp.example",))
    assert "1 more sets of servers cannot be used" in split.reason


def test_configurations_with_the_same_servers_are_one() -> None:
    both = offer(SERVER, internal=("corp.example",)) + offer(SERVER, internal=("lab.example",))
    choice = choose_dns(both, ONLY, network(ONLY))
    assert choice.plan == DnsPlan((SERVER,), ("corp.example", "lab.example"))


def test_no_offer_and_no_wish_are_told_apart() -> None:
    assert "offers no" in choose_dns((), ALL, network()).reason
    assert "offers no" in choose_dns(offer(), ALL, network()).reason
    declined = choose_dns(offer(SERVER), ALL, network(), wanted=False)
    assert declined.plan is None
    assert "profile" in declined.reason


def test_an_offer_without_measure_is_cut_to_size() -> None:
    servers = [ip_address(f"10.1.{n // 250}.{n % 250 + 1}") for n in range(1000)]
    names = tuple(f"d{n}.example" for n in range(1000))
    choice = choose_dns(offer(*servers, internal=("", *names), search=names), ALL, network())
    assert choice.plan is not None
    assert len(choice.plan.servers) == MAX_SERVERS
    assert len(choice.plan.domains) == MAX_DOMAINS
    assert len(choice.plan.search) == MAX_SEARCH


names = st.lists(
    st.sampled_from(["", ".", "Corp.Example", "corp.example.", "a.b", "x"]), max_size=4
)
addresses = st.sampled_from(
    [SERVER, SECOND, SIX, *map(ip_address, ("127.0.0.1", "8.8.8.8", "::1"))]
)


@given(
    st.lists(st.tuples(st.lists(addresses, max_size=3), names, names), max_size=4),
    st.sampled_from([ALL, ONLY, RoutePolicy("all-except", excluded=(ip_network("10.0.0.53"),))]),
)
def test_whatever_is_offered_nothing_is_asked_beside_the_tunnel_or_beyond_the_policy(
    offered: list[tuple[list[object], list[str], list[str]]], policy: RoutePolicy
) -> None:
    configurations = [
        configuration
        for servers, internal, search in offered
        for configuration in offer(*servers, internal=tuple(internal), search=tuple(search))
    ]
    routes = network(policy)
    choice = choose_dns(configurations, policy, routes)
    assert choice.reason
    if choice.plan is None:
        return
    assert not (policy.mode == "only" and choice.plan.everything)
    offered_servers = {server for servers, _, _ in offered for server in servers}
    assert set(choice.plan.servers) <= offered_servers
    for server in choice.plan.servers:
        covering = [route for route in routes.routes if server in route.prefix]
        assert max(covering, key=lambda route: route.prefix.prefixlen).kind == "tunnel"
