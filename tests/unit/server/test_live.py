"""Groups at a running gateway: who gets in, where packets may go, and changes while they flow."""

import asyncio
import time
from collections.abc import Sequence
from ipaddress import IPv6Network, ip_network
from pathlib import Path

import pytest

from qvpn_core.errors import UsageError
from qvpn_core.masque.capsule import MAX_VALUE_SIZE
from qvpn_core.masque.connect_ip import ConnectIpSession, Role, prefixes_to_ranges
from qvpn_core.packet import parse
from qvpn_server import live
from qvpn_server.admin_protocol import (
    GroupAddRequest,
    GroupJoinRequest,
    GroupLeaveRequest,
    GroupRemoveRequest,
    GroupSetRequest,
    GroupSettings,
    InviteRequest,
    RenameRequest,
    RevokeRequest,
    TokenRequest,
    UninviteRequest,
)
from qvpn_server.administration import perform
from qvpn_server.destinations import DestinationCache, Destinations, Verdict, layers_of
from qvpn_server.forwarding import Forwarder
from qvpn_server.live import LivePolicies
from qvpn_server.registry import Device, Group, GroupPolicy, Registry
from qvpn_server.registry.policy import device_policy
from qvpn_server.registry.records import MAX_GROUPS, MAX_PREFIXES
from qvpn_server.services import Services
from qvpn_server.sessions import Session, SessionTable
from tests.unit.server.helpers import (
    NUMBERS,
    RecordingTunnel,
    gateway_config,
    ip_packet,
    make_session,
)

NOW = 1_800_000_000
CONFIG = gateway_config()
INTERN, LAB, ELSEWHERE = "10.1.0.9", "10.2.0.9", "192.0.2.1"


class Bench:
    """A gateway's sessions over a registry, without a network."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self.sessions = SessionTable()
        self.live = LivePolicies(CONFIG, registry, self.sessions, Services(CONFIG, tuple))
        self.tun: list[bytes] = []
        self.forwarder = Forwarder(
            sessions=self.sessions,
            own={address.version: address.packed for address in CONFIG.gateway_addresses},
            write_tun=self._write,
        )
        self.told: list[str] = []

    def _write(self, packets: Sequence[bytes]) -> int:
        self.tun += packets
        return len(packets)

    def connect(self, name: str, *groups: str) -> tuple[Session, RecordingTunnel]:
        """A live session of a new device."""
        token = name.encode().ljust(32)
        device = self.registry.add_device(name, token, NOW, groups=groups or ("everyone",))
        return self.session_of(device)

    def session_of(self, device: Device) -> tuple[Session, RecordingTunnel]:
        NUMBERS[device.name] = device.id
        addresses = self.registry.lease(device, CONFIG.pools)
        session, tunnel = make_session(device.name, *map(str, addresses), config=CONFIG)
        session.policy = self.registry.policy_of(device, CONFIG)
        session.groups = device.groups
        session.destinations = self.live.destinations.of(session.policy)
        session.tell = lambda before: self.told.append(session.device)
        self.sessions.add(session)
        return session, tunnel

    def act(self, act: object) -> Device | None:
        """What the administrator does, as the gateway does it."""
        done = perform(self.registry, CONFIG, act, NOW, "uid 0")  # type: ignore[arg-type]
        self.live.follow()
        return done

    def reaches(self, session: Session, destination: str) -> bool:
        """Whether a packet of the device for `destination` leaves the gateway."""
        own = next(a for a in session.addresses if a.version == (6 if ":" in destination else 4))
        before = len(self.tun)
        self.forwarder.from_device(session, [ip_packet(str(own), destination)], 0.0)
        return len(self.tun) > before


@pytest.fixture
def bench(registry: Registry) -> Bench:
    registry.add_group("intern", GroupPolicy(routes=(ip_network("10.1.0.0/16"),)), NOW)
    registry.add_group("lab", GroupPolicy(routes=(ip_network("10.2.0.0/16"),)), NOW)
    return Bench(registry)


def test_a_device_reaches_what_its_groups_may_and_nothing_else(bench: Bench) -> None:
    one, to_one = bench.connect("one", "intern")
    both, _ = bench.connect("both", "intern", "lab")
    everyone, _ = bench.connect("everyone")
    none, _ = bench.connect("none", "intern")
    bench.act(GroupLeaveRequest("intern", "none"))
    destinations = (INTERN, LAB, ELSEWHERE)
    assert [bench.reaches(one, to) for to in destinations] == [True, False, False]
    assert [bench.reaches(both, to) for to in destinations] == [True, True, False]
    assert [bench.reaches(everyone, to) for to in destinations] == [True, True, True]
    assert [bench.reaches(none, to) for to in destinations] == [False, False, False]
    assert all(bench.reaches(session, "10.86.0.1") for session in (one, none)), "the gateway"
    assert one.drops == {"prohibited": 2}
    answer = to_one.packets[0]
    header = parse(answer).header_length
    assert answer[header : header + 2] == bytes((3, 13)), "communication prohibited"


def test_ipv6_is_limited_alike(bench: Bench) -> None:
    session, tunnel = bench.connect("one", "intern")
    assert not bench.reaches(session, "2001:db8::1")
    header = parse(tunnel.packets[0]).header_length
    assert tunnel.packets[0][header : header + 2] == bytes((1, 1)), "administratively prohibited"


def test_routes_that_are_advertised_can_be_wider_than_what_may_be_reached(bench: Bench) -> None:
    settings = GroupSettings(routes=("10.0.0.0/8",), destinations=("10.1.0.0/16",))
    bench.act(GroupSetRequest("intern", settings))
    session, _ = bench.connect("one", "intern")
    assert [str(prefix) for prefix in session.policy.routes] == ["10.0.0.0/8"]
    assert bench.reaches(session, INTERN)
    assert not bench.reaches(session, LAB)


def test_a_change_holds_for_the_next_packet(bench: Bench) -> None:
    session, _ = bench.connect("one", "intern")
    other, _ = bench.connect("other")
    assert not bench.reaches(session, LAB)
    bench.act(GroupJoinRequest("lab", "one"))
    assert bench.reaches(session, LAB)
    bench.act(GroupSetRequest("lab", GroupSettings(destinations=())))
    assert not bench.reaches(session, LAB)
    bench.act(GroupRemoveRequest("intern"))
    assert not bench.reaches(session, INTERN)
    assert set(bench.told) == {"one"}, "whose policy did not change is left alone"
    assert bench.reaches(other, LAB)


def test_a_renamed_device_keeps_its_session(bench: Bench) -> None:
    session, tunnel = bench.connect("old")
    bench.act(RenameRequest("old", "new"))
    assert session.device == "new"
    assert tunnel.closed_with == []
    assert bench.reaches(session, ELSEWHERE)


def test_a_revoked_device_is_cut_and_only_it(bench: Bench) -> None:
    _, tunnel = bench.connect("thief")
    _, other = bench.connect("other")
    barred = bench.act(RevokeRequest("thief"))
    assert barred is not None
    assert barred.name == "thief"
    assert tunnel.closed_with == [None]
    assert other.closed_with == []


def test_a_device_whose_name_was_given_away_is_cut(bench: Bench, where: Path | str) -> None:
    _, tunnel = bench.connect("alice")
    with Registry.open(where) as elsewhere:  # as another gateway may
        elsewhere.revoke("alice", NOW)
        elsewhere.add_device("alice", b"2" * 32, NOW)
    bench.live.follow()
    assert tunnel.closed_with == [None]


def test_a_quota_counts_the_sessions_of_the_whole_group(bench: Bench) -> None:
    bench.act(GroupSetRequest("lab", GroupSettings(max_sessions=2)))
    first, _ = bench.connect("first", "lab")
    bench.connect("second", "lab", "intern")
    bench.connect("other", "intern")
    third = bench.registry.add_device("third", b"3" * 32, NOW, groups=["lab"])
    policy = bench.registry.policy_of(third, CONFIG)
    assert bench.live.no_room(third, policy) == "all 2 sessions of the group lab are in use"
    (again,) = bench.registry.devices([first.id])
    assert bench.live.no_room(again, policy) is None, "it would replace its own session"
    bench.sessions.remove(first)
    assert bench.live.no_room(third, policy) is None


def test_a_thousand_sessions_of_one_policy_share_one_table(bench: Bench) -> None:
    cache = DestinationCache(CONFIG)
    devices = [
        bench.registry.add_device(f"d{n}", bytes([n]) * 32, NOW, groups=[group])
        for n, group in enumerate(["lab", "lab", "intern"])
    ]
    tables = [cache.of(bench.registry.policy_of(device, CONFIG)) for device in devices]
    assert tables[0] is tables[1]
    assert tables[0] is not tables[2]
    assert len(cache) == 2
    tables.clear()
    assert len(cache) == 0, "nobody has that policy any more"


def test_the_widest_policy_fits_into_one_capsule() -> None:
    apart = iter(range(0, 1 << 32, 1 << 20))
    groups = [
        Group(
            number,
            f"g{number}",
            GroupPolicy(
                routes=tuple(
                    IPv6Network(((0x20010DB8 << 96) + next(apart), 128))
                    for _ in range(MAX_PREFIXES)
                )
            ),
        )
        for number in range(MAX_GROUPS)
    ]
    policy = device_policy(groups, CONFIG)
    assert len(policy.routes) == MAX_GROUPS * MAX_PREFIXES
    session = ConnectIpSession(Role.PROXY)
    capsule = session.advertise_routes(prefixes_to_ranges((*policy.routes, *CONFIG.inside)))
    assert len(capsule) <= MAX_VALUE_SIZE
    began = time.process_time()
    table = Destinations(layers_of(CONFIG, policy)).ipv6
    assert time.process_time() - began < 0.5
    assert table.verdict(policy.routes[-1].network_address.packed) is Verdict.FORWARD


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (GroupAddRequest("x", GroupSettings(routes=("10.0.0.1/8",))), "host bits"),
        (GroupAddRequest("x", GroupSettings(routes=("nonsense",))), "route: 'nonsense'"),
        (GroupAddRequest("x", GroupSettings(routes=("10.86.1.0/24",))), "inside the pool"),
        (GroupAddRequest("x", GroupSettings(destinations=("10.86.1.0/24",))), "inside the pool"),
        (GroupAddRequest("x", GroupSettings(dns=("resolver",))), "not a DNS server's address"),
        (
            GroupAddRequest("x", GroupSettings(routes=("10.1.0.0/16",), dns=("9.9.9.9",))),
            "could not reach its DNS server 9.9.9.9",
        ),
        (GroupSetRequest("none", GroupSettings()), "no group is named none"),
        (GroupSetRequest("lab", GroupSettings(max_sessions=-1)), "make no quota"),
        (TokenRequest("x", b"short"), "5 bytes instead of 32"),
        (InviteRequest("x", b"short", NOW + 60), "5 bytes instead of 32"),
        (InviteRequest("x", b"k" * 32, NOW), "cannot expire then"),
        (InviteRequest("x", b"k" * 32, NOW + 366 * 86400), "cannot expire then"),
        (InviteRequest("x", b"k" * 32, NOW + 60, routes=("x",)), "route: 'x'"),
        (UninviteRequest("x"), "no open invite for x"),
    ],
)
def test_what_cannot_be_meant_is_refused_and_changes_nothing(
    bench: Bench, act: object, words: str
) -> None:
    before = bench.registry.groups(), bench.registry.invites(), bench.registry.revision()
    with pytest.raises(UsageError, match=words):
        bench.act(act)
    assert before == (
        bench.registry.groups(),
        bench.registry.invites(),
        bench.registry.revision(),
    )


def test_another_gateways_changes_arrive_by_themselves(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "WATCH_INTERVAL", 0.01)

    async def story(bench: Bench, other: Registry) -> None:
        session, tunnel = bench.connect("alice", "everyone")
        told, closed = asyncio.Event(), asyncio.Event()
        session.tell = lambda before: told.set()
        tunnel.close = lambda error=None: closed.set()  # type: ignore[method-assign]
        async with bench.live.following_others(), asyncio.timeout(20):
            other.set_group("everyone", lambda _: GroupPolicy(routes=()), NOW)
            await told.wait()
            other.revoke("alice", NOW)
            await closed.wait()

    with Registry.open(postgres_url) as registry, Registry.open(postgres_url) as other:
        asyncio.run(story(Bench(registry), other))


def test_a_registry_that_fails_for_a_while_is_watched_on(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "WATCH_INTERVAL", 0.01)

    async def story(bench: Bench, other: Registry) -> None:
        session, _ = bench.connect("alice", "everyone")
        told, failed = asyncio.Event(), asyncio.Event()
        session.tell = lambda before: told.set()
        complaints: list[str] = []

        def complain(message: str, *arguments: object) -> None:
            complaints.append(message % arguments)
            failed.set()

        monkeypatch.setattr(live.log, "error", complain)
        async with bench.live.following_others(), asyncio.timeout(20):
            rename_table(other, "audit", "gone")
            await failed.wait()
            rename_table(other, "gone", "audit")
            other.set_group("everyone", lambda _: GroupPolicy(routes=()), NOW)
            await told.wait()
        assert len(complaints) == 1
        assert "cannot use the registry" in complaints[0]

    with Registry.open(postgres_url) as registry, Registry.open(postgres_url) as other:
        asyncio.run(story(Bench(registry), other))


def rename_table(registry: Registry, old: str, new: str) -> None:
    with registry._database.transaction() as connection:
        connection.exec_driver_sql(f"ALTER TABLE {old} RENAME TO {new}")
