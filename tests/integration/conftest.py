"""Fixtures that give tests a world of network namespaces, or skip with the reason."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.world import World, unavailable


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
