"""The administrator and live sessions: groups, names and revocation while packets flow.

Commands go through the running gateway; what they change holds at once.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.world import plan, probes
from tests.world.datagrams import Datagrams
from tests.world.vpn import INSIDE, POOL4, POOL6, Vpn, VpnClient, until

pytestmark = pytest.mark.netns

#: What only members of the group may reach, and what nobody else is told to avoid.
ALPHA, BETA = plan.ALPHA, plan.BETA


@pytest.fixture(scope="module")
def office(namespaces_work: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vpn]:
    """Both clients connected; the first is in `alpha`, which reaches one site and no other."""
    pools = ("--pool4", POOL4, "--pool6", POOL6)
    with Vpn(tmp_path_factory.mktemp("office"), *pools, relay=False) as vpn:
        alpha = (f"{ALPHA.v4}/32", f"{ALPHA.v6}/128")
        vpn.gateway.command("group", "add", "alpha", "--dns", "none", "--destination", *alpha)
        vpn.gateway.command("group", "join", "alpha", "first")
        vpn.gateway.command("group", "leave", "everyone", "first")
        for client in vpn.clients:
            client.up("--all")
        yield vpn


def reaches(client: VpnClient, site: str) -> bool:
    """Whether a site answers through the tunnel; it is refused at once otherwise."""
    try:
        return probes.source_seen(client.host, site) in (plan.GATEWAY4, plan.GATEWAY6)
    except OSError:
        return False


def documents(vpn: Vpn, *words: str) -> Any:
    return json.loads(vpn.gateway.command(*words, "--json").stdout)


def drops(vpn: Vpn, device: str) -> int:
    session = vpn.gateway.session(device)
    assert session is not None
    return int(session["drops"].get("prohibited", 0))


@pytest.mark.parametrize("family", [4, 6])
def test_a_device_reaches_the_destinations_of_its_group_and_no_others(
    office: Vpn, family: int
) -> None:
    first, second = office.clients
    inside, outside = (getattr(site, f"v{family}") for site in (ALPHA, BETA))
    assert reaches(first, inside)
    assert reaches(second, outside)
    before = drops(office, "first")
    with Datagrams(first.host, first.address(family)) as door:
        door.send(b"let me through", (outside, 9))
        told = door.error()
    prohibited = (3, 13) if family == 4 else (1, 1)
    assert (told.type, told.code, told.reporter) == (*prohibited, INSIDE[family])
    assert drops(office, "first") > before
    assert not reaches(first, outside)


def test_a_change_of_a_group_applies_to_the_live_session(office: Vpn) -> None:
    first, _ = office.clients
    since = office.gateway.session("first")
    assert not reaches(first, BETA.v4)
    office.gateway.command("group", "join", "everyone", "first")
    assert reaches(first, BETA.v4)
    office.gateway.command("group", "leave", "everyone", "first")
    assert not reaches(first, BETA.v4)
    assert reaches(first, ALPHA.v4)
    after = office.gateway.session("first")
    assert since is not None
    assert after is not None
    assert after["since"] == since["since"], "the same session"


def test_a_renamed_device_stays_connected(office: Vpn) -> None:
    first, _ = office.clients
    office.gateway.command("rename", "first", "laptop")
    assert office.gateway.session("first") is None
    assert office.gateway.session("laptop") is not None
    assert reaches(first, ALPHA.v4)
    office.gateway.command("rename", "laptop", "first")


def test_new_routes_reach_the_live_client(office: Vpn) -> None:
    _, second = office.clients
    office.gateway.command("group", "add", "narrow", "--dns", "none", "--route", f"{ALPHA.v4}/32")
    office.gateway.command("group", "join", "narrow", "second")
    office.gateway.command("group", "leave", "everyone", "second")
    narrow = until(
        lambda: [r for r in second.peek()["routes"] if r.startswith(ALPHA.v4)], "the new routes"
    )
    assert narrow
    office.gateway.command("group", "join", "everyone", "second")
    office.gateway.command("group", "remove", "narrow")
    until(lambda: "0.0.0.0/0" in second.peek()["routes"], "the old routes again")


def test_a_full_group_lets_nobody_else_in(office: Vpn) -> None:
    _, second = office.clients
    office.gateway.command("group", "set", "everyone", "--max-sessions", "1")
    third = office.gateway.token("third")
    second.add_profile(third, name="third")
    try:
        second.command("down")
        office.gateway.command("group", "join", "everyone", "first")
        refused = second.command("up", "third", check=False)
        assert refused.returncode != 0
        assert "no room" in refused.stderr
    finally:
        office.gateway.command("group", "leave", "everyone", "first")
        office.gateway.command("group", "set", "everyone", "--max-sessions", "none")
    second.up("--all")


def test_a_revoked_device_is_cut_within_a_second_and_not_let_in_again(office: Vpn) -> None:
    _, second = office.clients
    second.down()
    lost = office.gateway.token("lost")
    second.add_profile(lost, name="lost")
    second.up("--all", name="lost")
    began = time.monotonic()
    office.gateway.command("revoke", "lost")
    assert office.gateway.session("lost") is None
    until(lambda: second.peek().get("state") != "connected", "the client is cut")
    assert time.monotonic() - began < 2, "a second, and the start of a command"
    refused = second.command("up", "lost", check=False)
    assert refused.returncode != 0
    second.command("down", check=False)
    second.up("--all")


def test_everything_is_in_the_audit_with_who_did_it(office: Vpn) -> None:
    office.gateway.command("invite", "visitor", "--expires", "1h")
    office.gateway.command("uninvite", "visitor")
    entries = documents(office, "audit")
    assert {entry["actor"] for entry in entries} == {"uid 0"}, "all through the gateway"
    assert [(entry["action"], entry["subject"]) for entry in entries][-2:] == [
        ("invite", "visitor"),
        ("uninvite", "visitor"),
    ]
    assert all(entry["detail"] or entry["action"] in ("revoke", "uninvite", "group remove")
               for entry in entries)  # fmt: skip


def test_the_logs_are_clean(office: Vpn) -> None:
    office.check_logs()
