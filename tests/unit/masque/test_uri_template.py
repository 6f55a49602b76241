"""URI templates of CONNECT-IP: the RFC's examples, what a request may limit, what is refused."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qvpn_core.errors import UsageError
from qvpn_core.masque.address import IPNetwork
from qvpn_core.masque.uri_template import (
    DEFAULT_TEMPLATE,
    WILDCARD,
    Scope,
    expand,
    match,
    split_template,
)

# RFC 9484 section 3, figure 1, but for the last, which has no variables.
QUERY_VALUES = "/masque/ip?t={target}&i={ipproto}"
QUERY_FORM = "/masque/ip{?target,ipproto}"
NO_VARIABLES = "/?user=bob"
CONTINUED = "/masque?user=bob{&ipproto,target}"
ALL_WITH_VARIABLES = [DEFAULT_TEMPLATE, QUERY_VALUES, QUERY_FORM, CONTINUED]


@pytest.mark.parametrize(
    ("template", "path"),
    [
        (DEFAULT_TEMPLATE, "/.well-known/masque/ip/*/*/"),  # RFC 9484 section 4.4, figure 4
        (QUERY_VALUES, "/masque/ip?t=*&i=*"),
        (QUERY_FORM, "/masque/ip?target=*&ipproto=*"),
        (CONTINUED, "/masque?user=bob&ipproto=*&target=*"),
        (NO_VARIABLES, "/?user=bob"),
        ("/vpn", "/vpn"),
    ],
)
def test_a_request_without_limits(template: str, path: str) -> None:
    assert expand(template) == path
    scope = match(template, path)
    assert scope == Scope()
    assert scope.unlimited


@pytest.mark.parametrize(
    ("target", "ipproto", "path", "scope"),
    [
        (
            "2001:db8::42",
            WILDCARD,
            "/.well-known/masque/ip/2001%3Adb8%3A%3A42/*/",
            Scope(IPv6Network("2001:db8::42/128")),
        ),
        (
            IPv4Network("192.0.2.0/24"),
            17,
            "/.well-known/masque/ip/192.0.2.0%2F24/17/",
            Scope(IPv4Network("192.0.2.0/24"), 17),
        ),
        (
            "target.example.com",
            "132",
            "/.well-known/masque/ip/target.example.com/132/",
            Scope("target.example.com", 132),
        ),
    ],
)
def test_a_limited_request(
    target: str | IPNetwork, ipproto: str | int, path: str, scope: Scope
) -> None:
    assert expand(DEFAULT_TEMPLATE, target, ipproto) == path
    assert match(DEFAULT_TEMPLATE, path) == scope
    assert not scope.unlimited


def test_variables_of_a_query_form_may_be_left_out_or_come_in_any_order() -> None:
    assert match(QUERY_FORM, "/masque/ip") == Scope()
    assert match(QUERY_FORM, "/masque/ip?ipproto=6") == Scope(ipproto=6)
    assert match(QUERY_FORM, "/masque/ip?ipproto=6&target=a.example") == Scope("a.example", 6)


def test_other_variables_are_undefined() -> None:
    assert expand("/ip/{region}/{target}{?ipproto,tier}") == "/ip//*?ipproto=*"


def test_escapes_are_decoded_in_either_case_and_the_wildcard_may_be_escaped() -> None:
    assert match(DEFAULT_TEMPLATE, "/.well-known/masque/ip/%2a/%2A/") == Scope()
    assert match(DEFAULT_TEMPLATE, "/.well-known/masque/ip/%3a%3A1/*/") == Scope(
        IPv6Network("::1/128")
    )


@pytest.mark.parametrize(
    "target",
    [
        "",  # empty
        "2001:db8::42",  # colons unescaped
        "%",
        "%2",
        "%zz",
        "%ff",  # not ASCII
        "a%00b",
        "10.0.0.1%2F24",  # bits set behind the prefix
        "2001%3Adb8%3A%3A1%2F64",
        "10.0.0.0%2F33",
        "%3A%3A%2F129",
        "10.0.0.0%2F",
        "10.0.0.0%2F-1",
        "10.0.0.0%2F255.0.0.0",
        "10.0.0.0/24",
        "010.0.0.1",
        "10.0.0",
        "10.0.0.256",
        "0x7f.1",
        "a.example%2F24",
        "fe80%3A%3A1%25eth0",  # zone identifiers are not supported
        "a..example",
        "-a.example",
        "127.1",
        "example.1",
        "example.0x1",
        ".",
        "x" * 64,
        "**",
    ],
)
def test_a_malformed_target_is_no_match(target: str) -> None:
    assert match(DEFAULT_TEMPLATE, f"/.well-known/masque/ip/{target}/*/") is None
    assert match(QUERY_FORM, f"/masque/ip?target={target}&ipproto=*") is None


@pytest.mark.parametrize("ipproto", ["", "256", "-1", "+6", "6.0", "0006", "tcp", "%D9%A6", "٦"])
def test_a_malformed_ipproto_is_no_match(ipproto: str) -> None:
    assert match(DEFAULT_TEMPLATE, f"/.well-known/masque/ip/*/{ipproto}/") is None
    assert match(QUERY_VALUES, f"/masque/ip?t=*&i={ipproto}") is None


@pytest.mark.parametrize(
    ("template", "path"),
    [
        (DEFAULT_TEMPLATE, "/"),
        (DEFAULT_TEMPLATE, "/.well-known/masque/ip/*/*"),
        (DEFAULT_TEMPLATE, "/.well-known/masque/ip/*/*/?"),
        (DEFAULT_TEMPLATE, "/.well-known/masque/ip/*/*/more"),
        (DEFAULT_TEMPLATE, "/.well-known/masque/udp/*/*/"),
        (QUERY_VALUES, "/masque/ip?t=*"),
        (QUERY_VALUES, "/masque/ip?t=*&i=*&t=*"),
        (QUERY_VALUES, "/masque/ip?t&i=*"),
        (QUERY_FORM, "/masque/ip?other=1"),
        (CONTINUED, "/masque?user=eve"),
        (CONTINUED, "/masque"),
        (NO_VARIABLES, "/"),
        (NO_VARIABLES, "/?user=bob&more"),
    ],
)
def test_another_path_is_no_match(template: str, path: str) -> None:
    assert match(template, path) is None


@pytest.mark.parametrize(
    "template",
    [
        "",
        "masque/{target}",
        "/{+target}",
        "/{#target}",
        "/{.target}",
        "/{/target}",
        "/{;target}",
        "/{target:3}",
        "/{target*}",
        "/{}",
        "/{target",
        "/target}",
        "/{target}/{target}",
        "/{&target}",
        "/{?target}/tail",
        "/?t=x{target}",
        "/?a=1&a=2",
        "/with space",
        "/tést",
        "/a#fragment",
    ],
)
def test_a_template_that_the_rfc_forbids_is_refused(template: str) -> None:
    with pytest.raises(UsageError, match="not a URI template"):
        expand(template)
    with pytest.raises(UsageError, match="not a URI template"):
        match(template, "/")
    if template.startswith("/"):
        with pytest.raises(UsageError, match="not a URI template"):
            split_template(f"https://proxy.example{template}")


@pytest.mark.parametrize(
    ("uri", "authority", "path"),
    [
        (f"https://proxy.example{DEFAULT_TEMPLATE}", "proxy.example", DEFAULT_TEMPLATE),
        (f"https://proxy.example:4443{QUERY_FORM}", "proxy.example:4443", QUERY_FORM),
        ("https://192.0.2.1/?user=bob", "192.0.2.1", "/?user=bob"),
        ("https://[2001:db8::1]:443/vpn", "[2001:db8::1]:443", "/vpn"),
    ],
)
def test_an_absolute_template_is_split(uri: str, authority: str, path: str) -> None:
    assert split_template(uri) == (authority, path)


@pytest.mark.parametrize(
    "uri",
    [
        "http://proxy.example/vpn",
        "https:///vpn",
        "https://proxy.example",
        "https://user@proxy.example/vpn",
        "https://{target}/vpn",
        "https://proxy.example{?target}",
        "https://proxy.example:port/vpn",
        DEFAULT_TEMPLATE,
    ],
)
def test_what_is_not_an_absolute_https_template_is_refused(uri: str) -> None:
    with pytest.raises(UsageError, match="https://HOST"):
        split_template(uri)


def test_a_limit_that_cannot_be_expressed_is_an_error_not_a_wider_request() -> None:
    with pytest.raises(UsageError, match="cannot limit a tunnel by target"):
        expand("/vpn/{ipproto}", "192.0.2.0/24")
    with pytest.raises(UsageError, match="not a scope"):
        expand(DEFAULT_TEMPLATE, "192.0.2.1/24")
    with pytest.raises(UsageError, match="not a scope"):
        expand(DEFAULT_TEMPLATE, ipproto=256)


prefixes = st.one_of(
    st.tuples(st.ip_addresses(v=4), st.integers(0, 32)),
    st.tuples(st.ip_addresses(v=6), st.integers(0, 128)),
).map(lambda pair: ip_network(pair, strict=False))
names = st.from_regex(r"[a-z]([a-z0-9-]{0,8}[a-z0-9])?(\.[a-z]{1,8}){0,3}", fullmatch=True)


@given(
    template=st.sampled_from(ALL_WITH_VARIABLES),
    target=st.one_of(prefixes, names, st.just(WILDCARD)),
    ipproto=st.one_of(st.none(), st.integers(0, 255)),
)
def test_every_template_carries_every_scope(
    template: str, target: str | IPNetwork, ipproto: int | None
) -> None:
    path = expand(template, target, WILDCARD if ipproto is None else ipproto)
    assert match(template, path) == Scope(target, ipproto)
