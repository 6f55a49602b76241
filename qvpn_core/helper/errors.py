"""What can go wrong between a client and its helper, in words for a person."""

from __future__ import annotations

from qvpn_core.errors import QvpnError


class HelperMissing(QvpnError):
    """The helper is not installed where pkexec may start it."""

    reason = "helper-missing"


class PolkitMissing(QvpnError):
    """There is no pkexec, or polkit does not answer."""

    reason = "polkit-missing"


class AgentMissing(QvpnError):
    """Nobody can ask the user: no polkit agent, and no terminal."""

    reason = "polkit-agent-missing"


class AuthorizationDenied(QvpnError):
    """The user or polkit's rules said no."""

    reason = "not-authorized"


class HelperFailed(QvpnError):
    """The helper did not start although it was allowed to."""

    reason = "helper-failed"


class HelperVersion(QvpnError):
    """The client and the installed helper are of different versions."""

    reason = "helper-version"


class HelperLost(QvpnError):
    """The helper died under a session. The next one cleans up."""

    reason = "helper-lost"
    transient = True


class HelperEnded(QvpnError):
    """Somebody who may ended the session by its helper, which has undone everything."""

    reason = "helper-ended"


class NetworkTaken(QvpnError):
    """Another session has this machine's network."""

    reason = "network-taken"


class NotAllowed(QvpnError):
    """A well-formed request for what no session may have."""

    reason = "not-allowed"
