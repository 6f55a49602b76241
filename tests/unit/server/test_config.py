"""The configuration: what is accepted, what is refused and in which words."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qvpn_core.errors import UsageError
from qvpn_server.config import dump_config, load_config, parse_listen, random_ula
from tests.unit.server.helpers import gateway_config


def test_what_was_written_is_what_is_read(tmp_path: Path) -> None:
    config = gateway_config(
        host="2001:db8::1",
        listen=["[::]:8443", "192.0.2.1:443"],
        pool6="none",
        dns=["10.86.0.1"],
        routes=["192.0.2.0/24", "10.86.0.0/15"],
        isolation=False,
        certificate=tmp_path / 'a "strange\\" näme\n.pem',
        private_key=tmp_path / "key.pem",
    )
    (tmp_path / "gateway.toml").write_text(dump_config(config))
    assert load_config(tmp_path / "gateway.toml") == config


@given(st.text(max_size=30).filter(lambda text: "/" not in text and "\x7f" not in text))
def test_every_file_name_survives(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    directory = tmp_path_factory.mktemp("config")
    config = gateway_config(certificate=directory / ("x" + name), private_key=directory / "k")
    (directory / "gateway.toml").write_text(dump_config(config))
    assert load_config(directory / "gateway.toml").certificate == config.certificate


def test_relative_files_belong_to_the_state_directory(tmp_path: Path) -> None:
    (tmp_path / "gateway.toml").write_text(dump_config(gateway_config()))
    assert load_config(tmp_path / "gateway.toml").certificate == tmp_path / "certificate.pem"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"pool4": "10.86.0.0/31"}, "too small"),
        ({"pool6": "fd00::/127"}, "too small"),
        ({"pool4": "10.86.0.1/16"}, "host bits"),
        ({"pool4": "ten"}, "pool4"),
        ({"pool4": "fd00::/64"}, "not an IPv4 prefix"),
        ({"pool6": "10.0.0.0/8"}, "not an IPv6 prefix"),
        ({"pool4": "127.0.0.0/16"}, "cannot be routed"),
        ({"pool4": "0.0.0.0/0"}, "cannot be routed"),
        ({"pool6": "fe80::/64"}, "cannot be routed"),
        ({"pool4": "none", "pool6": "none"}, "both pools"),
        ({"dns": ["nine"]}, "DNS server"),
        ({"dns": ["2001:db8::53"], "pool6": "none"}, "without an IPv6 pool"),
        (
            {"dns": ["9.9.9.9"], "routes": ["192.0.2.0/24"]},
            r"outside the advertised.*9\.9\.9\.9/32",
        ),
        ({"dns": ["10.86.0.2"]}, "an address that devices are given"),
        ({"routes": ["10.86.4.0/24"]}, "inside the pool"),
        ({"routes": []}, "no route"),
        ({"routes": ["192.0.2.1/24"]}, "host bits"),
        ({"listen": []}, "nothing to listen on"),
        ({"listen": ["here:443"]}, "cannot listen on 'here:443'"),
        ({"listen": ["0.0.0.0:65536"]}, "cannot listen"),
        ({"host": "gw.example:443"}, "without a port"),
        ({"host": ""}, "host name"),
        ({"host": "-x.example"}, "host name"),
        ({"max_sessions": 0}, "max_sessions"),
    ],
)
def test_what_cannot_be_meant_is_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        gateway_config(**changes)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("0.0.0.0:443", ("0.0.0.0", 443)),
        ("192.0.2.1", ("192.0.2.1", 443)),
        ("[::]:8443", ("::", 8443)),
        ("[2001:DB8::1]", ("2001:db8::1", 443)),
        ("::", ("::", 443)),
        ("127.0.0.1:0", ("127.0.0.1", 0)),
    ],
)
def test_listen_addresses(text: str, address: tuple[str, int]) -> None:
    assert parse_listen(text) == address


@pytest.mark.parametrize("text", ["", ":443", "[::", "[::]x:1", "1.2.3.4:", "1.2.3.4:+1", "a:b:c"])
def test_what_is_no_listen_address(text: str) -> None:
    with pytest.raises(UsageError):
        parse_listen(text)


def test_advertised_routes_lead_to_the_gateway_and_only_where_a_family_has_a_pool() -> None:
    config = gateway_config(pool6="none", routes=["192.0.2.0/24", "::/0"])
    assert [str(route) for route in config.advertised] == ["192.0.2.0/24", "10.86.0.1/32"]


def test_devices_that_may_meet_are_told_of_the_pools() -> None:
    config = gateway_config(isolation=False, routes=["192.0.2.0/24"])
    assert [str(route) for route in config.advertised] == [
        "192.0.2.0/24",
        "10.86.0.0/16",
        "fd00:86::/64",
    ]


def test_the_endpoint_brackets_an_ipv6_address() -> None:
    assert gateway_config(host="2001:db8::1", listen=["[::]:8443"]).endpoint == "[2001:db8::1]:8443"


def test_random_ulas_differ_and_are_usable() -> None:
    first, second = random_ula(), random_ula()
    assert first != second
    assert first.startswith("fd")
    assert str(gateway_config(pool6=first).pools[1].network) == first


def test_a_directory_without_a_gateway(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no gateway: run: qvpn-server init"):
        load_config(tmp_path / "gateway.toml")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("host = ", "not valid"),
        ('host = "gw"\ncertificate = "c"\nprivate_key = "k"\nprot = 1', "prot"),
        ('host = "gw"\ncertificate = "c"', "private_key"),
        ('host = 7\ncertificate = "c"\nprivate_key = "k"', "host"),
        ('host = "gw"\npool4 = "10.0.0.0/31"\ncertificate = "c"\nprivate_key = "k"', "toml: pool4"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "gateway.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=words) as caught:
        load_config(path)
    assert str(path) in str(caught.value)
