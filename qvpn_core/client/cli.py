"""``qvpn``: the command line of the client. The only module of the client that prints.

Exit status: 0 done, 1 it failed, 2 the command line, a value or a profile cannot be meant, 130
interrupted before it was done. Errors are one line on standard error.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import NoReturn

import msgspec

from qvpn_core.client import control, instance, profiles, sign_in
from qvpn_core.client.planner import RouteMode, RoutePolicy
from qvpn_core.client.profiles import Profile
from qvpn_core.client.proxy import cli as proxy_cli
from qvpn_core.client.states import FirewallPolicy, State
from qvpn_core.client.status import Status
from qvpn_core.errors import NameNotResolved, QvpnError, UsageError
from qvpn_core.helper.errors import NetworkTaken
from qvpn_core.masque.uri_template import DEFAULT_TEMPLATE

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130

#: From the agent's "done" to the end of its process.
_END_SECONDS = 5.0
#: An attempt, a password that somebody looks up, and a resolver that is slow.
_CONNECT_SECONDS = 120.0
_MAX_TOKEN_FILE = 4096  # bytes
_MAX_INVITE = 1 << 16  # characters; a whole mail may be piped in


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    try:
        with _interruptible():
            arguments = _parser().parse_args(argv)
            command: Callable[[argparse.Namespace], int] = arguments.run
            return command(arguments)
    except QvpnError as error:
        print(f"qvpn: {error}", file=sys.stderr)
        return EXIT_USAGE if isinstance(error, UsageError) else EXIT_FAILED
    except KeyboardInterrupt:
        print("qvpn: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of our output left; say nothing more, and let the exit flush into nothing.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED


def _up(arguments: argparse.Namespace) -> int:
    profile = profiles.load(arguments.profile)
    policy = _policy(arguments, profile)
    if policy is profile.policy and profile.lookups:
        import asyncio

        from qvpn_core.client.route_names import refreshed

        policy = asyncio.run(refreshed(profile)).policy
    wish = control.Wish.of(
        replace(
            profile,
            policy=policy,
            kill_switch=arguments.kill_switch or profile.kill_switch,
            transport=arguments.transport or profile.transport,
        )
    )
    if _is_blocked():
        if arguments.foreground:
            raise UsageError("qvpn waits in the background", "end it first: qvpn down")
        reply = control.ask(control.ConnectRequest(wish), timeout=_CONNECT_SECONDS)
        if isinstance(reply, control.StatusReply):
            return _connected(reply.status)
    # Not before it is needed: it brings asyncio and the whole transport.
    from qvpn_core.client import agent

    if arguments.foreground:
        return _up_in_foreground(wish)
    return _connected(agent.start_detached(wish))


def _connected(status: Status) -> int:
    if status.state is not State.CONNECTED:  # the agent stays and holds the kill switch
        raise QvpnError(f"{status.error}; the kill switch holds until: qvpn down")
    for warning in status.warnings:
        print(f"qvpn: {warning}", file=sys.stderr)
    print(f"connected to {status.profile} ({status.gateway}) as {', '.join(status.addresses)}")
    return 0


def _up_in_foreground(wish: control.Wish) -> int:
    import asyncio
    import logging

    from qvpn_core.client import agent
    from qvpn_core.client.tunnel import Change, Tunnel

    was_up = False

    def on_change(tunnel: Tunnel, change: Change) -> None:
        nonlocal was_up
        was_up = was_up or change.state is State.CONNECTED

    logging.basicConfig(stream=sys.stderr, format="qvpn: %(message)s")
    logging.getLogger("qvpn").setLevel(logging.INFO)
    asyncio.run(agent.run(wish, on_change))
    return 0 if was_up else EXIT_INTERRUPTED


def _is_blocked() -> bool:
    """Whether an agent waits behind its kill switch. Raises UsageError when it has a tunnel."""
    reply = control.ask(control.StatusRequest())
    if isinstance(reply, control.StatusReply):
        status = reply.status
        if status.state is State.BLOCKED:
            return True
        raise UsageError(
            f"profile {status.profile!r} is {status.state} already", "end it first: qvpn down"
        )
    if (other := instance.other_user()) is not None:
        raise _taken(other)
    return False


def _taken(other: str) -> NetworkTaken:
    hint = "end it with: qvpn unlock" if os.geteuid() == 0 else f"ask {other} to end it"
    return NetworkTaken(f"a tunnel of {other} is up on this machine", hint)


def _policy(arguments: argparse.Namespace, profile: Profile) -> RoutePolicy:
    """The profile's route policy, replaced as a whole when any option speaks of routes."""
    if not (arguments.all or arguments.only or arguments.excluded):
        return profile.policy
    mode: RouteMode = "only" if arguments.only else "all"
    return profiles.route_policy(mode, arguments.only, arguments.excluded)


def _down(arguments: argparse.Namespace) -> int:
    if arguments.profile is not None:
        profiles.check_name(arguments.profile)
    reply = control.ask(control.DownRequest(arguments.profile))
    if reply is None:
        if (other := instance.other_user()) is not None:
            raise _taken(other)
        # What was asked for is so already; scripts that make sure of it must not fail. A failure
        # that `status` still shows is thereby taken notice of.
        instance.forget_failure()
        print("qvpn: nothing is up", file=sys.stderr)
        return 0
    if not instance.wait_until_gone(_END_SECONDS):
        raise control.AgentSilent("the running qvpn does not end", "see qvpn status")
    return 0


def _unlock(_arguments: argparse.Namespace) -> int:
    with suppress(control.AgentSilent):  # the helper ends the session of one that hangs
        if control.ask(control.DownRequest()) is not None:
            instance.wait_until_gone(_END_SECONDS)
    from qvpn_core.helper import launch

    launch.unlock()
    instance.forget_failure()
    return 0


def _status(arguments: argparse.Namespace) -> int:
    from qvpn_core.client import idle  # not before: proxies run where there is no netfilter

    reply = control.ask(control.StatusRequest())
    status = reply.status if isinstance(reply, control.StatusReply) else idle.idle_status()
    if arguments.json:
        print(msgspec.json.format(msgspec.json.encode(status), indent=2).decode())
    else:
        for name, value in _words(status):
            print(f"{name:<11}{value}")
    return 0


def _words(status: Status) -> Iterator[tuple[str, str]]:
    yield "state", status.state + (f" since {status.since}" if status.since else "")
    if status.error:
        yield "because", status.error
    if status.other_user:
        yield "but", f"a tunnel of {status.other_user} is up on this machine"
    if status.firewall is FirewallPolicy.BLOCK:
        yield "firewall", f"blocks what does not use the tunnel (kill switch: {status.kill_switch})"
    for warning in status.warnings:
        yield "note", warning
    if status.profile:
        yield "profile", f"{status.profile} ({status.gateway})"
    for proxy in status.proxies:
        yield proxy.kind, proxy.listen + (f" to {proxy.target}" if proxy.target else "")
    if status.transport is None:
        return
    if status.proxies:
        yield "transport", status.transport
        return
    yield "transport", f"{status.transport}, {status.datapath} datapath on {status.interface}"
    yield "addresses", " ".join(status.addresses)
    yield "routes", " ".join(status.routes) or "none"
    yield "dns", " ".join(status.dns) or "none"
    yield "names", f"{status.resolver}"
    yield "mtu", f"{status.mtu} bytes"
    if status.rtt_ms is not None:
        yield "rtt", f"{status.rtt_ms} ms"
    yield "sent", f"{status.tx_packets} packets, {status.tx_bytes} bytes"
    yield "received", f"{status.rx_packets} packets, {status.rx_bytes} bytes"
    for reason, count in sorted(status.drops.items()):
        yield "dropped", f"{count} packets ({reason})"


def _doctor(arguments: argparse.Namespace) -> int:
    from qvpn_core.client import doctor, doctor_facts, report

    if arguments.profile is not None:
        profiles.load(arguments.profile)  # says what is wrong with it
    facts = doctor_facts.gather(arguments.profile)
    findings = doctor.examine(facts)
    if arguments.json:
        print(msgspec.json.format(msgspec.json.encode(findings), indent=2).decode())
    else:
        for finding in findings:
            print(f"{finding.verdict:<8} {finding.check:<12} {finding.words}")
            if finding.remedy:
                print(f"{'':<21} {finding.remedy}")
    if arguments.report is not None:
        path = report.write(Path(arguments.report), report.compose(findings, facts.status))
        print(f"wrote {path}", file=sys.stderr)
    return 1 if any(finding.verdict == "bad" for finding in findings) else 0


def _explain(arguments: argparse.Namespace) -> int:
    from qvpn_core.net import killswitch  # not before, as in `_status`

    for address in _resolve(arguments.destination):
        reply = control.ask(control.ExplainRequest(address))
        if isinstance(reply, control.ExplainReply):
            print(reply.words)
        else:
            held = killswitch.holding()
            but = f", but a kill switch is ({held}): to release it, qvpn unlock" if held else ""
            print(f"{address} goes direct: no tunnel is up{but}")
    return 0


def _resolve(destination: str) -> list[str]:
    try:
        return [str(ip_address(destination))]
    except ValueError:
        pass
    try:
        found = socket.getaddrinfo(destination, None, type=socket.SOCK_DGRAM)
    except (OSError, UnicodeError):
        raise NameNotResolved(f"{destination!r} has no address", "check the spelling") from None
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def _profile_add(arguments: argparse.Namespace) -> int:
    token = arguments.token
    if arguments.token_file is not None:
        token = _read_token(arguments.token_file)
    if arguments.ca is not None and not os.path.isfile(arguments.ca):
        raise UsageError(f"there is no file {arguments.ca!r}", "--ca takes certificates in PEM")
    profile = profiles.make_profile(
        arguments.name,
        arguments.gateway,
        token,
        pins=[arguments.pin] if arguments.pin else [],
        ca_file=arguments.ca,
        template=arguments.template,
    )
    path = profiles.save(profile)
    print(f"stored {path}; connect with: qvpn up {profile.name}")
    return 0


def _read_token(name: str) -> str:
    try:
        if name == "-":
            text = sys.stdin.read(_MAX_TOKEN_FILE)
        else:
            with Path(name).open(encoding="utf-8") as file:
                text = file.read(_MAX_TOKEN_FILE)
    except (OSError, UnicodeError) as error:
        what = error.strerror if isinstance(error, OSError) else "it is no text"
        raise UsageError(f"the token file {name!r} cannot be read", str(what)) from None
    return text.strip()


def _enroll(arguments: argparse.Namespace) -> int:
    words: list[str] = arguments.invite
    text = sys.stdin.read(_MAX_INVITE) if words == ["-"] else " ".join(words)
    # Not before it is needed: it brings asyncio and the whole transport.
    import asyncio

    from qvpn_core.client import enrolling, keys

    enrolled = asyncio.run(enrolling.enrol(text, arguments.profile))
    profile = enrolled.profile
    assert profile.key is not None
    print(f"enrolled as {profile.device} at {profile.gateway}")
    print(f"profile  {enrolled.path}")
    print(f"key      {keys.describe(profile.name, profile.key)}")
    if profile.policy.destinations:
        print(f"routes   {' '.join(map(str, profile.policy.destinations))}")
    print(f"connect with: qvpn up {profile.name}")
    return 0


def _profile_list(_arguments: argparse.Namespace) -> int:
    for name in profiles.names():
        print(name)
    return 0


def _profile_show(arguments: argparse.Namespace) -> int:
    profile = profiles.load(arguments.name)
    policy = profile.policy
    rows = [
        ("name", profile.name),
        ("gateway", profile.gateway),
        ("template", profile.template),
        ("device", profile.device or "unnamed, by its token"),
        ("secret", _secret(profile)),
        ("trust", " ".join(profile.trust.pins) or profile.trust.ca_file or "public authorities"),
        ("transport", profile.transport),
        ("routes", " ".join([policy.mode, *map(str, policy.destinations)])),
    ]
    if excluded := profiles.excluded_words(policy):
        rows.append(("except", " ".join(excluded)))
    if profile.kill_switch != "off":
        rows.append(("killswitch", profile.kill_switch))
    for key, value in rows:
        print(f"{key:<11}{value}")
    return 0


def _secret(profile: Profile) -> str:
    if profile.key is None:
        return "a token, not shown"
    from qvpn_core.client import keys

    return f"a key in {keys.describe(profile.name, profile.key)}"


def _profile_remove(arguments: argparse.Namespace) -> int:
    profiles.remove(arguments.name)
    return 0


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, as every other error."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, f"see {self.prog} --help")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="qvpn",
        description="A QUIC VPN.",
        epilog="Exit status: 0 done, 1 failed, 2 it cannot be meant, 130 interrupted.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser)

    enroll = commands.add_parser("enroll", help="turn an invite into a profile", allow_abbrev=False)
    enroll.set_defaults(run=_enroll)
    enroll.add_argument(
        "invite",
        metavar="INVITE",
        nargs="+",
        help="the qvpn:// link; - reads it, or a whole mail with it, from standard input, "
        "which keeps it out of the shell's history",
    )
    enroll.add_argument("--profile", metavar="NAME", help="default: the gateway's name")

    up = commands.add_parser("up", help="connect", allow_abbrev=False)
    up.set_defaults(run=_up)
    up.add_argument("profile", metavar="PROFILE")
    routes = up.add_mutually_exclusive_group()
    routes.add_argument("--all", action="store_true", help="send everything into the tunnel")
    routes.add_argument(
        "--only", nargs="+", action="extend", default=[], metavar="CIDR", help="send these"
    )
    up.add_argument(
        "--except",
        dest="excluded",
        nargs="+",
        action="extend",
        default=[],
        metavar="CIDR",
        help="but never these, where lan is whatever LAN you are in; "
        "any of the three options replaces the profile's routes",
    )
    up.add_argument(
        "--kill-switch",
        choices=("off", "on", "always"),
        help="whether what belongs into the tunnel is blocked while it is not up: until qvpn down, "
        "or always, until qvpn unlock; instead of the profile's",
    )
    up.add_argument(
        "--transport",
        choices=("auto", "quic", "tls"),
        help="auto prefers QUIC and falls back to TLS on TCP; default: what the profile says",
    )
    up.add_argument(
        "--foreground",
        action="store_true",
        help="stay until Ctrl-C, with a log on stderr",
    )

    down = commands.add_parser("down", help="disconnect", allow_abbrev=False)
    down.set_defaults(run=_down)
    down.add_argument("profile", metavar="PROFILE", nargs="?")

    unlock = commands.add_parser(
        "unlock",
        help="end a tunnel that is up, and release whatever blocks the network",
        allow_abbrev=False,
    )
    unlock.set_defaults(run=_unlock)

    status = commands.add_parser("status", help="what the tunnel does", allow_abbrev=False)
    status.set_defaults(run=_status)
    status.add_argument("--json", action="store_true", help="one JSON document")

    sign_in.add_parser(commands)

    doctor = commands.add_parser(
        "doctor", help="look for what keeps a tunnel from working", allow_abbrev=False
    )
    doctor.set_defaults(run=_doctor)
    doctor.add_argument("profile", metavar="PROFILE", nargs="?", help="whose gateway to ask")
    doctor.add_argument("--json", action="store_true", help="one JSON document")
    doctor.add_argument(
        "--report", metavar="FILE", help="write a report without names, addresses and secrets"
    )

    routes_ = commands.add_parser(
        "routes",
        help="what uses the tunnel",
        description="Host names in a profile's list are looked up again at each qvpn up.",
    )
    route_commands = routes_.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser)
    explain = route_commands.add_parser("explain", help="which way a destination goes, and why")
    explain.set_defaults(run=_explain)
    explain.add_argument("destination", metavar="DEST", help="an address or a name")

    proxy_cli.add_parsers(commands)
    _profile_parsers(commands.add_parser("profile", help="the gateways that are known"))
    return parser


def _profile_parsers(profile: argparse.ArgumentParser) -> None:
    commands = profile.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser)
    add = commands.add_parser("add", help="store a profile", allow_abbrev=False)
    add.set_defaults(run=_profile_add)
    add.add_argument("name", metavar="NAME")
    add.add_argument("--gateway", required=True, metavar="HOST[:PORT]")
    token = add.add_mutually_exclusive_group(required=True)
    token.add_argument("--token", metavar="TOKEN", help="visible to others while this runs")
    token.add_argument("--token-file", metavar="FILE", help="- reads standard input")
    trust = add.add_mutually_exclusive_group()
    trust.add_argument("--pin", metavar="PIN", help="sha256/BASE64 of the gateway's public key")
    trust.add_argument("--ca", metavar="FILE", help="PEM authorities to trust, not the public ones")
    add.add_argument("--template", default=DEFAULT_TEMPLATE, metavar="URI")

    listing = commands.add_parser("list", help="the names of all profiles")
    listing.set_defaults(run=_profile_list)
    show = commands.add_parser("show", help="a profile, without its secret")
    show.set_defaults(run=_profile_show)
    show.add_argument("name", metavar="NAME")
    remove = commands.add_parser("remove", help="delete a profile")
    remove.set_defaults(run=_profile_remove)
    remove.add_argument("name", metavar="NAME")


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let SIGTERM and SIGHUP unwind as Ctrl-C does, so that what we started is ended with us."""

    def interrupt(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    # Windows has no SIGHUP.
    numbers = (signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM))
    previous = {number: signal.signal(number, interrupt) for number in dict.fromkeys(numbers)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    sys.exit(main())
