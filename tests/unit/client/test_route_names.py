"""Names in a list mean what they mean on the day of the connection."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from qvpn_core.client import profiles
from qvpn_core.client.profiles import Profile
from qvpn_core.client.route_list import RouteList, compile_policy, parse_lines, stored_lookups
from qvpn_core.client.route_names import refreshed

OLD = ip_network("192.0.2.1")
NEW = ip_network("198.51.100.7")


@pytest.fixture(autouse=True)
def answers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, str]:
    """What the system's resolver says; it is slow for whoever is not in it."""
    monkeypatch.setenv("QVPN_CONFIG_DIR", str(tmp_path))
    known: dict[str, str] = {}

    def getaddrinfo(host: str, *_: Any, **__: Any) -> list[Any]:
        if host not in known:
            raise socket.gaierror(socket.EAI_NONAME, "unknown")
        return [(socket.AF_INET, 1, 6, "", (known[host], 0))]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return known


def profile(*lines: str, mode: profiles.RouteMode = "only") -> Profile:
    """A stored profile whose names were all OLD."""
    entries, _ = parse_lines("\n".join(lines))
    routes = RouteList(mode, entries)
    lookups = {entry.text: (OLD,) for entry in entries if entry.is_name}
    made = replace(
        profiles.make_profile("home", "vpn.example.org", "token"),
        policy=compile_policy(routes, lookups),
        route_lines=lines,
        lookups=stored_lookups(routes, lookups),
    )
    profiles.save(made)
    return made


def test_a_name_that_moved_is_followed_and_remembered(answers: dict[str, str]) -> None:
    answers["www.example.org"] = str(NEW.network_address)
    fresh = asyncio.run(refreshed(profile("www.example.org", "10.0.0.0/8")))
    assert set(fresh.policy.destinations) == {NEW, ip_network("10.0.0.0/8")}
    assert profiles.load("home") == fresh


def test_a_name_that_is_not_found_keeps_what_it_was(answers: dict[str, str]) -> None:
    answers["a.example.org"] = str(NEW.network_address)
    fresh = asyncio.run(refreshed(profile("a.example.org", "b.example.org")))
    assert set(fresh.policy.destinations) == {NEW, OLD}


def test_nothing_is_looked_up_where_no_name_has_an_effect() -> None:
    plain = profile("10.0.0.0/8")
    assert asyncio.run(refreshed(plain)) is plain


def test_an_answer_that_contradicts_the_list_changes_nothing(answers: dict[str, str]) -> None:
    answers["www.example.org"] = "10.0.0.1"
    before = profile("10.0.0.0/8", "!10.0.0.1", "www.example.org")
    assert asyncio.run(refreshed(before)) is before
    assert profiles.load("home") == before


def test_what_somebody_edits_meanwhile_stays(answers: dict[str, str]) -> None:
    answers["www.example.org"] = str(NEW.network_address)
    before = profile("www.example.org")
    edited = profiles.edit("home", lambda it: replace(it, policy=profiles.ALL_ROUTES))
    fresh = asyncio.run(refreshed(before))
    assert fresh.policy.destinations == (NEW,)
    assert profiles.load("home") == edited
