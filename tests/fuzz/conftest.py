"""Lets a long fuzzing run outlast the time limit of ordinary tests."""

from __future__ import annotations

import pytest

from tests.fuzz.harness import seconds_per_target


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "fuzz" in item.path.parts:
            item.add_marker(pytest.mark.timeout(60 + 2 * seconds_per_target()))
