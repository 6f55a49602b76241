"""The commands `qvpn proxy` and `qvpn forward`: their words, and what they ask of `run`."""

from __future__ import annotations

import argparse
from typing import Any, Final

from qvpn_core.client import profiles
from qvpn_core.client.proxy.options import (
    DEFAULT_SOCKS,
    Listener,
    ProxyKind,
    parse_forward,
    parse_listen,
)
from qvpn_core.client.status import Proxy

_WORDS: Final[dict[ProxyKind, str]] = {"socks": "SOCKS proxy", "http": "HTTP proxy"}


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
    socks = arguments.socks or (None if arguments.http else DEFAULT_SOCKS)
    chosen: tuple[tuple[ProxyKind, str | None], ...] = (("socks", socks), ("http", arguments.http))
    wanted = [
        Listener(kind, parse_listen(text, share=arguments.share))
        for kind, text in chosen
        if text is not None
    ]
    return _run(arguments, wanted)


def _forward(arguments: argparse.Namespace) -> int:
    wanted = [parse_forward(text, share=arguments.share) for text in arguments.forwards]
    return _run(arguments, wanted)


def _run(arguments: argparse.Namespace, wanted: list[Listener]) -> int:
    # Not before it is needed: it brings asyncio and the whole transport.
    from qvpn_core.client.proxy import run

    profile = profiles.load(arguments.profile)
    run.log_to_stderr()
    run.run(profile, wanted, _say)
    return 0


def _say(proxies: tuple[Proxy, ...]) -> None:
    for proxy in proxies:
        print(f"{_WORDS.get(proxy.kind, proxy.target)} at {proxy.listen}", flush=True)
