"""Every failure that a user sees: what happened, and what to do next, in one line.

Code below the command line raises these; only the command line prints them. An error that is not a
:class:`QvpnError` is a defect and may show a traceback.
"""

from __future__ import annotations

from typing import ClassVar


class QvpnError(Exception):
    """A failure with words for a person.

    `reason` is a stable slug for programs (``status --json``, tests, the app); `what` says what
    happened and `hint` what to do about it, neither with a trailing full stop.
    """

    reason: ClassVar[str] = "error"
    #: Whether trying again without a change by the user can help.
    transient: ClassVar[bool] = False

    def __init__(self, what: str, hint: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.what}: {self.hint}" if self.hint else self.what


class UsageError(QvpnError):
    """A command line, a file or a value that cannot be meant."""

    reason = "usage"


class PermissionMissing(QvpnError):
    """Not root, or without CAP_NET_ADMIN."""

    reason = "permission"


class TunUnavailable(QvpnError):
    """/dev/net/tun is missing or refuses us."""

    reason = "tun-unavailable"


class PortInUse(QvpnError):
    """The address to listen on is taken."""

    reason = "port-in-use"


class NetworkSetupFailed(QvpnError):
    """The kernel, nft or a sysctl refused what we asked for."""

    reason = "network-setup"


class DnsSetupFailed(QvpnError):
    """The machine's resolver cannot be told to use the tunnel's name servers, or to forget them."""

    reason = "dns-setup"


class NameNotResolved(QvpnError):
    """The gateway's host name has no address."""

    reason = "name-not-resolved"
    transient = True


class GatewayUnreachable(QvpnError):
    """No answer from the gateway within the time allowed, or ICMP says no."""

    reason = "unreachable"
    transient = True


class NoNetwork(QvpnError):
    """This machine has no way to the gateway at all: no link, no address or no route."""

    reason = "no-network"
    transient = True


class CaptivePortal(QvpnError):
    """The network answers in the place of others until somebody signs in (RFC 8952)."""

    reason = "captive-portal"
    transient = True

    def __init__(self, what: str, hint: str = "", *, url: str = "") -> None:
        super().__init__(what, hint)
        #: What to open in a browser.
        self.url = url


class CertificateUntrusted(QvpnError):
    """The gateway's certificate is not the one we trust, or not valid now."""

    reason = "certificate"


class AuthenticationFailed(QvpnError):
    """The gateway does not accept this device's credential."""

    reason = "authentication"


class GatewayRefused(QvpnError):
    """The gateway answered, but not with a tunnel (full pool, session limit, not a gateway)."""

    reason = "refused"
    transient = True


class PathTooNarrow(QvpnError):
    """The path cannot carry the 1280 bytes that IPv6 needs (RFC 8200 section 5)."""

    reason = "path-mtu"


class TunnelLost(QvpnError):
    """An established tunnel ended without our asking."""

    reason = "tunnel-lost"
    transient = True


class ProtocolViolation(QvpnError):
    """The peer sent what its protocol forbids."""

    reason = "protocol"
