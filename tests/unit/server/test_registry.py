"""The registry on a real file: devices, tokens, leases, migrations, two processes at once."""

import sqlite3
import stat
from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path

import pytest

from qvpn_core.errors import UsageError
from qvpn_server.credentials import bearer_token, new_token, token_hash
from qvpn_server.pool import Pool, PoolExhausted
from qvpn_server.registry import MIGRATIONS, Registry, RegistryUnavailable

NOW = 1_800_000_000
POOL4 = Pool(ip_network("10.86.0.0/29"))
POOL6 = Pool(ip_network("fd00:86::/64"))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "registry.sqlite3"


@pytest.fixture
def registry(path: Path) -> Iterator[Registry]:
    with Registry.open(path) as opened:
        yield opened


def texts(addresses: tuple[object, ...]) -> list[str]:
    return [str(address) for address in addresses]


def test_a_device_is_found_by_its_token(registry: Registry) -> None:
    token = new_token()
    added = registry.add_device("alice", token_hash(token), NOW)
    assert registry.device_by_token(token_hash(token)) == added
    assert registry.device_by_token(token_hash(new_token())) is None


def test_the_token_is_not_in_the_file(registry: Registry, path: Path) -> None:
    token = new_token()
    registry.add_device("alice", token_hash(token), NOW)
    registry.close()
    assert token.encode() not in path.read_bytes()


def test_only_the_owner_reads_it(registry: Registry, path: Path) -> None:
    registry.add_device("alice", b"1" * 32, NOW)
    for file in path.parent.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file


def test_a_lease_stays_the_same_over_restarts(registry: Registry, path: Path) -> None:
    alice = registry.add_device("alice", b"a" * 32, NOW)
    bob = registry.add_device("bob", b"b" * 32, NOW)
    assert texts(registry.lease(alice, [POOL4, POOL6])) == ["10.86.0.2", "fd00:86::2"]
    assert texts(registry.lease(bob, [POOL4, POOL6])) == ["10.86.0.3", "fd00:86::3"]
    registry.close()
    with Registry.open(path) as reopened:
        assert texts(reopened.lease(bob, [POOL4, POOL6])) == ["10.86.0.3", "fd00:86::3"]
        assert texts(reopened.lease(alice, [POOL4, POOL6])) == ["10.86.0.2", "fd00:86::2"]
        assert texts(reopened.devices()[0].addresses) == ["10.86.0.2", "fd00:86::2"]


def test_a_full_pool_leases_nothing_at_all(registry: Registry) -> None:
    for number in range(POOL4.capacity):
        registry.lease(registry.add_device(f"d{number}", bytes([number] * 32), NOW), [POOL4])
    late = registry.add_device("late", b"l" * 32, NOW)
    with pytest.raises(PoolExhausted):
        registry.lease(late, [POOL6, POOL4])
    found = registry.device_by_token(b"l" * 32)
    assert found is not None
    assert found.addresses == ()


def test_revoking_bars_a_device_and_frees_its_addresses(registry: Registry) -> None:
    alice = registry.add_device("alice", b"a" * 32, NOW)
    registry.lease(alice, [POOL4])
    assert registry.revoke("alice", NOW + 5).revoked == NOW + 5
    assert registry.device_by_token(b"a" * 32) is None
    bob = registry.add_device("bob", b"b" * 32, NOW)
    assert texts(registry.lease(bob, [POOL4])) == ["10.86.0.2"]


def test_revoking_twice_keeps_the_first_time(registry: Registry) -> None:
    registry.add_device("alice", b"a" * 32, NOW)
    registry.revoke("alice", NOW + 5)
    assert registry.revoke("alice", NOW + 9).revoked == NOW + 5


def test_the_name_of_a_revoked_device_may_be_used_again(registry: Registry) -> None:
    registry.add_device("alice", b"a" * 32, NOW)
    with pytest.raises(UsageError, match="a device named alice exists"):
        registry.add_device("alice", b"b" * 32, NOW)
    registry.revoke("alice", NOW)
    registry.add_device("alice", b"b" * 32, NOW)
    assert registry.device_by_token(b"b" * 32) is not None
    assert registry.device_by_token(b"a" * 32) is None, "the old token stays barred"
    assert len(registry.devices()) == 1


def test_revoking_nobody_is_an_error(registry: Registry) -> None:
    with pytest.raises(UsageError, match="no device is named nobody"):
        registry.revoke("nobody", NOW)


@pytest.mark.parametrize("name", ["", "-x", "a b", "a/b", "a@b", "ä", "x" * 64, "a\n"])
def test_awkward_names_are_refused(registry: Registry, name: str) -> None:
    with pytest.raises(UsageError, match="cannot name a device"):
        registry.add_device(name, b"a" * 32, NOW)


def test_after_a_change_of_pools_only_the_leases_outside_move(registry: Registry) -> None:
    alice = registry.add_device("alice", b"a" * 32, NOW)
    bob = registry.add_device("bob", b"b" * 32, NOW)
    registry.lease(alice, [POOL4, POOL6])
    registry.lease(bob, [POOL4, POOL6])
    other4 = Pool(ip_network("10.99.0.0/24"))
    assert texts(registry.lease(bob, [other4, POOL6])) == ["10.99.0.2", "fd00:86::3"]
    assert texts(registry.lease(alice, [other4, POOL6])) == ["10.99.0.3", "fd00:86::2"]


def test_two_processes_never_lease_the_same_address(registry: Registry, path: Path) -> None:
    with Registry.open(path) as second:
        alice = registry.add_device("alice", b"a" * 32, NOW)
        bob = second.add_device("bob", b"b" * 32, NOW)
        leases = {*registry.lease(alice, [POOL4]), *second.lease(bob, [POOL4])}
    assert len(leases) == 2


def test_a_file_that_is_no_registry_is_not_touched(path: Path) -> None:
    path.write_bytes(b"something else entirely, " * 50)
    with pytest.raises(RegistryUnavailable, match="cannot use the registry"):
        Registry.open(path)
    assert path.read_bytes().startswith(b"something else")


def test_a_registry_of_a_newer_version_is_refused(registry: Registry, path: Path) -> None:
    registry.close()
    newer = sqlite3.connect(path)
    newer.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    newer.close()
    with pytest.raises(RegistryUnavailable, match="newer qvpn-server"):
        Registry.open(path)


def test_a_missing_directory_is_an_error_in_words(tmp_path: Path) -> None:
    with pytest.raises(RegistryUnavailable, match="check the state directory"):
        Registry.open(tmp_path / "none" / "registry.sqlite3")


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
