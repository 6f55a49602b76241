"""``qvpn`` as a person meets it: the real command in its own process."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PIN = "sha256/" + base64.b64encode(bytes(range(32))).decode()
TOKEN = "s3cret-t0ken"


class Qvpn:
    """Runs commands with directories of their own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.environment = {
            **os.environ,
            "QVPN_CONFIG_DIR": str(directory / "config"),
            "QVPN_STATE_DIR": str(directory / "state"),
            "QVPN_RUNTIME_DIR": str(directory / "run"),
        }

    def __call__(self, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        return self.run([sys.executable, "-m", "qvpn_core.client.cli", *arguments], stdin)

    def run(self, command: list[str], stdin: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            env=self.environment,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def fails(self, *arguments: str, status: int = 2) -> str:
        """The one line that a command which must fail says."""
        return one_line(self(*arguments), status)


def one_line(result: subprocess.CompletedProcess[str], status: int) -> str:
    assert result.returncode == status, result
    assert result.stdout == ""
    assert result.stderr.startswith("qvpn: ")
    assert result.stderr.count("\n") == 1
    return result.stderr.removeprefix("qvpn: ").strip()


@pytest.fixture
def qvpn(tmp_path: Path) -> Qvpn:
    return Qvpn(tmp_path)


def test_a_profile_from_birth_to_death(qvpn: Qvpn) -> None:
    added = qvpn(
        *("profile", "add", "home", "--gateway", "vpn.example.org:4433", "--pin", PIN),
        *("--token-file", "-"),
        stdin=TOKEN + "\n",
    )
    assert added.returncode == 0, added
    assert str(qvpn.directory / "config" / "profiles" / "home.toml") in added.stdout

    assert qvpn("profile", "list").stdout == "home\n"
    shown = qvpn("profile", "show", "home").stdout
    assert "vpn.example.org:4433" in shown
    assert PIN in shown
    assert TOKEN not in shown

    assert "exists" in qvpn.fails(
        *("profile", "add", "home", "--gateway", "other", "--token", TOKEN)
    )
    assert qvpn("profile", "remove", "home").returncode == 0
    assert "no profile 'home'" in qvpn.fails("profile", "show", "home")


def test_without_a_tunnel_status_and_explain_say_so_and_down_is_content(qvpn: Qvpn) -> None:
    assert qvpn("status").stdout.split() == ["state", "disconnected"]
    status = json.loads(qvpn("status", "--json").stdout)
    assert status["state"] == "disconnected"
    contract = "state profile transport datapath addresses routes dns mtu rtt_ms tx_bytes rx_bytes"
    assert set(contract.split()) | {"since", "reason", "tx_packets", "drops"} <= set(status)

    assert "goes direct: no tunnel" in qvpn("routes", "explain", "192.0.2.1").stdout

    down = qvpn("down")
    assert (down.returncode, down.stderr) == (0, "qvpn: nothing is up\n")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "COMMAND"),
        (["frobnicate"], "invalid choice"),
        (["up"], "PROFILE"),
        (["up", "home", "--all", "--only", "192.0.2.0/24"], "not allowed with"),
        (["up", "home", "--transport", "pigeon"], "invalid choice"),
        (["profile", "add", "home", "--gateway", "host"], "--token"),
        (
            ["profile", "add", "../etc", "--gateway", "host", "--token", "t"],
            "cannot name a profile",
        ),
        (["profile", "add", "home", "--gateway", "host:x", "--token", "t"], "is not a gateway"),
        (["profile", "add", "h", "--gateway", "host", "--token", "t", "--pin", "x"], "pin"),
        (["profile", "add", "h", "--gateway", "host", "--token", "t", "--ca", "/none"], "no file"),
        (["profile", "add", "h", "--gateway", "host", "--token-file", "/none"], "No such file"),
    ],
    ids=lambda value: " ".join(value) or "nothing" if isinstance(value, list) else "",
)
def test_what_cannot_be_meant_is_one_line_and_status_2(
    qvpn: Qvpn, arguments: list[str], words: str
) -> None:
    assert words in qvpn.fails(*arguments)


def test_up_checks_what_it_was_given_before_it_starts_anything(qvpn: Qvpn) -> None:
    assert "no profile 'home'" in qvpn.fails("up", "home")
    qvpn("profile", "add", "home", "--gateway", "host", "--token", TOKEN)
    assert "did you mean 192.0.2.0/24" in qvpn.fails("up", "home", "--only", "192.0.2.1/24")
    assert "invalid choice" in qvpn.fails("up", "home", "--transport", "pigeons")
    assert not (qvpn.directory / "state").exists(), "no agent was started"
