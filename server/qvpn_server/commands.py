"""What each command of `qvpn-server` does. Prints results; failures are QvpnErrors for `cli`."""

from __future__ import annotations

import argparse
import shlex
from datetime import UTC, datetime
from pathlib import Path

from qvpn_core.errors import UsageError
from qvpn_server.admin import ask
from qvpn_server.admin_protocol import (
    GatewayStatus,
    ReloadRequest,
    StatusRequest,
    Traffic,
)
from qvpn_server.config import (
    DEFAULT_LISTEN,
    DEFAULT_ROUTES,
    NO_POOL,
    dump_config,
    load_config,
    make_config,
    random_ula,
)
from qvpn_server.printing import print_json, print_table
from qvpn_server.statedir import StateDir

EXIT_NOT_RUNNING = 3


def init(state: StateDir, options: argparse.Namespace) -> int:
    """Create a gateway's state directory."""
    from qvpn_server.certificate import check_pair, pin_of, self_signed
    from qvpn_server.registry import Registry
    from qvpn_server.website import Site

    if state.initialised:
        raise UsageError(
            f"{state.path} holds a gateway already",
            f"start it with: qvpn-server run --state {state.path}",
        )
    if (options.cert is None) != (options.key is None):
        raise UsageError("--cert and --key belong together", "give both or neither")
    given = options.cert is not None
    has_ipv6 = Path("/proc/net/if_inet6").exists()
    config = make_config(
        host=options.host,
        # Names of our own files stay relative, so that the directory can be moved.
        certificate=options.cert.absolute() if given else Path(state.certificate.name),
        private_key=options.key.absolute() if given else Path(state.private_key.name),
        listen=options.listen or (DEFAULT_LISTEN if has_ipv6 else DEFAULT_LISTEN[:1]),
        pool4=options.pool4,
        pool6=options.pool6 or (random_ula() if has_ipv6 else NO_POOL),
        dns=options.dns,
        routes=options.route or DEFAULT_ROUTES,
        isolation=options.isolation,
        registry=options.registry,
        site=options.site.absolute() if options.site else None,
    )
    if config.site is not None:
        Site.load(config.site)
    files: dict[Path, bytes] = {}
    if given:
        check_pair(config.certificate, config.private_key)
    else:
        files[state.certificate], files[state.private_key] = self_signed(
            config.host, datetime.now(UTC)
        )
    files[state.config] = dump_config(config).encode()
    if config.registry is not None:
        Registry.open(config.registry).close()  # before anything is written
    state.create(files)
    if config.registry is None:
        Registry.open(state.registry).close()
    print(f"created the gateway {config.endpoint} in {state.path}")
    print(f"pin    {pin_of(state.path / config.certificate)}")
    for pool in config.pools:
        print(f"pool{pool.version}  {pool.network}")
    print("next:")
    print(f"  qvpn-server run --state {shlex.quote(str(state.path))}           starts the gateway")
    print(f"  qvpn-server invite --state {shlex.quote(str(state.path))} NAME   invites a device")
    return 0


def run(state: StateDir, _options: argparse.Namespace) -> int:
    """Serve in the foreground."""
    state.refuse_root()
    from qvpn_server import service

    service.run(state)
    return 0


def reload(state: StateDir, _options: argparse.Namespace) -> int:
    """Have the running gateway read its files anew."""
    load_config(state.config)
    if ask(state, ReloadRequest()) is None:
        print(f"no gateway runs on {state.path}; it reads them when it starts")
        return EXIT_NOT_RUNNING
    print("reloaded; live sessions go on")
    return 0


def rotate(state: StateDir, options: argparse.Namespace) -> int:
    """Prepare and announce the next key, or switch to it."""
    from qvpn_server.identity import prepare_next, switch_to_next

    config = load_config(state.config)
    if options.switch:
        pin = switch_to_next(config, state)
        words = "in use from now on, and in every new invite"
    else:
        pin = prepare_next(config, state, datetime.now(UTC))
        words = "announced to every device that connects; then: qvpn-server rotate --switch"
    ask(state, ReloadRequest())
    print(f"pin    {pin}")
    print(words)
    return 0


def status(state: StateDir, options: argparse.Namespace) -> int:
    """The running gateway, or that there is none."""
    load_config(state.config)
    reply = ask(state, StatusRequest())
    if not isinstance(reply, GatewayStatus):
        if options.json:
            print_json({"running": False})
        else:
            print(f"no gateway runs on {state.path}")
        return EXIT_NOT_RUNNING
    if options.json:
        import msgspec

        document = msgspec.to_builtins(reply)
        del document["reply"]  # the tag of the admin protocol
        print_json(document)
        return 0
    print(f"gateway      {reply.host}, listening on {', '.join(reply.listen)}")
    print(f"running      since {reply.since}, {reply.memory_bytes / 2**20:.0f} MiB")
    print(f"connections  {reply.connections}")
    print(f"traffic      {_traffic(reply.totals)}")
    print(f"sessions     {len(reply.sessions)}")
    if reply.sessions:
        print_table(
            (
                "DEVICE",
                "ADDRESSES",
                "TRANSPORT",
                "DATAPATH",
                "PEER",
                "SINCE",
                "RTT",
                "MTU",
                "TRAFFIC",
            ),
            (
                (
                    session.device,
                    " ".join(session.addresses),
                    session.transport,
                    session.datapath,
                    session.peer,
                    session.since,
                    f"{session.rtt_ms:.0f} ms",
                    str(session.mtu),
                    _traffic(session),
                )
                for session in reply.sessions
            ),
        )
    used = reply.service_totals
    print(f"services     {used.open} open, {used.opened} in all")
    if reply.services:
        print_table(
            ("DEVICE", "PEER", "OPEN", "TRAFFIC", "REFUSED"),
            (
                (
                    user.device,
                    user.peer,
                    str(user.open),
                    f"{_size(user.tx_bytes)} to the device, {_size(user.rx_bytes)} from it",
                    str(sum(user.refused.values())),
                )
                for user in reply.services
            ),
        )
    return 0


def _traffic(traffic: Traffic) -> str:
    dropped = sum(traffic.drops.values())
    words = f"{_size(traffic.tx_bytes)} to devices, {_size(traffic.rx_bytes)} from devices"
    return f"{words}, {dropped} packets dropped" if dropped else words


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
