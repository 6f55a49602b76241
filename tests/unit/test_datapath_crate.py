"""The native datapath's own tests, and where what it is built of comes from."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "tools" / "datapath.sh"
CANNOT = 77


def run(action: str) -> None:
    """An action of the script, behind the other tests; its output when it fails."""
    done = subprocess.run(
        ["nice", SCRIPT, action],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode == CANNOT:
        pytest.skip(done.stdout.strip())
    assert done.returncode == 0, done.stdout


@pytest.mark.timeout(1800)
def test_the_crate_passes_its_tests() -> None:
    run("test")


def test_all_of_it_may_be_used_and_comes_from_one_registry() -> None:
    run("deny")
