"""`qvpn-server` as a person and a script use it. Nothing here needs root or a network."""

import json
import shlex
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from qvpn_core.transport.trust import parse_pin
from qvpn_server import cli
from qvpn_server.config import load_config
from qvpn_server.credentials import token_hash
from qvpn_server.registry import Registry
from qvpn_server.statedir import StateDir


@pytest.fixture
def state(tmp_path: Path) -> StateDir:
    """The state of a gateway that has been created."""
    state = StateDir(tmp_path / "state")
    assert cli.main(["init", "--state", str(state.path), "--host", "gw.example"]) == 0
    return state


class Run:
    """One command in this process: its status, output and errors."""

    def __init__(self, capsys: pytest.CaptureFixture[str], *arguments: object) -> None:
        capsys.readouterr()
        self.status = cli.main([str(argument) for argument in arguments])
        self.output, self.errors = capsys.readouterr()

    @property
    def document(self) -> Any:
        return json.loads(self.output)

    def assert_refused(self, *words: str) -> None:
        assert self.status != 0
        assert self.output == ""
        assert self.errors.count("\n") == 1, "one line"
        assert self.errors.startswith("qvpn-server: ")
        for word in words:
            assert word in self.errors


def test_init_makes_a_gateway_and_says_what_is_next(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = StateDir(tmp_path / "new" / "state")
    run = Run(capsys, "init", "--state", state.path, "--host", "gw.example", "--dns", "9.9.9.9")
    assert run.status == 0
    assert f"qvpn-server invite --state {state.path} NAME" in run.output
    assert f"qvpn-server run --state {state.path}" in run.output
    (pin,) = [line.split()[1] for line in run.output.splitlines() if line.startswith("pin")]
    assert parse_pin(pin) == pin
    config = load_config(state.config)
    assert config.host == "gw.example"
    assert [address.version for address in config.gateway_addresses] == [4, 6]
    assert config.isolation
    assert stat.S_IMODE(state.config.stat().st_mode) == 0o600


def test_init_never_overwrites(state: StateDir, capsys: pytest.CaptureFixture[str]) -> None:
    before = state.config.read_bytes()
    run = Run(capsys, "init", "--state", state.path, "--host", "other.example")
    run.assert_refused("holds a gateway already", f"qvpn-server run --state {state.path}")
    assert state.config.read_bytes() == before


def test_init_takes_every_option(
    tmp_path: Path, state: StateDir, capsys: pytest.CaptureFixture[str]
) -> None:
    other = StateDir(tmp_path / "other")
    listen = ["--listen", "192.0.2.1:8443", "--listen", "[2001:db8::1]:8443"]
    networks = ["--pool4", "10.1.0.0/24", "--pool6", "none", "--route", "10.0.0.0/8"]
    more = ["--dns", "10.0.0.53", "10.0.0.54", "--no-isolation"]
    certificate = ["--cert", str(state.certificate), "--key", str(state.private_key)]
    arguments = [*listen, *networks, *more, *certificate]
    run = Run(capsys, "init", "--state", other.path, "--host", "192.0.2.1", *arguments)
    assert run.status == 0
    config = load_config(other.config)
    assert config.listen == (("192.0.2.1", 8443), ("2001:db8::1", 8443))
    assert [str(pool.network) for pool in config.pools] == ["10.1.0.0/24"]
    assert [str(route) for route in config.routes] == ["10.0.0.0/8"]
    assert [str(server) for server in config.dns] == ["10.0.0.53", "10.0.0.54"]
    assert not config.isolation
    assert config.certificate == state.certificate
    assert not other.certificate.exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--pool4", "10.0.0.0/31"], "too small"),
        (["--pool6", "fe80::/64"], "cannot be routed"),
        (["--listen", "nowhere"], "cannot listen on 'nowhere'"),
        (["--cert", "c.pem"], "--cert and --key belong together"),
        (["--cert", "/nonexistent/c.pem", "--key", "/nonexistent/k.pem"], "cannot read"),
        (["--frobnicate"], "qvpn-server --help"),
    ],
)
def test_a_bad_init_creates_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    path = tmp_path / "state"
    Run(capsys, "init", "--state", path, "--host", "gw", *arguments).assert_refused(words)
    assert not path.exists()


def test_a_token_is_one_line_that_a_client_can_run(
    state: StateDir, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(capsys, "token", "--state", state.path, "alice")
    assert run.output.count("\n") == 1
    command = shlex.split(run.output)
    assert command[:4] == ["qvpn", "profile", "add", "alice"]
    options = dict(zip(command[4::2], command[5::2], strict=True))
    assert options["--gateway"] == "gw.example:443"
    assert parse_pin(options["--pin"])
    with Registry.open(state.registry) as registry:
        device = registry.device_by_token(token_hash(options["--token"]))
    assert device is not None
    assert device.name == "alice"


def test_a_token_as_json(state: StateDir, capsys: pytest.CaptureFixture[str]) -> None:
    document = Run(capsys, "token", "--state", state.path, "alice", "--json").document
    assert set(document) == {"name", "token", "gateway", "pin"}
    assert len(bytes.fromhex(document["token"])) == 32


def test_names_are_unique_until_revoked(
    state: StateDir, capsys: pytest.CaptureFixture[str]
) -> None:
    assert Run(capsys, "token", "--state", state.path, "alice").status == 0
    Run(capsys, "token", "--state", state.path, "alice").assert_refused("alice exists")
    assert Run(capsys, "revoke", "--state", state.path, "alice").output == "revoked alice\n"
    assert Run(capsys, "token", "--state", state.path, "alice").status == 0


def test_list_shows_devices_but_no_secrets(
    state: StateDir, capsys: pytest.CaptureFixture[str]
) -> None:
    assert Run(capsys, "list", "--state", state.path).output == "no devices yet\n"
    token = Run(capsys, "token", "--state", state.path, "alice", "--json").document["token"]
    Run(capsys, "token", "--state", state.path, "bob")
    Run(capsys, "revoke", "--state", state.path, "bob")
    listing = Run(capsys, "list", "--state", state.path)
    assert [line.split()[0] for line in listing.output.splitlines()] == ["NAME", "alice", "bob"]
    devices = Run(capsys, "list", "--state", state.path, "--json")
    assert token not in devices.output
    assert [device["name"] for device in devices.document] == ["alice", "bob"]
    assert [device["revoked"] is None for device in devices.document] == [True, False]


def test_revoke_as_json(state: StateDir, capsys: pytest.CaptureFixture[str]) -> None:
    Run(capsys, "token", "--state", state.path, "alice")
    document = Run(capsys, "revoke", "--state", state.path, "alice", "--json").document
    assert document == {"name": "alice", "revoked": True, "disconnected": False}
    Run(capsys, "revoke", "--state", state.path, "nobody").assert_refused("no device is named")


def test_status_without_a_running_gateway(
    state: StateDir, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(capsys, "status", "--state", state.path)
    assert run.status == 3
    assert run.output == f"no gateway runs on {state.path}\n"
    assert Run(capsys, "status", "--state", state.path, "--json").document == {"running": False}


@pytest.mark.parametrize("verb", ["run", "list", "status"])
def test_a_directory_without_a_gateway(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    run = Run(capsys, verb, "--state", tmp_path / "none")
    run.assert_refused("holds no gateway", "qvpn-server init")


def test_a_damaged_registry(state: StateDir, capsys: pytest.CaptureFixture[str]) -> None:
    state.registry.write_bytes(b"junk" * 1000)
    Run(capsys, "list", "--state", state.path).assert_refused("registry.sqlite3", "not a database")


@pytest.mark.parametrize("arguments", [[], ["frobnicate"], ["list"], ["token", "--state", "x"]])
def test_wrong_usage_is_one_line(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    run = Run(capsys, *arguments)
    run.assert_refused("--help")
    assert run.status == 2


def test_the_installed_command_shows_no_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "qvpn_server.cli", "list", "--state", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("qvpn-server: ")


def test_output_into_a_closed_pipe_is_no_error_message(state: StateDir) -> None:
    command = shlex.join(
        [sys.executable, "-m", "qvpn_server.cli", "list", "--state", str(state.path)]
    )
    done = subprocess.run(
        f"{command} | true", shell=True, capture_output=True, text=True, timeout=30
    )
    assert done.stderr == ""
