"""What tests of datapaths share."""

from __future__ import annotations

import pytest

from tests.unit.transport.helpers import Identity, make_identity


@pytest.fixture(scope="session")
def identity(tmp_path_factory: pytest.TempPathFactory) -> Identity:
    """A self-signed gateway."""
    return make_identity(tmp_path_factory.mktemp("identity"))
