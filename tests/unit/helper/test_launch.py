"""Each way in which pkexec says no has words of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from qvpn_core.errors import QvpnError
from qvpn_core.helper.errors import (
    AgentMissing,
    AuthorizationDenied,
    HelperFailed,
    PolkitMissing,
)
from qvpn_core.helper.launch import _environment, helpers, refusal

PREFIX = "Error executing command as another user: "


@pytest.mark.parametrize(
    ("status", "words", "expected"),
    [
        (126, PREFIX + "Request dismissed", AuthorizationDenied),
        (127, PREFIX + "Not authorized\n\nThis incident has been reported.", AuthorizationDenied),
        (127, PREFIX + "No authentication agent found.", AgentMissing),
        (
            127,
            "Error creating textual authentication agent: Error opening /dev/tty: No such device",
            AgentMissing,
        ),
        (127, "Error getting authority: Error initializing authority: no bus", PolkitMissing),
        (127, "Error checking for authorization io.github.qvpn.session: gone", PolkitMissing),
        (127, "Error executing /usr/lib/qvpn/qvpn-helper: No such file", HelperFailed),
        (1, "qvpn-helper: something\n", HelperFailed),
        (-9, "", HelperFailed),
    ],
)
def test_a_refusal_in_words(status: int, words: str, expected: type[QvpnError]) -> None:
    error = refusal(status, words)
    assert type(error) is expected
    assert "\n" not in str(error)
    assert error.hint
    assert not error.transient, "trying again by itself would ask the user again"


def test_pkexec_is_not_told_of_a_shell_that_it_may_not_know() -> None:
    assert _environment({"SHELL": "/opt/fish", "LANG": "de"}) == {"LANG": "de"}


@pytest.mark.parametrize(
    ("code", "first"),
    [
        ("/usr/lib/qvpn/lib/python3.11/qvpn_core/helper/launch.py", "/usr/lib/qvpn/qvpn-helper"),
        ("/home/ada/venv/lib/qvpn_core/helper/launch.py", "/usr/local/lib/qvpn/qvpn-helper"),
    ],
)
def test_a_package_starts_its_own_helper_and_a_wheel_the_one_installed_for_it(
    code: str, first: str
) -> None:
    assert str(helpers(Path(code))[0]) == first
    assert len(helpers(Path(code))) == 2
