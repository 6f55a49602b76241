"""Fixtures that give tests a world of network namespaces, or skip with the reason."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.moving import Scene
from tests.world import World, plan, unavailable
from tests.world.vpn import POOL4, POOL6, Vpn, no_defects, until


@pytest.fixture(scope="session")
def namespaces_work() -> None:
    """Skips the test where namespaces cannot be made."""
    if reason := unavailable():
        pytest.skip(reason)


@pytest.fixture
def world(namespaces_work: None) -> Iterator[World]:
    """A fresh world, with a relay on the client's uplink: for tests that change it."""
    with World() as world:
        yield world


@pytest.fixture(scope="session")
def shared_world(namespaces_work: None) -> Iterator[World]:
    """One world for all tests of this process that leave it as it is, with a second client."""
    with World(second_client=True) as world:
        yield world


@pytest.fixture(scope="module")
def vpn(namespaces_work: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vpn]:
    """A world with a running gateway and two clients that are not connected, one per module.

    A test that connects or stops something says ``vpn.settle()`` at its end.
    """
    with Vpn(tmp_path_factory.mktemp("vpn")) as vpn:
        yield vpn


@pytest.fixture(scope="module")
def connected(namespaces_work: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vpn]:
    """The same with its first client connected, everything in the tunnel, and no relay.

    For tests that leave it so. The pools are POOL4 and POOL6.
    """
    pools = ("--pool4", POOL4, "--pool6", POOL6)
    with Vpn(tmp_path_factory.mktemp("connected"), *pools, relay=False) as vpn:
        vpn.clients[0].up("--all")
        yield vpn


@pytest.fixture(scope="module")
def moving_stage(
    namespaces_work: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Scene]:
    """One scene for all tests."""
    with World() as world:
        scene = Scene(world, tmp_path_factory.mktemp("moving"))
        with scene.client:
            yield scene


@pytest.fixture
def moving(moving_stage: Scene) -> Iterator[Scene]:
    """The scene with its client connected; one network of sites is tunnelled."""
    moving_stage.client.up("--only", plan.NETS[0][0], POOL4)
    # On a busy machine TLS may win the race at first.
    until(lambda: moving_stage.client.peek()["transport"] == "quic", "QUIC", 60)
    yield moving_stage
    moving_stage.settle()
    no_defects(moving_stage.client.log)
    no_defects(moving_stage.gateway.log.read_text())
