"""The commands `qvpn proxy` and `qvpn forward`: their words, and what they ask of `run`."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from ipaddress import ip_address
from typing import Any

from qvpn_core.client import profiles
from qvpn_core.errors import UsageError
from qvpn_core.masque.target import Target, make_target
from qvpn_core.transport.interface import Address

DEFAULT_SOCKS = "127.0.0.1:1080"
LOOPBACK = "127.0.0.1"
_ADDRESS = r"(?:\[(?P<{0}6>[^\[\]]+)\]|(?P<{0}>[^\[\]:]+))"
_LISTEN = re.compile(rf"{_ADDRESS.format('at')}:(?P<port>[0-9]{{1,5}})")
_FORWARD = re.compile(
    rf"(?:{_ADDRESS.format('at')}:)?(?P<port>[0-9]{{1,5}}):"
    rf"{_ADDRESS.format('to')}:(?P<to_port>[0-9]{{1,5}})"
)


def add_parsers(commands: Any) -> None:
    """Add the two commands to those of `qvpn`."""
    proxy = commands.add_parser(
        "proxy",
        help="SOCKS and HTTP proxies that lead to the gateway; needs no root",
        allow_abbrev=False,
    )
    proxy.set_defaults(run=_proxy)
    proxy.add_argument("profile", metavar="PROFILE")
    proxy.add_argument(
        "--socks",
        metavar="ADDR:PORT",
        help=f"where to be a SOCKS5 proxy (default {DEFAULT_SOCKS}, unless --http is given)",
    )
    proxy.add_argument("--http", metavar="ADDR:PORT", help="where to be an HTTP proxy for CONNECT")

    forward = commands.add_parser(
        "forward",
        help="local ports that lead to services behind the gateway; needs no root",
        allow_abbrev=False,
    )
    forward.set_defaults(run=_forward)
    forward.add_argument("profile", metavar="PROFILE")
    forward.add_argument(
        "forwards",
        nargs="+",
        metavar="LOCAL:HOST:PORT",
        help="LOCAL is PORT or ADDR:PORT of this machine; IPv6 addresses in brackets",
    )
    for parser in (proxy, forward):
        parser.add_argument(
            "--share",
            action="store_true",
            help="allow to listen where other machines can connect: they act as this device",
        )


def _proxy(arguments: argparse.Namespace) -> int:
    from qvpn_core.client.proxy import local

    socks = arguments.socks or (None if arguments.http else DEFAULT_SOCKS)
    chosen = (
        ("--socks", socks, "SOCKS proxy", local.socks),
        ("--http", arguments.http, "HTTP proxy", local.http),
    )
    wanted = [
        (words, _listen(option, text, arguments.share), make)
        for option, text, words, make in chosen
        if text is not None
    ]
    return _run(arguments, wanted)


def _forward(arguments: argparse.Namespace) -> int:
    from qvpn_core.client.proxy import local

    wanted = []
    for text in arguments.forwards:
        listen, target = parse_forward(text, share=arguments.share)
        wanted.append((f"{target}", listen, _bound(local.forward, target)))
    return _run(arguments, wanted)


def _bound(make: Callable[..., Any], target: Target) -> Callable[..., Any]:
    return lambda link: make(link, target)


def _run(arguments: argparse.Namespace, wanted: list[Any]) -> int:
    # Not before it is needed: it brings asyncio and the whole transport.
    from qvpn_core.client.proxy import run

    profile = profiles.load(arguments.profile)
    run.log_to_stderr()
    run.run(profile, wanted, lambda line: print(line, flush=True))
    return 0


def parse_forward(text: str, *, share: bool = False) -> tuple[Address, Target]:
    """`[ADDR:]PORT:HOST:PORT`: where to listen, and where that leads. Raises UsageError."""
    parts = _FORWARD.fullmatch(text)
    try:
        if parts is None:
            raise ValueError
        target = make_target(parts["to6"] or parts["to"], int(parts["to_port"]))
    except ValueError:
        raise UsageError(
            f"{text!r} is no forward", "write LOCAL:HOST:PORT, such as 2222:host.example.org:22"
        ) from None
    host = parts["at6"] or parts["at"] or LOOPBACK
    return _checked(text, host, int(parts["port"]), share), target


def _listen(option: str, text: str, share: bool) -> Address:
    parts = _LISTEN.fullmatch(text)
    if parts is None:
        raise UsageError(f"{option} {text!r} is no address", f"write it as {DEFAULT_SOCKS}")
    return _checked(text, parts["at6"] or parts["at"], int(parts["port"]), share)


def _checked(text: str, host: str, port: int, share: bool) -> Address:
    try:
        address = ip_address(host)
    except ValueError:
        raise UsageError(
            f"{text!r}: {host!r} is no address of this machine", f"write {LOOPBACK}"
        ) from None
    if port > 0xFFFF:
        raise UsageError(f"{text!r}: there is no port {port}", "ports are 1 to 65535")
    if not address.is_loopback and not share:
        raise UsageError(
            f"{text!r} is open to other machines, which would act as this device",
            f"use {LOOPBACK}, or add --share",
        )
    return str(address), port
