"""`qvpn-server`: the gateway's command line.

Parses; what commands do is in `commands`. A failure is one line on stderr. Exit status: 0 done, 1
failed, 2 wrong usage, 3 `status` found no running gateway (as LSB init scripts say it).
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from qvpn_core.errors import QvpnError, UsageError
from qvpn_server import commands, group_commands, registry_commands
from qvpn_server.config import DEFAULT_LISTEN, DEFAULT_POOL4, DEFAULT_ROUTES, EVERYONE
from qvpn_server.statedir import StateDir

_Verbs = Any  # argparse keeps the class of subparsers private


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(message, f"see {self.prog} --help")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit status."""
    try:
        options = _parser().parse_args(arguments)
        state = StateDir(options.state.absolute())
        if options.command is not commands.run:
            state.act_as_owner()
        status: int = options.command(state, options)
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
        _add_state(added)
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
    init.add_argument(
        "--site",
        type=Path,
        metavar="DIR",
        help="the web site that strangers see (default: one page that is built in)",
    )
    init.add_argument("--cert", type=Path, metavar="PEM", help="certificate chain to use")
    init.add_argument("--key", type=Path, metavar="PEM", help="its private key")
    init.add_argument(
        "--registry",
        metavar="URL",
        help="a PostgreSQL database for several gateways (default: a file of this one's own)",
    )

    run = verb("run", "Run the gateway in the foreground until SIGTERM or Ctrl-C.")
    run.set_defaults(command=commands.run)

    reload = verb("reload", "Have a running gateway read its certificate and web site anew.")
    reload.set_defaults(command=commands.reload)
    rotate = verb("rotate", "Announce the key that will replace the gateway's, or switch to it.")
    rotate.set_defaults(command=commands.rotate)
    rotate.add_argument(
        "--switch",
        action="store_true",
        help="use the announced key now; devices that did not connect since must enrol again",
    )

    status = verb("status", "Show the running gateway and its sessions.")
    status.set_defaults(command=commands.status)
    status.add_argument("--json", action="store_true", help="print one JSON document")
    _add_registry(verbs)
    return parser


def _add_registry(verbs: _Verbs) -> None:
    """The commands about devices, invites, groups and the audit."""
    does = registry_commands

    token = _verb(verbs, "token", "Create a device and print, once, how it connects.", does.token)
    token.add_argument("name", metavar="NAME", help="a name for the device")

    words = "Print, once, a link that enrols one device."
    invite = _verb(verbs, "invite", words, does.invite)
    invite.add_argument("name", metavar="NAME", help="the name that the device will have")
    invite.add_argument(
        "--expires",
        default="24h",
        metavar="TIME",
        help="how long the link is good, such as 30m or 7d (default %(default)s)",
    )
    for parser in (token, invite):
        parser.add_argument(
            "--group",
            nargs="+",
            action="extend",
            default=[],
            metavar="GROUP",
            help=f"groups that the device joins (default {EVERYONE})",
        )
    invite.add_argument(
        "--route",
        nargs="+",
        action="extend",
        default=[],
        metavar="CIDR",
        help="suggested destinations for the tunnel (default: all that its groups offer)",
    )
    _verb(verbs, "invites", "List the invites.", does.invites)
    uninvite = _verb(verbs, "uninvite", "Withdraw an invite that nobody used yet.", does.uninvite)
    uninvite.add_argument("name", metavar="NAME", help="the name that the invite is for")

    _verb(verbs, "list", "List the devices and their addresses.", does.list_devices)
    revoke = _verb(verbs, "revoke", "Bar a device for good and cut its session.", does.revoke)
    revoke.add_argument("name", metavar="NAME", help="the device")
    rename = _verb(verbs, "rename", "Give a device another name.", does.rename)
    rename.add_argument("old", metavar="OLD", help="its name")
    rename.add_argument("new", metavar="NEW", help="its new name")
    _verb(verbs, "audit", "List what administrators did.", does.audit)

    words = "What groups of devices may reach."
    group = verbs.add_parser("group", help=words, description=words)
    _add_groups(group.add_subparsers(required=True, metavar="COMMAND"))


def _add_groups(verbs: _Verbs) -> None:
    does = group_commands
    _verb(verbs, "list", "List the groups.", does.show)
    add = _verb(verbs, "add", "Create a group.", does.add)
    change = _verb(verbs, "set", "Change what is given of a group.", does.change)
    remove = _verb(verbs, "remove", "Remove a group.", does.remove)
    join = _verb(verbs, "join", "Put a device into a group.", does.join)
    leave = _verb(verbs, "leave", "Take a device out of a group.", does.leave)
    for parser in (add, change, remove, join, leave):
        parser.add_argument("group", metavar="GROUP", help="the group")
    for parser in (join, leave):
        parser.add_argument("device", metavar="DEVICE", help="the device")
    for parser in (add, change):
        for option, metavar, words in (
            ("--route", "CIDR", "routes that its devices get, 'default' or 'none'"),
            ("--destination", "CIDR", "what they may reach, 'none', or 'default': their routes"),
            ("--dns", "ADDR", "resolvers for them, 'default' or 'none'"),
            (
                "--service",
                "RULE",
                "services for them: [tcp/|udp/]WHERE[:PORT[-PORT]], 'default' or 'none'",
            ),
        ):
            parser.add_argument(option, nargs="+", action="extend", metavar=metavar, help=words)
        parser.add_argument(
            "--max-sessions",
            metavar="N",
            help="sessions of all its devices together, or 'none'",
        )


def _verb(
    verbs: _Verbs,
    name: str,
    words: str,
    command: Callable[[StateDir, argparse.Namespace], int],
) -> argparse.ArgumentParser:
    added: argparse.ArgumentParser = verbs.add_parser(name, help=words, description=words)
    added.set_defaults(command=command)
    _add_state(added)
    added.add_argument("--json", action="store_true", help="print one JSON document")
    return added


def _add_state(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--state", type=Path, required=True, metavar="DIR", help="the gateway's state directory"
    )


if __name__ == "__main__":
    sys.exit(main())
