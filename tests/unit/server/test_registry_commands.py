"""Invites, groups and the audit on the command line, without a running gateway."""

import json
from pathlib import Path
from typing import Any

import pytest

from qvpn_core.auth.invite import SCHEME, Invite
from qvpn_server import cli
from qvpn_server.certificate import pin_of
from qvpn_server.config import load_config
from qvpn_server.registry import Registry
from qvpn_server.registry_commands import parse_duration
from qvpn_server.statedir import StateDir


class Shell:
    """`qvpn-server` in this process, on one state directory."""

    def __init__(self, state: StateDir, capsys: pytest.CaptureFixture[str]) -> None:
        self.state = state
        self._capsys = capsys

    def __call__(self, *words: str) -> str:
        """Run a command that must work; what it printed."""
        status, output, errors = self._run(words)
        assert (status, errors) == (0, "")
        return output

    def json(self, *words: str) -> Any:
        """The JSON document that a command prints."""
        return json.loads(self(*words, "--json"))

    def refused(self, *words: str) -> str:
        """Run a command that must not work; its one line of words."""
        status, output, errors = self._run(words)
        assert status == 2
        assert output == ""
        assert errors.startswith("qvpn-server: ")
        assert errors.count("\n") == 1
        return errors

    def _run(self, words: tuple[str, ...]) -> tuple[int, str, str]:
        self._capsys.readouterr()
        status = cli.main([*words, "--state", str(self.state.path)])
        return (status, *self._capsys.readouterr())


@pytest.fixture
def shell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Shell:
    shell = Shell(StateDir(tmp_path / "state"), capsys)
    shell("init", "--host", "gw.example", "--pool6", "fd00:86::/64")
    return shell


def test_an_invite_is_one_link_with_all_that_a_device_needs(shell: Shell) -> None:
    shell("group", "add", "staff")
    printed = shell("invite", "alice", "--expires", "30m", "--group", "staff", "everyone")
    assert printed.startswith(SCHEME)
    assert printed.count("\n") == 1
    invite = Invite.from_characters(printed.strip().removeprefix(SCHEME))
    config = load_config(shell.state.config)
    assert invite.gateways == (("gw.example", 443),)
    assert invite.pins == (pin_of(config.certificate),)
    assert invite.name == "alice"
    with Registry.open(shell.state.registry) as registry:
        kept = registry.invite_by_key_id(invite.key.key_id)
    assert kept is not None
    assert kept.expires == invite.expires
    assert kept.expires - kept.created == pytest.approx(30 * 60, abs=5)
    assert kept.groups == ("everyone", "staff")


def test_the_secret_of_an_invite_is_kept_nowhere(shell: Shell) -> None:
    document = shell.json("invite", "alice", "--route", "10.0.0.0/8", "192.0.2.0/24")
    invite = Invite.from_characters(document["link"].removeprefix(SCHEME))
    assert document["routes"] == ["10.0.0.0/8", "192.0.2.0/24"]
    for file in shell.state.path.iterdir():
        content = file.read_bytes()
        assert invite.secret not in content, file
        assert invite.secret.hex().encode() not in content, file
    assert invite.link not in shell("invites", "--json") + shell("audit", "--json")


def test_invites_are_listed_and_withdrawn(shell: Shell) -> None:
    assert shell("invites") == "no invites yet\n"
    shell("invite", "alice")
    assert shell("uninvite", "alice") == "withdrew the invite for alice\n"
    shell("invite", "alice")
    assert [invite["state"] for invite in shell.json("invites")] == ["open", "revoked"]
    assert [line.split()[:2] for line in shell("invites").splitlines()] == [
        ["NAME", "STATE"],
        ["alice", "open"],
        ["alice", "revoked"],
    ]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("invite", "a b"), "cannot name a device"),
        (("invite", "alice", "--expires", "1y"), "not a duration"),
        (("invite", "alice", "--expires", "0m"), "not a duration"),
        (("invite", "alice", "--expires", "999999d"), "too long for an invite"),
        (("invite", "alice", "--route", "10.0.0.1/8"), "host bits set"),
        (("invite", "alice", "--group", "none"), "no group is named none"),
        (("uninvite", "alice"), "no open invite for alice"),
        (("rename", "alice", "bob"), "no device is named alice"),
        (("group", "set", "everyone"), "nothing to change"),
        (("group", "set", "everyone", "--max-sessions", "9" * 5000), "not a number of sessions"),
        (("group", "set", "everyone", "--max-sessions", "0"), "make no quota"),
        (("group", "add", "x", "--dns", "none", "9.9.9.9"), "not a DNS server's address"),
        (("group", "add", "x", "--route", "default", "::/0"), "route: 'default'"),
        (("group", "add", "x", "--service", "127.1:80"), "no rule for services"),
        (("group", "add", "x", "--service", *["*"] * 101), "too many"),
        (("group", "remove", "everyone"), "what new devices join"),
        (("group", "join", "everyone", "nobody"), "no device is named nobody"),
    ],
)
def test_what_cannot_be_meant_is_one_line(shell: Shell, words: tuple[str, ...], said: str) -> None:
    assert said in shell.refused(*words)


def test_groups_are_made_changed_and_listed(shell: Shell) -> None:
    routes = ("--route", "10.0.0.0/8", "--destination", "10.1.0.0/16", "10.2.0.0/16")
    shell("group", "add", "staff", *routes, "--dns", "10.1.0.53", "--max-sessions", "9")
    everyone, staff = shell.json("group", "list")
    assert everyone == {
        "group": "everyone",
        "devices": 0,
        "routes": None,
        "destinations": None,
        "dns": None,
        "services": None,
        "max_sessions": None,
    }
    assert staff["destinations"] == ["10.1.0.0/16", "10.2.0.0/16"]
    shell("group", "set", "staff", "--destination", "default", "--max-sessions", "none")
    shell("group", "set", "staff", "--dns", "none", "--service", "tcp/Git.Example:22", "*:443")
    (_, staff) = shell.json("group", "list")
    assert (staff["routes"], staff["destinations"], staff["dns"], staff["max_sessions"]) == (
        ["10.0.0.0/8"],
        None,
        [],
        None,
    )
    assert staff["services"] == ["tcp/git.example:22", "*:443"]
    assert [line.split() for line in shell("group", "list").splitlines()[1:]] == [
        ["everyone", "0", "default", "as", "routes", "default", "as", "destinations", "-"],
        ["staff", "0", "10.0.0.0/8", "as", "routes", "none", "tcp/git.example:22", "*:443", "-"],
    ]
    shell("group", "remove", "staff")
    assert [group["group"] for group in shell.json("group", "list")] == ["everyone"]


def test_devices_join_and_leave_and_get_other_names(shell: Shell) -> None:
    shell("group", "add", "staff")
    shell("token", "alice", "--group", "staff")
    shell("token", "bob")
    shell("group", "join", "staff", "bob")
    shell("group", "leave", "everyone", "bob")
    shell("rename", "bob", "carl")
    listed = {device["name"]: device["groups"] for device in shell.json("list")}
    assert listed == {"alice": ["staff"], "carl": ["staff"]}


def test_the_audit_says_who_did_what(shell: Shell) -> None:
    assert shell("audit") == "no administrative acts yet\n"
    shell("token", "alice")
    shell("revoke", "alice")
    entries = shell.json("audit")
    assert [(entry["actor"], entry["action"], entry["subject"]) for entry in entries] == [
        ("cli", "token", "alice"),
        ("cli", "revoke", "alice"),
    ]
    assert shell("audit").splitlines()[1].split()[1:] == [
        "cli", "token", "alice", "groups", "everyone",
    ]  # fmt: skip


def test_a_registry_on_postgresql(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], empty_postgres: str
) -> None:
    shell = Shell(StateDir(tmp_path / "state"), capsys)
    shell("init", "--host", "gw.example", "--registry", empty_postgres)
    shell("token", "alice")
    assert not shell.state.registry.exists()
    other = Shell(StateDir(tmp_path / "other"), capsys)
    other("init", "--host", "gw2.example", "--registry", empty_postgres)
    assert [device["name"] for device in other.json("list")] == ["alice"], "the same registry"


def test_init_with_a_registry_that_does_not_answer_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = tmp_path / "state"
    url = f"postgresql+psycopg://me:geheim@/db?host={tmp_path}"
    assert cli.main(["init", "--state", str(state), "--host", "gw", "--registry", url]) == 1
    _, errors = capsys.readouterr()
    assert errors.count("\n") == 1
    assert "check that PostgreSQL runs" in errors
    assert "geheim" not in errors
    assert not state.exists()


@pytest.mark.parametrize(
    ("text", "seconds"), [("1m", 60), ("90m", 5400), ("24h", 86400), ("7d", 604800)]
)
def test_durations(text: str, seconds: int) -> None:
    assert parse_duration(text) == seconds
