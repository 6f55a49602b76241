"""What a person's list of destinations means, and what is said about it."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qvpn_core.client import profiles, route_list
from qvpn_core.client.planner import GatewayOffer, RouteMode, SystemState
from qvpn_core.client.route_list import (
    MAX_LINES,
    Entry,
    RouteList,
    compile_policy,
    findings,
    format_lines,
    list_of,
    parse_destination,
    parse_line,
    parse_lines,
    same,
    stored,
    stored_lookups,
)
from qvpn_core.client.route_preview import oddities, preview
from qvpn_core.errors import UsageError
from qvpn_core.net.plan import Network
from qvpn_core.net.survey import Attached

GIT = {"git.example.org": (ip_network("203.0.113.7"),)}


def listed(text: str, mode: RouteMode = "only") -> RouteList:
    entries, wrong = parse_lines(text)
    assert not wrong
    return RouteList(mode, entries)


@pytest.mark.parametrize(
    ("typed", "normal"),
    [
        ("10.0.0.0/8", "10.0.0.0/8"),
        (" 192.0.2.7 ", "192.0.2.7"),
        ("2001:DB8::/32", "2001:db8::/32"),
        ("[2001:db8::1]", "2001:db8::1"),
        ("Git.Example.ORG.", "git.example.org"),
        ("LAN", "lan"),
        ("xn--mnchen-3ya.example", "xn--mnchen-3ya.example"),
    ],
)
def test_a_destination_has_one_normal_form(typed: str, normal: str) -> None:
    assert parse_destination(typed) == normal


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("", "there is no destination"),
        ("10.0.0.1/8", "did you mean 10.0.0.0/8"),
        ("10.0.0.0/33", "is no destination"),
        ("1.2.3.400", "is no destination"),
        ("1.2.3", "is no destination"),
        ("https://example.org/", "is a link"),
        ("fe80::1%eth0", "names a link"),
        ("a" * 64 + ".example", "is no destination"),
        ("-x.example", "is no destination"),
        ("two words", "is no destination"),
        ("x" * 100_000, "is no destination"),
    ],
)
def test_what_is_no_destination_is_told_with_what_to_do(typed: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_destination(typed)
    assert words in str(caught.value)
    assert len(str(caught.value)) < 250


def test_a_file_keeps_its_comments_and_says_which_line_is_wrong() -> None:
    text = "# offices\n10.0.0.0/8  # Berlin\n\n!10.1.0.0/16 # guests\nlan\n10.0.0.1/8\n"
    entries, wrong = parse_lines(text)
    assert entries == (
        Entry("", comment="offices"),
        Entry("10.0.0.0/8", comment="Berlin"),
        Entry("10.1.0.0/16", exception=True, comment="guests"),
        Entry("lan"),
    )
    assert [(line, error.hint) for line, error in wrong] == [(6, "did you mean 10.0.0.0/8")]
    assert parse_lines(format_lines(entries)) == (entries, ())


def test_a_file_of_too_many_lines_is_refused() -> None:
    with pytest.raises(UsageError, match="more than"):
        parse_lines("10.0.0.0/8\n" * (MAX_LINES + 1))


@given(st.text(max_size=60))
def test_whatever_is_read_is_written_and_read_again_the_same(line: str) -> None:
    line = line.partition("\n")[0]
    try:
        entry = parse_line(line)
    except UsageError:
        return
    assert entry is None or parse_line(entry.line) == entry


networks = st.builds(
    lambda packed, length: ip_network((packed >> (32 - length) << (32 - length), length)),
    st.integers(0, 2**32 - 1),
    st.integers(1, 32),
) | st.sampled_from(list(map(ip_network, ("10.0.0.0/8", "10.1.0.0/16", "10.1.2.0/24"))))


@given(
    st.dictionaries(networks, st.booleans(), min_size=1, max_size=6),
    st.sampled_from(["only", "all-except"]),
    st.data(),
)
def test_the_most_specific_line_decides_in_whatever_order(
    lines: dict[Network, bool], mode: RouteMode, data: st.DataObject
) -> None:
    order = data.draw(st.permutations(list(lines)))
    routes = RouteList(mode, tuple(Entry(str(it), lines[it]) for it in order))
    if mode == "only" and all(lines.values()):
        return
    made = preview(routes, {}, None, SystemState())
    for network in lines:
        for address in (network.network_address, network.broadcast_address):
            if address.is_loopback or address.is_link_local or address.is_multicast:
                continue
            if address in (ip_address("192.0.2.1"), ip_address("255.255.255.255")):
                continue
            deciding = max((it for it in lines if address in it), key=lambda it: it.prefixlen)
            into = lines[deciding] is not (mode == "only")
            assert made.where(address).way == ("tunnel" if into else "direct")


def test_lines_are_kept_with_the_profile_and_a_profile_that_was_edited_has_its_own() -> None:
    routes = listed("# mine\n10.0.0.0/8 # office\n!10.1.0.0/16\ngit.example.org")
    profile = replace(
        profiles.make_profile("work", "vpn.example.org", "token"),
        policy=compile_policy(routes, GIT),
        route_lines=tuple(entry.line for entry in routes.entries),
        lookups=stored_lookups(routes, GIT),
    )
    assert stored(profile) == (routes, GIT)
    edited = replace(profile, policy=profiles.route_policy("only", ["192.0.2.0/24"]))
    assert stored(edited) == (listed("192.0.2.0/24"), {})
    for damage in ({"lookups": ("git.example.org 300.1",)}, {"route_lines": ("10.0.0.1/8",)}):
        shown, _ = stored(replace(profile, **damage))
        assert same(compile_policy(shown, {}), profile.policy)


@pytest.mark.parametrize(
    ("mode", "excluded"), [("only", ["10.1.0.0/16"]), ("all", ["lan", "10.0.0.0/8"]), ("all", [])]
)
def test_a_policy_without_a_list_has_one(mode: RouteMode, excluded: list[str]) -> None:
    wanted = ["10.0.0.0/8", "192.0.2.7"] if mode == "only" else []
    policy = profiles.route_policy(mode, wanted, excluded)
    assert same(compile_policy(list_of(policy), {}), policy)


@pytest.mark.parametrize(
    ("mode", "text", "found"),
    [
        ("only", "10.0.0.0/8\n10.0.0.0/8", [(1, "repeated", "10.0.0.0/8")]),
        ("only", "10.1.0.0/16\n10.0.0.0/8", [(0, "within", "10.0.0.0/8")]),
        ("only", "10.0.0.0/8\n!10.0.0.0/8", [(1, "both-ways", "10.0.0.0/8")]),
        ("only", "203.0.113.7\n!git.example.org", [(1, "both-ways", "203.0.113.7")]),
        ("only", "10.0.0.0/8\n!192.0.2.0/24", [(1, "no-effect", "")]),
        ("only", "10.0.0.0/8\nlan", [(1, "lan-in-tunnel", "")]),
        ("only", "10.0.0.0/8\n!lan", []),
        ("all-except", "!lan", [(0, "lan-in-tunnel", "")]),
        ("only", "10.0.0.0/8\ngone.example", [(1, "not-found", "")]),
        ("only", "10.0.0.0/8\n198.51.100.0/24", [(1, "not-carried", "")]),
        ("all-except", "198.51.100.0/24", []),
        ("only", "# a comment\n10.0.0.0/8\n!10.1.0.0/16\n10.1.2.0/24", []),
        ("all", "10.0.0.0/8\n10.0.0.0/8", []),
    ],
)
def test_what_is_odd_is_found(
    mode: RouteMode, text: str, found: list[tuple[int, str, str]]
) -> None:
    offer = GatewayOffer((), (ip_network("10.0.0.0/8"), ip_network("203.0.113.0/24")))
    lookups = {**GIT, "gone.example": ()}
    result = findings(listed(text, mode), lookups, offer.routes)
    assert [(it.row, it.oddity, it.other) for it in result] == found


def test_a_list_that_cannot_be_meant_is_refused() -> None:
    for text in ("10.0.0.0/8\n!10.0.0.0/8", "lan", "# nothing", "!10.0.0.0/8"):
        with pytest.raises(UsageError):
            compile_policy(listed(text), {})
    holes = "\n".join(f"!2001:db8:{n:x}::1" for n in range(200))
    routes = listed(f"::/0\n{holes}", "all-except")
    with pytest.raises(UsageError, match="more than"):
        compile_policy(routes, {})


def test_an_answer_names_the_line_and_the_kill_switch() -> None:
    lan = SystemState(attached=(Attached("eth0", ip_network("192.168.7.0/24")),))
    made = preview(
        listed("lan\n10.0.0.0/8 # office\n!10.1.0.0/16", "all-except"), {}, None, lan,
        kill_switch="on",
    )  # fmt: skip
    where = {text: made.where(ip_address(text)) for text in ("10.2.0.1", "10.1.0.1", "192.168.7.9")}
    assert [answer.way for answer in where.values()] == ["direct", "tunnel", "direct"]
    assert where["10.2.0.1"].entry == Entry("10.0.0.0/8", comment="office")
    assert where["192.168.7.9"].reason == "lan"
    assert made.guessed
    only = preview(listed("10.0.0.0/8"), {}, None, lan)
    assert only.where(ip_address("8.8.8.8")).entry is None


def test_without_an_offer_nothing_is_said_about_what_the_gateway_lacks() -> None:
    routes = listed("198.51.100.0/24")
    assert oddities(routes, {}, None) == ()
    assert route_list.names(routes) == set()
