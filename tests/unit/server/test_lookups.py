"""What is remembered of devices that make requests: it saves look-ups and outlives no change."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import event

from qvpn_core.auth.device_key import DeviceKey
from qvpn_server import cli, lookups
from qvpn_server.config import GatewayConfig, load_config
from qvpn_server.credentials import new_token, token_hash
from qvpn_server.lookups import LookUps
from qvpn_server.registry import Device, Registry
from qvpn_server.statedir import StateDir
from tests.unit.server.test_gateway import World
from tests.unit.server.test_services import device, echo, story, tcp_server

NOW = 1_800_000_000


@pytest.fixture
def state(tmp_path: Path) -> StateDir:
    state = StateDir(tmp_path / "state")
    init = ["init", "--state", str(state.path), "--host", "127.0.0.1", "--listen", "127.0.0.1:0"]
    assert cli.main(init) == 0
    return state


@pytest.fixture
def config(state: StateDir) -> GatewayConfig:
    return load_config(state.config)


@pytest.fixture
def registry(state: StateDir) -> Iterator[Registry]:
    with Registry.open(state.registry) as registry:
        yield registry


@pytest.fixture
def command(state: StateDir) -> Iterator[Registry]:
    """The same registry as another process has it."""
    with Registry.open(state.registry) as registry:
        yield registry


@contextmanager
def transactions(registry: Registry, count: int) -> Iterator[None]:
    """So many happen inside."""
    seen = []
    engine = registry._database._engine

    def note(connection: object) -> None:
        seen.append(connection)

    event.listen(engine, "begin", note)
    try:
        yield
    finally:
        event.remove(engine, "begin", note)
    assert len(seen) == count


def enrolled(registry: Registry, name: str) -> tuple[Device, bytes]:
    token = token_hash(new_token())
    return registry.add_device(name, token, NOW), token


def test_what_was_found_is_looked_up_once(registry: Registry, config: GatewayConfig) -> None:
    known, token = enrolled(registry, "alice")
    remembering = LookUps(registry, config)
    remembering.refresh()
    assert remembering.remembered(token) is None
    policy = remembering.policy_of(known)
    assert remembering.device_by_token(token) == known
    with transactions(registry, 1):
        remembering.refresh()
        assert remembering.remembered(token) == known
        assert remembering.device_by_token(token) == known
        assert remembering.policy_of(known) == policy


def test_who_proves_a_key_is_looked_up_once_too(registry: Registry, config: GatewayConfig) -> None:
    invite, key = DeviceKey.generate(), DeviceKey.generate()
    registry.create_invite("alice", invite.public_key, NOW + 60, NOW)
    known = registry.redeem_invite(invite.key_id, key.public_key, NOW)
    remembering = LookUps(registry, config)
    for count in (2, 1):
        with transactions(registry, count):
            remembering.refresh()
            assert remembering.device_by_key_id(key.key_id) == known


def test_strangers_cost_the_same_every_time(registry: Registry, config: GatewayConfig) -> None:
    remembering = LookUps(registry, config)
    for _ in range(3):
        with transactions(registry, 2):
            remembering.refresh()
            assert remembering.device_by_token(b"t" * 32) is None


def test_a_revocation_by_anybody_holds_at_once(
    registry: Registry, command: Registry, config: GatewayConfig
) -> None:
    _, token = enrolled(registry, "alice")
    remembering = LookUps(registry, config)
    remembering.refresh()
    assert remembering.device_by_token(token) is not None
    command.revoke("alice", NOW)
    remembering.refresh()
    assert remembering.remembered(token) is None
    assert remembering.device_by_token(token) is None


def test_a_changed_group_holds_at_once(
    registry: Registry, command: Registry, config: GatewayConfig
) -> None:
    known, token = enrolled(registry, "alice")
    remembering = LookUps(registry, config)
    remembering.refresh()
    before = remembering.policy_of(known)
    command.leave("everyone", "alice", NOW)
    remembering.refresh()
    now = remembering.device_by_token(token)
    assert now is not None
    assert now.groups == ()
    assert remembering.policy_of(now).services == () != before.services


def test_memory_is_bounded(
    registry: Registry, config: GatewayConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lookups, "MAX_REMEMBERED", 3)
    tokens = [enrolled(registry, f"device-{number}")[1] for number in range(10)]
    remembering = LookUps(registry, config)
    remembering.refresh()
    for token in tokens:
        assert remembering.device_by_token(token) is not None
        assert sum(remembering.remembered(each) is not None for each in tokens) <= 3


def test_a_change_that_no_gateway_was_told_of_holds_for_the_next_stream(tmp_path: Path) -> None:
    async def tell(world: World) -> None:
        async with tcp_server(echo) as port, device(world) as alice:
            for _ in range(3):
                (await alice.tcp("127.0.0.1", port)).end()
            world.registry.leave("everyone", "alice", NOW)
            assert (await alice.refused("127.0.0.1", port))[0] == 403
            world.registry.join("everyone", "alice", NOW)
            (await alice.tcp("127.0.0.1", port)).end()
            world.registry.revoke("alice", NOW)
            assert (await alice.refused("127.0.0.1", port))[0] == 404

    story(tmp_path, tell)
