"""Certificates that the transport's tests share; making one takes longer than using it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.transport.helpers import Identity, make_identity


@pytest.fixture(scope="session")
def identity(tmp_path_factory: pytest.TempPathFactory) -> Identity:
    """A self-signed gateway."""
    return make_identity(tmp_path_factory.mktemp("identity"))


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Identity:
    """A certification authority."""
    directory: Path = tmp_path_factory.mktemp("authority")
    return make_identity(directory, "authority", hosts=(), authority=True)
