"""Profiles: what is stored comes back, secrets stay secret, and damage is told in one line."""

from __future__ import annotations

import base64
import dataclasses
import os
import stat
import tempfile
from ipaddress import ip_network
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qvpn_core.auth.device_key import DeviceKey
from qvpn_core.client import keys, profiles
from qvpn_core.client.planner import RoutePolicy
from qvpn_core.client.profiles import Profile, make_profile
from qvpn_core.errors import PermissionMissing, QvpnError, UsageError

TOKEN = "s3cret-Token_.~+/=="
PIN = "sha256/" + base64.b64encode(bytes(range(32))).decode()


@pytest.fixture(autouse=True)
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("QVPN_CONFIG_DIR", str(tmp_path / "config"))
    return tmp_path / "config" / "profiles"


def home(**changes: object) -> Profile:
    profile = make_profile("home", "vpn.example.org:4433", TOKEN, pins=[PIN])
    return dataclasses.replace(profile, **changes)  # type: ignore[arg-type]


def test_a_stored_profile_comes_back_equal() -> None:
    policy = RoutePolicy(
        "only",
        (ip_network("192.0.2.0/24"), ip_network("2001:db8::/32")),
        (ip_network("192.0.2.7/32"),),
    )
    profile = home(policy=policy, transport="quic")
    profiles.save(profile)
    assert profiles.load("home") == profile


def test_a_profile_keeps_its_kill_switch_and_that_the_lan_is_excluded(config: Path) -> None:
    policy = profiles.route_policy("all", excluded=["lan", "192.0.2.0/24"])
    assert policy == RoutePolicy("all-except", (), (ip_network("192.0.2.0/24"),), lan=True)
    profile = home(policy=policy, kill_switch="always")
    profiles.save(profile)
    assert profiles.load("home") == profile
    assert 'excluded = ["lan","192.0.2.0/24"]' in (config / "home.toml").read_text()


def test_a_profile_can_leave_name_servers_alone(config: Path) -> None:
    profile = home(dns=False)
    profiles.save(profile)
    assert profiles.load("home") == profile
    assert "[dns]\nuse = false\n" in (config / "home.toml").read_text()


def test_the_lan_can_be_excluded_and_nothing_else() -> None:
    with pytest.raises(UsageError, match="only --except knows it"):
        profiles.route_policy("only", ["lan"])


@pytest.mark.parametrize("line", ['kill_switch = "sometimes"', "kill_switch = true"])
def test_a_kill_switch_that_does_not_exist_damages_the_profile(config: Path, line: str) -> None:
    profiles.save(home())
    with (config / "home.toml").open("a") as file:
        file.write(f"[routes]\n{line}\n")
    with pytest.raises(UsageError, match="damaged"):
        profiles.load("home")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(
    ca_file=st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=30).map(
        lambda text: "/ca/" + text
    ),
    port=st.integers(1, 65535),
)
def test_any_file_name_and_port_survive_the_file(ca_file: str, port: int) -> None:
    profile = make_profile("home", f"[2001:db8::1]:{port}", TOKEN, ca_file=ca_file)
    profiles.save(profile, replace=True)
    assert profiles.load("home") == profile


def test_the_file_is_for_its_owner_only_and_nothing_else_lies_beside_it(config: Path) -> None:
    profiles.save(home())
    assert stat.S_IMODE((config / "home.toml").stat().st_mode) == 0o600
    assert stat.S_IMODE(config.stat().st_mode) == 0o700
    assert os.listdir(config) == ["home.toml"]


def test_the_token_is_in_no_representation() -> None:
    assert TOKEN not in repr(home())


def test_an_existing_profile_is_not_overwritten_by_accident() -> None:
    profiles.save(home())
    with pytest.raises(UsageError, match="exists"):
        profiles.save(home(port=1))
    assert profiles.load("home").port == 4433


def test_profiles_are_listed_and_removed() -> None:
    assert profiles.names() == []
    for name in ("work", "home"):
        profiles.save(home(name=name))
    assert profiles.names() == ["home", "work"]
    profiles.remove("home")
    assert profiles.names() == ["work"]


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../x", "a/b", ".hidden", "-flag", "a b", "a\n", "x" * 64, "ä", "a\0b"]
)
def test_a_name_that_could_trick_a_path_is_refused(name: str) -> None:
    for use in (profiles.load, profiles.remove, profiles.check_name):
        with pytest.raises(UsageError, match="cannot name a profile"):
            use(name)


def test_an_unknown_profile_says_where_it_was_sought_and_which_exist(config: Path) -> None:
    with pytest.raises(UsageError, match=rf"no profile 'home' in {config}: add one"):
        profiles.load("home")
    profiles.save(home(name="work"))
    with pytest.raises(UsageError, match="there is work"):
        profiles.load("home")


DAMAGED = {
    "not TOML": "[gateway",
    "no gateway": "[credential]\ntoken = 't'",
    "a key nobody knows": "[gateway]\nhost='h'\nprot=1\n[credential]\ntoken='t'",
    "a port of the wrong type": "[gateway]\nhost='h'\nport='x'\n[credential]\ntoken='t'",
    "a port out of range": "[gateway]\nhost='h'\nport=70000\n[credential]\ntoken='t'",
    "an empty host": "[gateway]\nhost=''\n[credential]\ntoken='t'",
    "a token with a line break": "[gateway]\nhost='h'\n[credential]\ntoken=\"t\\nx: y\"",
    "a short pin": "[gateway]\nhost='h'\n[credential]\ntoken='t'\n[trust]\npins=['sha256/AAAA']",
    "a route with host bits": "[gateway]\nhost='h'\n[credential]\ntoken='t'\n"
    "[routes]\nmode='only'\ndestinations=['192.0.2.1/24']",
    "only, but no destination": "[gateway]\nhost='h'\n[credential]\ntoken='t'\n"
    "[routes]\nmode='only'",
    "a template of no kind": "[gateway]\nhost='h'\ntemplate='{'\n[credential]\ntoken='t'",
    "too large": "#" * (1 << 17),
}


@pytest.mark.parametrize("text", DAMAGED.values(), ids=DAMAGED.keys())
def test_a_damaged_profile_is_told_with_its_path_in_one_line(config: Path, text: str) -> None:
    config.mkdir(parents=True)
    (config / "home.toml").write_text(text)
    with pytest.raises(UsageError, match=r"profile 'home' is damaged: .*home\.toml") as caught:
        profiles.load("home")
    assert "\n" not in str(caught.value)


def test_binary_rubbish_is_a_damaged_profile(config: Path) -> None:
    config.mkdir(parents=True)
    (config / "home.toml").write_bytes(b"\xff\xfe\0")
    with pytest.raises(UsageError, match="damaged"):
        profiles.load("home")


def test_a_full_or_broken_disk_leaves_the_old_profile_whole(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    profiles.save(home())

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(QvpnError, match="No space left"):
        profiles.save(home(port=1), replace=True)
    assert profiles.load("home").port == 4433
    assert os.listdir(config) == ["home.toml"]


@pytest.mark.skipif(os.geteuid() != 0, reason="root is needed to become somebody else")
def test_a_profile_of_another_user_is_a_matter_of_rights(monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory() as open_to_all:  # pytest's own directories are private
        monkeypatch.setenv("QVPN_CONFIG_DIR", open_to_all)
        os.chmod(open_to_all, 0o755)
        profiles.save(home()).parent.chmod(0o755)
        os.seteuid(65534)
        try:
            with pytest.raises(PermissionMissing, match="belongs to another user"):
                profiles.load("home")
        finally:
            os.seteuid(0)


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("vpn.example.org", "vpn.example.org", 443),
        ("vpn.example.org:8443", "vpn.example.org", 8443),
        ("192.0.2.1", "192.0.2.1", 443),
        ("192.0.2.1:1", "192.0.2.1", 1),
        ("2001:db8::1", "2001:db8::1", 443),
        ("[2001:db8::1]", "2001:db8::1", 443),
        ("[2001:db8::1]:8443", "2001:db8::1", 8443),
    ],
)
def test_gateways_as_people_write_them(text: str, host: str, port: int) -> None:
    assert profiles.parse_gateway(text) == (host, port)


@pytest.mark.parametrize(
    "text",
    ["", ":443", "host:", "host:x", "host:70000", "u@host", "https://host", "host/path", "a b"],
)
def test_what_is_no_gateway_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        make_profile("home", text, TOKEN)


@pytest.mark.parametrize("token", ["", "a b", "a\r\nx: y", "ä", "=", "a=b"])
def test_a_token_that_would_break_a_header_is_refused(token: str) -> None:
    with pytest.raises(UsageError, match="token") as caught:
        make_profile("home", "host", token)
    assert token == "" or token not in str(caught.value)


def test_host_bits_in_a_prefix_come_with_a_suggestion() -> None:
    with pytest.raises(UsageError, match=r"did you mean 192\.0\.2\.0/24"):
        profiles.parse_networks(["192.0.2.1/24"])


def test_the_request_names_the_gateway_unless_the_template_is_absolute() -> None:
    assert home().resource == ("vpn.example.org:4433", "/.well-known/masque/ip/*/*/")
    assert make_profile("x", "host", TOKEN).resource[0] == "host"
    absolute = make_profile("x", "host", TOKEN, template="https://proxy.example:443/ip")
    assert absolute.resource == ("proxy.example:443", "/ip")


def test_the_kill_switch_is_kept() -> None:
    profiles.save(home(kill_switch="always"))
    assert profiles.load("home").kill_switch == "always"


def test_a_profile_moves_to_another_name_with_its_key(config: Path) -> None:
    key = DeviceKey.generate()
    place = keys.store("home", key)
    profiles.save(home(token=None, key=place, device="laptop"))
    moved = profiles.rename("home", "work")
    assert profiles.names() == ["work"]
    assert profiles.load("work") == moved
    assert keys.load("work", place).to_pem() == key.to_pem()
    assert sorted(file.name for file in config.iterdir()) == ["work.key", "work.toml"]


def test_a_profile_does_not_move_over_another_one(config: Path) -> None:
    profiles.save(home())
    profiles.save(home(name="work"))
    with pytest.raises(UsageError, match="exists"):
        profiles.rename("home", "work")
    with pytest.raises(UsageError, match="cannot name a profile"):
        profiles.rename("home", "../work")
    assert profiles.names() == ["home", "work"]


def test_an_exported_profile_has_no_secret() -> None:
    text = profiles.exported(home())
    assert "vpn.example.org" in text
    assert PIN in text
    assert TOKEN not in text
    assert "credential" not in text
