"""What CI runs ends, whatever the tests leave behind."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.world.vpn import until

SCRIPT = Path(__file__).parents[2] / ".ci" / "run"

Run = Callable[[str], "subprocess.Popen[str]"]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Start the script in a checkout whose `make test` is what it gets, with 2 seconds for it."""
    copy = tmp_path / ".ci" / "run"
    copy.parent.mkdir()
    text = SCRIPT.read_text()
    assert text.count("within 2700 make test") == 1
    copy.write_text(text.replace("within 2700", "within 2"))
    copy.chmod(0o755)
    programs = tmp_path / "programs"
    programs.mkdir()

    def start(test: str) -> subprocess.Popen[str]:
        for name, what in (
            ("apt-get", "cat"),  # which would wait for a terminal
            ("make", f'echo "made $1"\n[ "$1" = test ] || exit 0\n{test}'),
        ):
            (programs / name).write_text(f"#!/bin/sh\n{what}\n")
            (programs / name).chmod(0o755)
        environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"}
        return subprocess.Popen(
            [copy], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
        )

    return start


def alive(process: Path) -> bool:
    """Whether the process that wrote its number into this file still runs."""
    try:
        stat = Path(f"/proc/{process.read_text().strip()}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(") ")[2][0] not in "ZX"


@pytest.mark.parametrize("status", [0, 3])
def test_a_daemon_that_keeps_the_output_open_keeps_nobody(
    run: Run, tmp_path: Path, status: int
) -> None:
    daemons = tmp_path / "one", tmp_path / "two"
    # One in the group of the tests, one in a group of its own.
    test = f"sleep 600 & echo $! >{daemons[0]}\n"
    test += f"timeout 600 sleep 600 & echo $! >{daemons[1]}\nexit {status}"
    process = run(test)
    output, _ = process.communicate(timeout=60)
    assert output.splitlines() == ["made lint", "made test"]
    assert process.returncode == status
    for daemon in daemons:
        assert daemon.exists()
        until(lambda daemon=daemon: not alive(daemon), "it has ended")


def test_tests_that_hang_are_ended_and_said_to_be(run: Run, tmp_path: Path) -> None:
    daemon = tmp_path / "hanging"
    process = run(f"echo $$ >{daemon}\nexec sleep 600")
    output, _ = process.communicate(timeout=60)
    assert output.splitlines()[-1] == "ended after 2 seconds: make test"
    assert process.returncode == 124
    until(lambda: not alive(daemon), "it has ended")


def test_signals_do_in_tests_what_they_do_elsewhere(run: Run) -> None:
    process = run("sed -n 's/^SigIgn:.*\\(....\\)$/\\1/p' /proc/self/status")
    assert process.communicate(timeout=60)[0].splitlines()[-1] == "0000"


def test_who_ends_it_ends_all_of_it(run: Run, tmp_path: Path) -> None:
    daemon = tmp_path / "working"
    process = run(
        f"trap '' TERM\nsleep 600 & echo $! >{daemon}.new; mv {daemon}.new {daemon}; wait"
    )
    until(daemon.exists, "the tests run")
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 143
    until(lambda: not alive(daemon), "it has ended")
    assert time.monotonic() - began < 30
