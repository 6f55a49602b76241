"""``qvpn sign-in``: lets a browser out to a captive portal, for a limited time.

The command only; what is let out, and by whom, is the owner's of `Tunnel`, who holds the network.
"""

from __future__ import annotations

import argparse
from typing import Any, Final

from qvpn_core.client import control
from qvpn_core.errors import UsageError

#: Seconds for which a browser gets out, unless the user says otherwise; and at most.
DEFAULT_SECONDS: Final = 300
MAX_SECONDS: Final = 600


def add_parser(commands: Any) -> None:
    """Add the command to `argparse`'s subparsers."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "sign-in", help="let a browser out to sign in to this network", allow_abbrev=False
    )
    parser.set_defaults(run=_sign_in)
    parser.add_argument(
        "--seconds",
        type=int,
        default=DEFAULT_SECONDS,
        metavar="N",
        help=f"for how long, {DEFAULT_SECONDS} unless given",
    )


def _sign_in(arguments: argparse.Namespace) -> int:
    if not 1 <= arguments.seconds <= MAX_SECONDS:
        raise UsageError(f"--seconds must be 1 to {MAX_SECONDS}")
    reply = control.ask(control.SignInRequest(arguments.seconds))
    if not isinstance(reply, control.SignInReply):
        raise UsageError("nothing is up", "open any page in a browser to sign in")
    print(f"open {reply.url} in a browser within {arguments.seconds} seconds")
    print("the tunnel connects by itself when you have signed in")
    return 0
