"""`qvpn-server`: the gateway's command line.

Parses; what commands do is in `commands`. A failure is one line on stderr. Exit status: 0 done, 1
failed, 2 wrong usage, 3 `status` found no running gateway (as LSB init scripts say it).
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from qvpn_core.errors import QvpnError, UsageError
from qvpn_server import commands
from qvpn_server.config import DEFAULT_LISTEN, DEFAULT_POOL4, DEFAULT_ROUTES
from qvpn_server.statedir import StateDir


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(message, f"see {self.prog} --help")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit status."""
    try:
        options = _parser().parse_args(arguments)
        status: int = options.command(StateDir(options.state.absolute()), options)
        sys.stdout.flush()
    except QvpnError as error:
        print(f"qvpn-server: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    except BrokenPipeError:
        # Whoever read our output has enough. Python would complain once more at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130
    return status


def _parser() -> _Parser:
    parser = _Parser(prog="qvpn-server", description="The qvpn gateway.")
    verbs = parser.add_subparsers(required=True, metavar="COMMAND")

    def verb(name: str, words: str) -> argparse.ArgumentParser:
        added: argparse.ArgumentParser = verbs.add_parser(name, help=words, description=words)
        added.add_argument(
            "--state", type=Path, required=True, metavar="DIR", help="the gateway's state directory"
        )
        return added

    init = verb("init", "Create a gateway: its configuration, certificate and registry.")
    init.set_defaults(command=commands.init)
    init.add_argument("--host", required=True, help="the name or address that clients will use")
    init.add_argument(
        "--listen",
        action="append",
        metavar="ADDR:PORT",
        help=f"UDP address to listen on; may be repeated (default {' and '.join(DEFAULT_LISTEN)})",
    )
    init.add_argument(
        "--pool4",
        default=DEFAULT_POOL4,
        metavar="CIDR",
        help="IPv4 addresses for devices, or 'none' (default %(default)s)",
    )
    init.add_argument(
        "--pool6",
        metavar="CIDR",
        help="IPv6 addresses for devices, or 'none' (default: a random unique local /64)",
    )
    init.add_argument(
        "--dns",
        nargs="+",
        action="extend",
        default=[],
        metavar="ADDR",
        help="resolvers for devices",
    )
    init.add_argument(
        "--route",
        nargs="+",
        action="extend",
        metavar="CIDR",
        help=f"what devices may reach (default {' and '.join(DEFAULT_ROUTES)})",
    )
    init.add_argument(
        "--isolation",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="keep devices from reaching each other (default: yes)",
    )
    init.add_argument("--cert", type=Path, metavar="PEM", help="certificate chain to use")
    init.add_argument("--key", type=Path, metavar="PEM", help="its private key")

    run = verb("run", "Run the gateway in the foreground until SIGTERM or Ctrl-C.")
    run.set_defaults(command=commands.run)

    token = verb("token", "Create a device and print, once, how it connects.")
    token.set_defaults(command=commands.token)
    token.add_argument("name", metavar="NAME", help="a name for the device")

    listing = verb("list", "List the devices and their addresses.")
    listing.set_defaults(command=commands.list_devices)

    status = verb("status", "Show the running gateway and its sessions.")
    status.set_defaults(command=commands.status)

    revoke = verb("revoke", "Bar a device for good and cut its session.")
    revoke.set_defaults(command=commands.revoke)
    revoke.add_argument("name", metavar="NAME", help="the device")

    for parser_with_json in (token, listing, status, revoke):
        parser_with_json.add_argument("--json", action="store_true", help="print one JSON document")
    return parser


if __name__ == "__main__":
    sys.exit(main())
