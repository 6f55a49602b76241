"""The demo: it shows the main job, checks what it shows, and leaves nothing behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.demo import Show

ROOT = Path(__file__).resolve().parents[2]
DEMO = [sys.executable, "-m", "tests.demo"]
#: Any user who is not root.
NOBODY = 65534


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[dict[str, str]]:
    """An environment whose temporary files can be counted; they are gone afterwards."""
    yield os.environ | {"TMPDIR": str(tmp_path)}
    assert list(tmp_path.iterdir()) == []


def namespaces_of(pid: int) -> list[str]:
    """The test world's namespaces that a process made."""
    directory = Path("/run/netns")
    return [entry.name for entry in directory.glob(f"qv-{pid}-*")] if directory.is_dir() else []


@pytest.mark.netns
def test_the_demo_shows_the_main_job_and_succeeds(
    namespaces_work: None, scratch: dict[str, str]
) -> None:
    with subprocess.Popen(
        DEMO, cwd=ROOT, env=scratch, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as demo:
        output, errors = demo.communicate(timeout=100)
    assert demo.returncode == 0, output + errors
    assert errors == ""
    for line in (
        r"  ok    www\.alpha\.test sees over IPv4 +203\.0\.113\.2, its router",
        r"  client\$  qvpn enroll qvpn://\S+… --profile laptop",
        r"  client\$  qvpn up laptop",
        r"  ok    www\.alpha\.test sees over IPv4 +203\.0\.113\.130, the gateway",
        r"  ok    www\.alpha\.test sees over IPv6 +2001:db8:2::2, the gateway",
        r"  ok    download of 16 MiB +\d+ Mbit/s, SHA-256 right",
        r"  client\$  qvpn up laptop --only 192\.0\.2\.0/24 2001:db8:a::/64",
        r"  ok    198\.51\.100\.10 goes direct: .+",
        r"  ok    the client's network +as before, byte for byte .+",
        r"All as it should be, in \d+ seconds; nothing is left behind\.",
    ):
        assert re.search(f"^{line}$", output, re.MULTILINE), (line, output)
    assert "FAIL" not in output
    assert "\033" not in output, "no colours in a pipe"
    assert namespaces_of(demo.pid) == []


@pytest.mark.netns
def test_an_interrupted_demo_leaves_nothing_behind(
    namespaces_work: None, scratch: dict[str, str]
) -> None:
    with subprocess.Popen(
        DEMO, cwd=ROOT, env=scratch, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as demo:
        assert demo.stdout is not None
        assert any("qvpn up" in line for line in demo.stdout)
        assert namespaces_of(demo.pid) != []
        demo.send_signal(signal.SIGINT)
        _, errors = demo.communicate(timeout=60)
    assert (demo.returncode, errors) == (130, "the demo was interrupted\n")
    assert namespaces_of(demo.pid) == []


def test_without_root_it_says_in_one_line_what_it_needs() -> None:
    # Imported first: another user may not be able to read this checkout.
    script = (
        "import os, tests.demo\n"
        f"if os.geteuid() == 0: os.setuid({NOBODY})\n"
        "raise SystemExit(tests.demo.main())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "make demo needs root for network namespaces: run it with sudo\n"


def test_a_fact_that_does_not_hold_is_shown_and_counted(
    capsys: pytest.CaptureFixture[str],
) -> None:
    show = Show()
    show.check("the sky", True, "blue")
    assert show.failed == 0
    show.check("the grass", False, "blue")
    assert show.failed == 1
    assert capsys.readouterr().out.splitlines() == [
        "  ok    the sky                           blue",
        "  FAIL  the grass                         blue",
    ]


def test_a_secret_is_cut_short(capsys: pytest.CaptureFixture[str]) -> None:
    Show().typed("client", "qvpn", "profile", "add", "home", "--token", "0123456789abcdef" * 4)
    assert capsys.readouterr().out == "  client$  qvpn profile add home --token 0123456789abcd…\n"
