"""The registry, the same for SQLite and PostgreSQL: devices, leases, invites, groups, the audit."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from ipaddress import ip_address, ip_network
from pathlib import Path
from threading import Barrier

import pytest

from qvpn_core.auth.device_key import key_id
from qvpn_core.errors import ProtocolViolation, UsageError
from qvpn_server.credentials import bearer_token, new_token, token_hash
from qvpn_server.pool import Pool, PoolExhausted
from qvpn_server.registry import (
    Device,
    GroupPolicy,
    InviteExpired,
    InviteRefused,
    InviteRevoked,
    InviteUnknown,
    InviteUsed,
    NameTaken,
    Registry,
)
from tests.unit.server.helpers import gateway_config

NOW = 1_800_000_000
LATER = NOW + 3600
POOL4 = Pool(ip_network("10.86.0.0/29"))
POOL6 = Pool(ip_network("fd00:86::/64"))
KEY = b"i" * 32
PHONE, LAPTOP = b"p" * 32, b"l" * 32


def texts(values: tuple[object, ...]) -> list[str]:
    return [str(value) for value in values]


class TestDevices:
    def test_a_device_is_found_by_its_token(self, registry: Registry) -> None:
        token = new_token()
        added = registry.add_device("alice", token_hash(token), NOW)
        assert registry.device_by_token(token_hash(token)) == added
        assert registry.device_by_token(token_hash(new_token())) is None

    def test_a_lease_stays_the_same_over_restarts(
        self, registry: Registry, where: Path | str
    ) -> None:
        alice = registry.add_device("alice", b"a" * 32, NOW)
        bob = registry.add_device("bob", b"b" * 32, NOW)
        assert texts(registry.lease(alice, [POOL4, POOL6])) == ["10.86.0.2", "fd00:86::2"]
        assert texts(registry.lease(bob, [POOL4, POOL6])) == ["10.86.0.3", "fd00:86::3"]
        registry.close()
        with Registry.open(where) as reopened:
            assert texts(reopened.lease(bob, [POOL4, POOL6])) == ["10.86.0.3", "fd00:86::3"]
            assert texts(reopened.lease(alice, [POOL4, POOL6])) == ["10.86.0.2", "fd00:86::2"]
            assert texts(reopened.devices()[0].addresses) == ["10.86.0.2", "fd00:86::2"]

    def test_a_full_pool_leases_nothing_at_all(self, registry: Registry) -> None:
        for number in range(POOL4.capacity):
            registry.lease(registry.add_device(f"d{number}", bytes([number] * 32), NOW), [POOL4])
        late = registry.add_device("late", b"l" * 32, NOW)
        with pytest.raises(PoolExhausted):
            registry.lease(late, [POOL6, POOL4])
        found = registry.device_by_token(b"l" * 32)
        assert found is not None
        assert found.addresses == ()

    def test_a_lease_in_the_middle_that_became_free_is_the_next(self, registry: Registry) -> None:
        for number, name in enumerate(("alice", "bob", "carol")):
            registry.lease(registry.add_device(name, bytes([number] * 32), NOW), [POOL4])
        registry.revoke("bob", NOW)
        dave = registry.add_device("dave", b"d" * 32, NOW)
        assert texts(registry.lease(dave, [POOL4])) == ["10.86.0.3"]

    def test_revoking_bars_a_device_and_frees_its_addresses(self, registry: Registry) -> None:
        alice = registry.add_device("alice", b"a" * 32, NOW)
        registry.lease(alice, [POOL4])
        assert registry.revoke("alice", NOW + 5).revoked == NOW + 5
        assert registry.device_by_token(b"a" * 32) is None
        bob = registry.add_device("bob", b"b" * 32, NOW)
        assert texts(registry.lease(bob, [POOL4])) == ["10.86.0.2"]

    def test_revoking_twice_keeps_the_first_time(self, registry: Registry) -> None:
        registry.add_device("alice", b"a" * 32, NOW)
        registry.revoke("alice", NOW + 5)
        assert registry.revoke("alice", NOW + 9).revoked == NOW + 5

    def test_the_name_of_a_revoked_device_may_be_used_again(self, registry: Registry) -> None:
        registry.add_device("alice", b"a" * 32, NOW)
        with pytest.raises(UsageError, match="a device named alice exists"):
            registry.add_device("alice", b"b" * 32, NOW)
        registry.revoke("alice", NOW)
        registry.add_device("alice", b"b" * 32, NOW)
        assert registry.device_by_token(b"b" * 32) is not None
        assert registry.device_by_token(b"a" * 32) is None, "the old token stays barred"
        assert len(registry.devices()) == 1

    def test_revoking_nobody_is_an_error(self, registry: Registry) -> None:
        with pytest.raises(UsageError, match="no device is named nobody"):
            registry.revoke("nobody", NOW)

    def test_a_renamed_device_keeps_all_else(self, registry: Registry) -> None:
        alice = registry.add_device("alice", b"a" * 32, NOW)
        registry.lease(alice, [POOL4])
        registry.rename("alice", "alice-laptop", NOW)
        found = registry.device_by_token(b"a" * 32)
        assert found is not None
        assert (found.id, found.name) == (alice.id, "alice-laptop")
        assert texts(found.addresses) == ["10.86.0.2"]

    def test_a_name_in_use_is_not_given_twice(self, registry: Registry) -> None:
        registry.add_device("alice", b"a" * 32, NOW)
        registry.add_device("bob", b"b" * 32, NOW)
        with pytest.raises(UsageError, match="a device named bob exists"):
            registry.rename("alice", "bob", NOW)
        registry.rename("alice", "alice", NOW)
        assert [device.name for device in registry.devices()] == ["alice", "bob"]

    @pytest.mark.parametrize("name", ["", "-x", "a b", "a/b", "a@b", "ä", "x" * 64, "a\n"])
    def test_awkward_names_are_refused(self, registry: Registry, name: str) -> None:
        with pytest.raises(UsageError, match="cannot name a device"):
            registry.add_device(name, b"a" * 32, NOW)
        with pytest.raises(UsageError, match="cannot name a device"):
            registry.create_invite(name, KEY, LATER, NOW)
        with pytest.raises(UsageError, match="cannot name a group"):
            registry.add_group(name, GroupPolicy(), NOW)

    def test_two_processes_never_lease_the_same_address(
        self, registry: Registry, where: Path | str
    ) -> None:
        with Registry.open(where) as second:
            alice = registry.add_device("alice", b"a" * 32, NOW)
            bob = second.add_device("bob", b"b" * 32, NOW)
            leases = {*registry.lease(alice, [POOL4]), *second.lease(bob, [POOL4])}
        assert len(leases) == 2


class TestInvites:
    @pytest.fixture(autouse=True)
    def invited(self, registry: Registry) -> None:
        registry.add_group("staff", GroupPolicy(), NOW)
        registry.create_invite(
            "alice", KEY, LATER, NOW, groups=["staff"], routes=[ip_network("10.0.0.0/8")]
        )
        return

    def test_an_invite_enrols_a_device(self, registry: Registry) -> None:
        invite = registry.invite_by_key_id(key_id(KEY))
        assert invite is not None
        assert (invite.state(NOW), texts(invite.routes)) == ("open", ["10.0.0.0/8"])
        device = registry.redeem_invite(key_id(KEY), PHONE, NOW + 1)
        assert (device.name, device.groups, device.public_key) == ("alice", ("staff",), PHONE)
        assert registry.device_by_key_id(key_id(PHONE)) == device
        assert registry.invites()[0].state(NOW + 2) == "used"

    def test_keys_of_devices_and_invites_are_found_alike(self, registry: Registry) -> None:
        assert registry.public_key(key_id(KEY)) == KEY
        assert registry.public_key(key_id(PHONE)) is None
        registry.redeem_invite(key_id(KEY), PHONE, NOW)
        assert registry.public_key(key_id(PHONE)) == PHONE
        assert registry.public_key(key_id(KEY)) == KEY, "so that it can be refused with a reason"
        registry.revoke("alice", NOW)
        assert registry.public_key(key_id(PHONE)) is None

    def test_a_second_device_is_told_that_it_was_used(self, registry: Registry) -> None:
        registry.redeem_invite(key_id(KEY), PHONE, NOW)
        with pytest.raises(InviteUsed, match="used before"):
            registry.redeem_invite(key_id(KEY), LAPTOP, NOW)

    def test_who_lost_the_answer_may_ask_again(self, registry: Registry) -> None:
        first = registry.redeem_invite(key_id(KEY), PHONE, NOW)
        assert registry.redeem_invite(key_id(KEY), PHONE, LATER + 99) == first
        registry.revoke("alice", NOW)
        with pytest.raises(InviteUsed):
            registry.redeem_invite(key_id(KEY), PHONE, NOW)

    def test_the_last_second_is_over(self, registry: Registry) -> None:
        with pytest.raises(InviteExpired, match="expired"):
            registry.redeem_invite(key_id(KEY), PHONE, LATER)
        assert registry.redeem_invite(key_id(KEY), PHONE, LATER - 1)

    def test_a_clock_set_back_revives_nothing_that_was_used_or_revoked(
        self, registry: Registry
    ) -> None:
        registry.create_invite("bob", b"j" * 32, LATER, NOW)
        registry.redeem_invite(key_id(KEY), PHONE, NOW)
        registry.revoke_invite("bob", NOW)
        for moment in (0, NOW - 86400):
            with pytest.raises(InviteUsed):
                registry.redeem_invite(key_id(KEY), LAPTOP, moment)
            with pytest.raises(InviteRevoked):
                registry.redeem_invite(key_id(b"j" * 32), LAPTOP, moment)

    def test_a_withdrawn_invite_enrols_nobody(self, registry: Registry) -> None:
        registry.revoke_invite("alice", NOW)
        with pytest.raises(InviteRevoked, match="revoked"):
            registry.redeem_invite(key_id(KEY), PHONE, NOW)
        with pytest.raises(UsageError, match="no open invite for alice"):
            registry.revoke_invite("alice", NOW)

    def test_an_unknown_invite(self, registry: Registry) -> None:
        with pytest.raises(InviteUnknown):
            registry.redeem_invite(b"?" * 32, PHONE, NOW)
        assert registry.invite_by_key_id(b"?" * 32) is None

    def test_a_name_that_was_taken_meanwhile(self, registry: Registry) -> None:
        registry.add_device("alice", b"t" * 32, NOW)
        with pytest.raises(NameTaken) as refused:
            registry.redeem_invite(key_id(KEY), PHONE, NOW)
        assert refused.value.refusal == "name-taken"
        registry.revoke("alice", NOW)
        assert registry.redeem_invite(key_id(KEY), PHONE, NOW).name == "alice"

    def test_a_key_enrols_once(self, registry: Registry) -> None:
        registry.redeem_invite(key_id(KEY), PHONE, NOW)
        registry.revoke("alice", NOW)
        registry.create_invite("again", b"j" * 32, LATER, NOW)
        with pytest.raises(ProtocolViolation, match="enrolled already"):
            registry.redeem_invite(key_id(b"j" * 32), PHONE, NOW)
        assert registry.device_by_key_id(key_id(PHONE)) is None, "revoked is for good"

    def test_of_racing_devices_one_wins(
        self, where: Path | str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(
            "qvpn_server.registry.database._BUSY_TIMEOUT", 30.0
        )  # for a disk that is slow
        racers = 4
        start = Barrier(racers)
        with ExitStack() as stack:
            opened = [stack.enter_context(Registry.open(where)) for _ in range(racers)]

            def race(number: int) -> Device | InviteRefused:
                start.wait(10)
                try:
                    return opened[number].redeem_invite(key_id(KEY), bytes([number] * 32), NOW)
                except InviteRefused as error:
                    return error

            with ThreadPoolExecutor(racers) as pool:
                results = list(pool.map(race, range(racers)))
            winners = [result for result in results if isinstance(result, Device)]
            assert len(winners) == 1
            assert sum(isinstance(result, InviteUsed) for result in results) == racers - 1
            assert [device.public_key for device in opened[0].devices()] == [winners[0].public_key]

    def test_one_open_invite_for_a_name(self, registry: Registry) -> None:
        with pytest.raises(UsageError, match="there is an open invite for alice"):
            registry.create_invite("alice", b"j" * 32, LATER, NOW)
        registry.create_invite("alice", b"j" * 32, LATER + 99, LATER)
        assert [invite.state(LATER) for invite in registry.invites()] == ["open", "expired"]

    def test_no_invite_for_a_device_that_exists(self, registry: Registry) -> None:
        registry.add_device("bob", b"b" * 32, NOW)
        with pytest.raises(UsageError, match="a device named bob exists"):
            registry.create_invite("bob", b"j" * 32, LATER, NOW)

    def test_a_group_that_was_removed_is_not_joined(self, registry: Registry) -> None:
        registry.remove_group("staff", NOW)
        assert registry.redeem_invite(key_id(KEY), PHONE, NOW).groups == ()


class TestGroups:
    CONFIG = gateway_config(routes=["0.0.0.0/0", "::/0"], dns=["192.0.2.53"])

    def test_everyone_gets_what_the_gateway_is_configured_for(self, registry: Registry) -> None:
        alice = registry.add_device("alice", b"a" * 32, NOW)
        assert alice.groups == ("everyone",)
        policy = registry.policy_of(alice, self.CONFIG)
        assert texts(policy.routes) == texts(policy.destinations) == ["0.0.0.0/0", "::/0"]
        assert texts(policy.dns) == ["192.0.2.53"]
        assert policy.quotas == ()

    def test_a_device_gets_the_union_of_its_groups(self, registry: Registry) -> None:
        one = GroupPolicy(
            routes=(ip_network("10.0.0.0/9"), ip_network("2001:db8::/32")),
            destinations=(ip_network("10.1.0.0/16"),),
            dns=(ip_address("10.0.0.53"),),
            max_sessions=3,
        )
        other = GroupPolicy(
            routes=(ip_network("10.128.0.0/9"),),
            dns=(ip_address("10.0.0.54"), ip_address("10.0.0.53")),
        )
        registry.add_group("one", one, NOW)
        registry.add_group("other", other, NOW)
        alice = registry.add_device("alice", b"a" * 32, NOW, groups=["other", "one"])
        policy = registry.policy_of(alice, self.CONFIG)
        assert texts(policy.routes) == ["10.0.0.0/8", "2001:db8::/32"]
        assert texts(policy.destinations) == ["10.1.0.0/16", "10.128.0.0/9"]
        assert texts(policy.dns) == ["10.0.0.53", "10.0.0.54"]
        assert policy.quotas == (("one", 3),)

    def test_a_family_without_a_pool_is_left_out(self, registry: Registry) -> None:
        alice = registry.add_device("alice", b"a" * 32, NOW)
        policy = registry.policy_of(alice, gateway_config(pool6="none"))
        assert texts(policy.routes) == ["0.0.0.0/0"]

    def test_a_device_in_no_group_reaches_nothing(self, registry: Registry) -> None:
        alice = registry.add_device("alice", b"a" * 32, NOW, groups=[])
        policy = registry.policy_of(alice, self.CONFIG)
        assert (policy.routes, policy.destinations, policy.dns) == ((), (), ())

    def test_joining_and_leaving(self, registry: Registry) -> None:
        registry.add_group("staff", GroupPolicy(), NOW)
        registry.add_device("alice", b"a" * 32, NOW)
        for _ in range(2):
            registry.join("staff", "alice", NOW)
            assert registry.devices()[0].groups == ("everyone", "staff")
        for _ in range(2):
            registry.leave("everyone", "alice", NOW)
            assert registry.devices()[0].groups == ("staff",)
        assert [(group.name, group.members) for group in registry.groups()] == [
            ("everyone", 0),
            ("staff", 1),
        ]

    def test_a_group_is_changed_in_part_and_reset(self, registry: Registry) -> None:
        network = ip_network("10.0.0.0/8")
        registry.add_group("staff", GroupPolicy(routes=(network,), max_sessions=2), NOW)
        registry.set_group("staff", lambda old: GroupPolicy(old.routes, (network,)), NOW)
        assert registry.groups()[1].policy == GroupPolicy((network,), (network,))
        registry.set_group("staff", lambda _: GroupPolicy(), NOW)
        assert registry.groups()[1].policy == GroupPolicy()

    def test_removing_a_group_takes_it_from_its_devices(self, registry: Registry) -> None:
        registry.add_group("staff", GroupPolicy(), NOW)
        registry.add_device("alice", b"a" * 32, NOW, groups=["staff", "everyone"])
        registry.remove_group("staff", NOW)
        assert registry.devices()[0].groups == ("everyone",)

    def test_what_cannot_be_is_refused_and_leaves_nothing(self, registry: Registry) -> None:
        registry.add_device("alice", b"a" * 32, NOW)
        before = registry.groups(), registry.devices(), registry.audit()
        many = tuple(ip_network(f"10.0.{number}.0/24") for number in range(101))
        with pytest.raises(UsageError, match="no group is named staff"):
            registry.join("staff", "alice", NOW)
        with pytest.raises(UsageError, match="no device is named bob"):
            registry.join("everyone", "bob", NOW)
        with pytest.raises(UsageError, match="no group is named staff"):
            registry.add_device("bob", b"b" * 32, NOW, groups=["everyone", "staff"])
        with pytest.raises(UsageError, match="a group named everyone exists"):
            registry.add_group("everyone", GroupPolicy(), NOW)
        with pytest.raises(UsageError, match="what new devices join"):
            registry.remove_group("everyone", NOW)
        with pytest.raises(UsageError, match="101 entries are too many"):
            registry.add_group("staff", GroupPolicy(routes=many), NOW)
        with pytest.raises(UsageError, match="make no quota"):
            registry.set_group("everyone", lambda _: GroupPolicy(max_sessions=0), NOW)
        assert (registry.groups(), registry.devices(), registry.audit()) == before


class TestAudit:
    def test_every_change_leaves_a_line(self, registry: Registry) -> None:
        who = "uid 0"
        assert registry.revision() == 0
        registry.add_group("staff", GroupPolicy(max_sessions=2), NOW, actor=who)
        registry.set_group("staff", lambda _: GroupPolicy(), NOW + 1, actor=who)
        registry.add_device("alice", b"a" * 32, NOW + 2, actor=who)
        registry.join("staff", "alice", NOW + 3, actor=who)
        registry.leave("staff", "alice", NOW + 4, actor=who)
        registry.rename("alice", "anna", NOW + 5, actor=who)
        registry.revoke("anna", NOW + 6, actor=who)
        registry.create_invite("bob", KEY, LATER, NOW + 7, actor=who)
        registry.redeem_invite(key_id(KEY), PHONE, NOW + 8)
        registry.create_invite("carl", b"j" * 32, LATER, NOW + 9, actor=who)
        registry.revoke_invite("carl", NOW + 10, actor=who)
        registry.remove_group("staff", NOW + 11, actor=who)
        lines = [(line.action, line.subject, line.detail) for line in registry.audit()]
        lists = ("routes", "destinations", "dns", "services")
        defaults = ", ".join([*(f"{name} default" for name in lists), "max_sessions"])
        assert lines == [
            ("group add", "staff", f"{defaults} 2"),
            ("group set", "staff", f"{defaults} default"),
            ("token", "alice", "groups everyone"),
            ("group join", "alice", "staff"),
            ("group leave", "alice", "staff"),
            ("rename", "alice", "to anna"),
            ("revoke", "anna", ""),
            ("invite", "bob", "until 2027-01-15T09:00:00Z, groups everyone"),
            ("enrol", "bob", ""),
            ("invite", "carl", "until 2027-01-15T09:00:00Z, groups everyone"),
            ("uninvite", "carl", ""),
            ("group remove", "staff", ""),
        ]
        assert [line.at for line in registry.audit()] == list(range(NOW, NOW + 12))
        assert {line.actor for line in registry.audit()} == {"uid 0", "invite bob"}
        assert registry.revision() == 12

    def test_what_changes_nothing_is_no_act(self, registry: Registry) -> None:
        registry.add_device("alice", b"a" * 32, NOW)
        registry.revoke("alice", NOW)
        before = registry.revision()
        registry.revoke("alice", NOW)
        registry.rename("alice", "alice", NOW)
        registry.join("everyone", "alice", NOW)
        registry.lease(registry.add_device("bob", b"b" * 32, NOW), [POOL4])
        assert registry.revision() == before + 1


TOKEN = "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("field", "token"),
    [
        (f"Bearer {TOKEN}", TOKEN),
        (f"bearer  {TOKEN} ", TOKEN),
        (None, None),
        ("", None),
        ("Bearer", None),
        (TOKEN, None),
        (f"Basic {TOKEN}", None),
        (f"Bearer {TOKEN}x", None),
        (f"Bearer {TOKEN[1:]}", None),
        (f"Bearer {TOKEN} {TOKEN}", None),
        (f"Bearer {TOKEN.upper()}", None),
    ],
)
def test_bearer_tokens_in_a_request(field: str | None, token: str | None) -> None:
    assert bearer_token(field) == token


def test_new_tokens_are_tokens() -> None:
    first, second = new_token(), new_token()
    assert first != second
    assert bearer_token(f"Bearer {first}") == first
