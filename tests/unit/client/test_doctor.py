"""What the doctor says of each thing that can be wrong, and that its report names nobody."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qvpn_core.client import cli, doctor_facts, profiles, report
from qvpn_core.client.doctor import CHECKS, NEEDED_PAYLOAD, Facts, Finding, Way, examine
from qvpn_core.client.report import Redactor
from qvpn_core.client.states import State
from qvpn_core.client.status import Status
from qvpn_core.errors import UsageError

NOW = datetime(2026, 11, 23, 9, 41, tzinfo=UTC)
WELL = Facts(
    NOW,
    gateway="vpn.example.org",
    gateway_addresses=("203.0.113.9",),
    answered=NEEDED_PAYLOAD,
    synchronised=True,
    tray=True,
)
UP = Status(
    state=State.CONNECTED,
    transport="quic",
    mode="all",
    addresses=("10.86.0.7/32", "fd86::7/128"),
    routes=("0.0.0.0/0", "::/0"),
    mtu=1393,
)
THROUGH = (Way(4, "10.86.0.7"), Way(6, "fd86::7"))


def finding(facts: Facts, check: str) -> Finding:
    return next(it for it in examine(facts) if it.check == check)


def test_on_a_sound_machine_nothing_is_wrong() -> None:
    verdicts = {it.check: it.verdict for it in examine(WELL)}
    assert list(verdicts) == list(CHECKS)
    assert set(verdicts.values()) == {"good", "unknown"}
    assert verdicts["leak"] == "unknown"
    up = {it.verdict for it in examine(replace(WELL, status=UP, ways=THROUGH))}
    assert up == {"good"}


@pytest.mark.parametrize(
    ("check", "changes", "verdict", "words"),
    [
        ("helper", {"helper": "the helper is not installed"}, "bad", "not installed"),
        ("helper", {"helper": "the helper is not installed", "root": True}, "good", "root"),
        ("polkit", {"polkit_action": False}, "bad", "does not know"),
        ("polkit", {"polkit_running": None}, "warning", "cannot be asked"),
        ("polkit", {"polkit_running": False}, "warning", "does not run"),
        ("tun", {"tun": False}, "bad", "modprobe tun"),
        ("clock", {"newest_file": NOW + timedelta(days=1)}, "bad", "set the clock"),
        ("clock", {"synchronised": False}, "warning", "network time"),
        ("leftovers", {"leftovers": ("the device qvpn0",)}, "bad", "qvpn unlock"),
        ("kill-switch", {"kill_switch": "always"}, "warning", "qvpn unlock"),
        ("kill-switch", {"kill_switch": "on", "status": UP}, "good", "beside the tunnel"),
        ("dns", {"resolver_error": "resolved does not run"}, "warning", "does not run"),
        ("dns", {"gateway_addresses": ()}, "bad", "has no address"),
        ("udp", {"answered": 0}, "bad", "--transport tls"),
        ("udp", {"answered": None}, "unknown", "no address to ask"),
        ("mtu", {"answered": 1200}, "warning", "another network"),
        ("mtu", {"answered": 0}, "unknown", "did not answer"),
        ("mtu", {"status": msgspec.structs.replace(UP, mtu=1200)}, "warning", "1280"),
        ("leak", {"status": UP, "ways": (THROUGH[0], Way(6, "2001:db8::5"))}, "bad", "IPv6 goes"),
        ("leak", {"status": UP, "ways": (THROUGH[0], Way(6, None))}, "good", "uses it"),
        (
            "leak",
            {
                "status": msgspec.structs.replace(UP, routes=("0.0.0.0/0",)),
                "ways": (THROUGH[0], Way(6, "2001:db8::5")),
            },
            "bad",
            "IPv6 goes beside",
        ),
        (
            "leak",
            {
                "status": msgspec.structs.replace(UP, mode="only", routes=("10.0.0.0/8",)),
                "ways": (Way(4, "192.168.1.5"),),
            },
            "good",
            "not meant for everything",
        ),
        ("tray", {"tray": False}, "warning", "AppIndicator"),
        ("tray", {"tray": None}, "unknown", "no desktop"),
    ],
)
def test_each_thing_that_is_wrong_is_told_with_a_remedy(
    check: str, changes: dict[str, Any], verdict: str, words: str
) -> None:
    found = finding(replace(WELL, **changes), check)
    assert found.verdict == verdict
    assert words in f"{found.words}: {found.remedy}"
    assert not f"{found.words}{found.remedy}".endswith(".")


@pytest.fixture
def server() -> Iterator[socket.socket]:
    """A QUIC server that has room for datagrams of up to 1250 bytes."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.settimeout(30)

        def serve() -> None:
            while True:
                try:
                    data, peer = sock.recvfrom(2048)
                except OSError:
                    return
                if data == b"end":
                    return
                if len(data) <= 1250:
                    theirs, mine = data[6:14], data[15:23]
                    sock.sendto(b"\x80\0\0\0\0\x08" + mine + b"\x08" + theirs + b"\0\0\0\1", peer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield sock
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
            other.sendto(b"end", sock.getsockname())
        thread.join()


def test_a_gateway_is_asked_without_a_handshake(
    server: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = server.getsockname()[1]
    assert doctor_facts.answers("127.0.0.1", port, 1200)
    monkeypatch.setattr(doctor_facts, "_PATIENCE", 0.2)
    assert not doctor_facts.answers("127.0.0.1", port, 1330)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as closed:
        closed.bind(("127.0.0.1", 0))
        free = closed.getsockname()[1]
    assert not doctor_facts.answers("127.0.0.1", free, 1200)


@pytest.fixture
def directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("CONFIG", "STATE", "RUNTIME"):
        monkeypatch.setenv(f"QVPN_{name}_DIR", str(tmp_path / name.lower()))
    return tmp_path


def test_this_machine_can_be_looked_at_and_the_report_shows_what_is_written(
    directories: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    profile = profiles.make_profile("office", "localhost:9", "dGhpcyBpcyBhIHNlY3JldA")
    profiles.save(profile)
    (directories / "state").mkdir()
    (directories / "state" / "app.log").write_text("INFO: office at localhost is 203.0.113.77\n")
    file = directories / "report.txt"
    status = cli.main(["doctor", "office", "--json", "--report", str(file)])
    out = capsys.readouterr().out
    found = msgspec.json.decode(out, type=list[Finding])
    assert [it.check for it in found] == list(CHECKS)
    assert status == int(any(it.verdict == "bad" for it in found))
    text = file.read_text()
    assert os.stat(file).st_mode & 0o777 == 0o600
    for part in ("== versions ==", "== doctor ==", "== status ==", "== app.log =="):
        assert part in text
    for secret in ("office", "localhost", "203.0.113.77", "dGhpcyBpcyBhIHNlY3JldA"):
        assert secret not in text
    assert cli.main(["doctor", "office"]) == status
    assert "clock" in capsys.readouterr().out


def test_a_report_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be written"):
        report.write(tmp_path / "no" / "report.txt", {"a": "b"})


def test_the_same_name_has_the_same_pseudonym_and_others_another() -> None:
    redactor = Redactor({"alice": "user", "vpn.example.org": "gateway"})
    text = redactor.redact(
        "Alice: vpn.example.org:443 10.86.0.7 10.86.0.8 alice [2001:DB8::1]:443 2001:db8:0::1 "
        "git.corp.example VPN.example.org 10.86.0.7/32 qvpn://secret/x?y sha256/AbC+/= "
    )
    assert text == (
        "<user-1>: <gateway-1>:443 <private-ipv4-1> <private-ipv4-2> <user-1> "
        "[<private-ipv6-1>]:443 <private-ipv6-1> <host-1> <gateway-1> <private-ipv4-1>/32 "
        "<secret-1> <secret-2> "
    )


@pytest.mark.parametrize(
    "harmless",
    [
        "2026-11-23 09:41:00,123 INFO qvpn.session: connected",
        "0.0.0.0/0 ::/0 127.0.0.1 [::1]",
        "qvpn_core.client.tunnel line 7 in tunnel.py",
        "org.freedesktop.PolicyKit1 io.github.qvpn.unlock",
        "Linux 6.18.0 x86_64, Python 3.11.7, 1,284,000,000 bytes",
    ],
)
def test_what_names_nobody_stays(harmless: str) -> None:
    assert Redactor().redact(harmless) == harmless


@given(st.lists(st.ip_addresses(), max_size=5), st.text(max_size=40))
def test_no_address_survives_and_redacting_again_changes_nothing(
    addresses: list[Any], text: str
) -> None:
    redactor = Redactor()
    once = redactor.redact(" ".join([*map(str, addresses), text]))
    for address in addresses:
        if len(str(address)) > 6 and str(address) not in ("0.0.0.0", "127.0.0.1"):
            assert f" {address} " not in f" {once} "
    assert redactor.redact(once) == once
