"""The words of `qvpn proxy` and `qvpn forward`."""

from __future__ import annotations

import pytest

from qvpn_core.client import cli
from qvpn_core.client.proxy.options import parse_forward
from qvpn_core.errors import UsageError


@pytest.mark.parametrize(
    ("text", "listen", "target"),
    [
        ("2222:host.example:22", ("127.0.0.1", 2222), "host.example:22"),
        ("127.0.0.2:2222:192.0.2.1:22", ("127.0.0.2", 2222), "192.0.2.1:22"),
        ("[::1]:2222:[2001:db8::1]:22", ("::1", 2222), "[2001:db8::1]:22"),
        ("0:[2001:db8::1]:22", ("127.0.0.1", 0), "[2001:db8::1]:22"),
    ],
)
def test_a_forward(text: str, listen: tuple[str, int], target: str) -> None:
    found = parse_forward(text)
    assert (found.listen, str(found.target)) == (listen, target)


@pytest.mark.parametrize(
    "text",
    [
        "2222",
        "2222:host",
        "2222:host:0",
        "2222:host:65536",
        "65536:host:22",
        "localhost:2222:host:22",
        "::1:2222:host:22",
        "2222:2001:db8::1:22",
        "2222:127.1:22",
        "2222::22",
        "a:b:c:d:e",
    ],
)
def test_what_is_no_forward(text: str) -> None:
    with pytest.raises(UsageError):
        parse_forward(text)


@pytest.mark.parametrize("address", ["0.0.0.0", "[::]", "192.0.2.1"])
def test_other_machines_are_let_in_only_when_asked_for(address: str) -> None:
    with pytest.raises(UsageError, match="--share"):
        parse_forward(f"{address}:2222:host.example:22")
    found = parse_forward(f"{address}:2222:host.example:22", share=True)
    assert found.listen == (address.strip("[]"), 2222)


@pytest.mark.parametrize(
    "words",
    [
        ["proxy", "home", "--socks", "0.0.0.0:1080"],
        ["proxy", "home", "--http", "[::]:3128"],
        ["proxy", "home", "--socks", "localhost:1080"],
        ["proxy", "home", "--socks", "1080"],
        ["proxy", "no-such-profile"],
        ["forward", "home"],
        ["forward", "home", "nonsense"],
    ],
)
def test_what_cannot_be_meant_is_one_line_and_status_2(
    words: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: object,
) -> None:
    monkeypatch.setenv("QVPN_CONFIG_DIR", str(tmp_path))
    assert cli.main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("qvpn: ")
    assert err.count("\n") == 1
