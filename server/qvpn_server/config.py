"""The gateway's configuration, `gateway.toml`: typed, validated, written once by `init`.

Everything a user can get wrong raises :class:`UsageError` here, with the option or key that caused
it, so that `run` starts only from a configuration that makes sense. This file refuses to touch the
network and to create anything.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from qvpn_core.errors import UsageError
from qvpn_server.pool import MIN_HOST_BITS, IPAddress, IPNetwork, Pool, overlap

DEFAULT_PORT = 443
DEFAULT_LISTEN = ("0.0.0.0:443", "[::]:443")
#: A corner of RFC 1918 that home routers, Docker and clouds do not default to.
DEFAULT_POOL4 = "10.86.0.0/16"
DEFAULT_ROUTES = ("0.0.0.0/0", "::/0")
DEFAULT_MAX_SESSIONS = 1024
#: The group that a device joins unless others are named for it.
EVERYONE = "everyone"
#: Of the URL of a registry that is not the SQLite file in the state directory.
REGISTRY_SCHEME = "postgresql+psycopg"

#: Written for a pool that the administrator does not want.
NO_POOL = "none"

_UNUSABLE = (
    *map(ip_network, ("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/3")),
    *map(ip_network, ("::/96", "::ffff:0:0/96", "fe80::/10", "ff00::/8")),
)


class _File(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """The keys of gateway.toml as written; checked further by :func:`make_config`."""

    host: str
    listen: list[str] = msgspec.field(default_factory=lambda: list(DEFAULT_LISTEN))
    pool4: str = DEFAULT_POOL4
    pool6: str = NO_POOL
    dns: list[str] = []
    routes: list[str] = msgspec.field(default_factory=lambda: list(DEFAULT_ROUTES))
    isolation: bool = True
    certificate: str
    private_key: str
    max_sessions: int = DEFAULT_MAX_SESSIONS
    registry: str | None = None
    site: str | None = None


@dataclass(frozen=True, slots=True)
class GatewayConfig:
    """A valid configuration. Make one with :func:`make_config` or :func:`load_config`."""

    #: The name or address that clients use, as in the certificate.
    host: str
    #: UDP addresses to listen on.
    listen: tuple[tuple[str, int], ...]
    #: At most one per family, at least one.
    pools: tuple[Pool, ...]
    #: Resolvers for devices, sent by DNS_ASSIGN.
    dns: tuple[IPAddress, ...]
    #: What devices may reach through the gateway, besides the gateway itself.
    routes: tuple[IPNetwork, ...]
    #: Whether devices are kept from reaching each other.
    isolation: bool
    certificate: Path
    private_key: Path
    #: Live sessions at most; further devices get 503.
    max_sessions: int = DEFAULT_MAX_SESSIONS
    #: The URL of a PostgreSQL registry, which has a password in it; None for the file beside this.
    registry: str | None = field(default=None, repr=False)
    #: The directory of the web site for strangers; None: the page that is built in.
    site: Path | None = None

    @property
    def gateway_addresses(self) -> tuple[IPAddress, ...]:
        """The gateway's own addresses inside the tunnel."""
        return tuple(pool.gateway for pool in self.pools)

    @property
    def inside(self) -> tuple[IPNetwork, ...]:
        """What is reachable without leaving the gateway.

        Its own addresses, and the whole pools when devices may meet.
        """
        if self.isolation:
            return tuple(ip_network(address) for address in self.gateway_addresses)
        return tuple(pool.network for pool in self.pools)

    @property
    def advertised(self) -> tuple[IPNetwork, ...]:
        """The prefixes of ROUTE_ADVERTISEMENT (RFC 9484 section 4.7.3) without groups' changes.

        The configured routes of every family that has a pool, and with them what is inside.
        """
        versions = {pool.version for pool in self.pools}
        return (*(route for route in self.routes if route.version in versions), *self.inside)

    @property
    def endpoint(self) -> str:
        """`HOST:PORT` for a client's profile; an IPv6 address is bracketed."""
        return join_host_port(self.host, self.listen[0][1])


def make_config(
    *,
    host: str,
    certificate: Path,
    private_key: Path,
    listen: Sequence[str] = DEFAULT_LISTEN,
    pool4: str = DEFAULT_POOL4,
    pool6: str = NO_POOL,
    dns: Sequence[str] = (),
    routes: Sequence[str] = DEFAULT_ROUTES,
    isolation: bool = True,
    max_sessions: int = DEFAULT_MAX_SESSIONS,
    registry: str | None = None,
    site: Path | None = None,
) -> GatewayConfig:
    """Check every value and their agreement with each other. Raises UsageError."""
    pools = tuple(
        pool for pool in (_parse_pool("pool4", pool4, 4), _parse_pool("pool6", pool6, 6)) if pool
    )
    if not pools:
        raise UsageError("both pools are 'none'", "give at least one of --pool4 and --pool6")
    if not listen:
        raise UsageError("nothing to listen on", "give --listen ADDR:PORT")
    if not routes:
        raise UsageError("no route to offer", "give --route CIDR, for example --route 0.0.0.0/0")
    if max_sessions < 1:
        raise UsageError(f"max_sessions is {max_sessions}", "give a number of at least 1")
    config = GatewayConfig(
        host=_parse_host(host),
        listen=tuple(parse_listen(text) for text in listen),
        pools=pools,
        dns=tuple(parse_address(text) for text in dns),
        routes=tuple(parse_network("route", text) for text in routes),
        isolation=isolation,
        certificate=certificate,
        private_key=private_key,
        max_sessions=max_sessions,
        registry=None if registry is None else _parse_registry(registry),
        site=site,
    )
    check_agreement(config)
    return config


def load_config(path: Path) -> GatewayConfig:
    """Read gateway.toml. Relative file names in it start at its directory. Raises UsageError."""
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        raise UsageError(
            f"{path.parent} holds no gateway",
            f"run: qvpn-server init --state {path.parent} --host NAME",
        ) from None
    except OSError as error:
        raise UsageError(
            f"cannot read {path}: {error.strerror}", "run this as the owner of that directory"
        ) from None
    try:
        file = msgspec.toml.decode(text, type=_File)
    except msgspec.DecodeError as error:
        raise UsageError(f"{path} is not valid: {error}", "correct that line") from None
    try:
        return make_config(
            host=file.host,
            listen=file.listen,
            pool4=file.pool4,
            pool6=file.pool6,
            dns=file.dns,
            routes=file.routes,
            isolation=file.isolation,
            certificate=path.parent / file.certificate,
            private_key=path.parent / file.private_key,
            max_sessions=file.max_sessions,
            registry=file.registry,
            site=None if file.site is None else path.parent / file.site,
        )
    except UsageError as error:
        raise UsageError(f"{path}: {error.what}", error.hint) from None


def dump_config(config: GatewayConfig) -> str:
    """`config` as the text of gateway.toml; :func:`load_config` reads the same back."""
    pools = {pool.version: str(pool.network) for pool in config.pools}
    # A TOML basic string and a JSON string agree on everything that these values can hold.
    values: dict[str, object] = {
        "host": config.host,
        "listen": [join_host_port(*address) for address in config.listen],
        "pool4": pools.get(4, NO_POOL),
        "pool6": pools.get(6, NO_POOL),
        "dns": [str(address) for address in config.dns],
        "routes": [str(route) for route in config.routes],
        "isolation": config.isolation,
        "certificate": str(config.certificate),
        "private_key": str(config.private_key),
        "max_sessions": config.max_sessions,
    }
    if config.registry is not None:
        values["registry"] = config.registry
    if config.site is not None:
        values["site"] = str(config.site)
    lines = [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in values.items()]
    return "\n".join(
        ["# The gateway's configuration. Restart qvpn-server after a change.", *lines, ""]
    )


def random_ula() -> str:
    """A /64 of a random unique local prefix (RFC 4193 section 3.2)."""
    prefix = b"\xfd" + secrets.token_bytes(5) + bytes(10)
    return str(IPv6Network((prefix, 64)))


def join_host_port(host: str, port: int) -> str:
    """`host:port`, with brackets around an IPv6 address (RFC 3986 section 3.2.2)."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def parse_listen(text: str) -> tuple[str, int]:
    """Split `ADDR:PORT`, `[ADDR6]:PORT` or a bare address (port 443). Raises UsageError."""
    host, port = text, str(DEFAULT_PORT)
    if text.startswith("["):
        host, closed, rest = text[1:].partition("]")
        valid = bool(closed) and (not rest or rest.startswith(":"))
        port = rest[1:] if rest else port
    else:
        valid = True
        if text.count(":") == 1:
            host, port = text.split(":")
    try:
        address = ip_address(host)
        number = int(port) if port.isascii() and port.isdigit() else -1
        if valid and 0 <= number <= 0xFFFF:
            return str(address), number
    except ValueError:
        pass
    raise UsageError(
        f"cannot listen on {text!r}", "give ADDR:PORT, for example 0.0.0.0:443 or [::]:443"
    )


def _parse_pool(name: str, text: str, version: int) -> Pool | None:
    if text == NO_POOL:
        return None
    network = parse_network(name, text)
    if network.version != version:
        raise UsageError(f"{name} {text} is not an IPv{version} prefix", f"give --{name} CIDR")
    if network.max_prefixlen - network.prefixlen < MIN_HOST_BITS:
        raise UsageError(
            f"{name} {text} is too small for a gateway and a device",
            f"use a /{network.max_prefixlen - MIN_HOST_BITS} or larger",
        )
    clash = next((other for other in _UNUSABLE if overlap(network, other)), None)
    if clash is not None:
        raise UsageError(
            f"{name} {text} overlaps {clash}, which cannot be routed",
            f"use a private prefix such as {DEFAULT_POOL4 if version == 4 else 'fd00::/64'}",
        )
    return Pool(network)


def parse_network(name: str, text: str) -> IPNetwork:
    """A prefix in CIDR notation, which `name` calls in errors. Raises UsageError."""
    try:
        return ip_network(text)
    except ValueError as error:
        raise UsageError(f"{name}: {error}", "give a CIDR such as 192.0.2.0/24") from None


def parse_address(text: str) -> IPAddress:
    """The address of a DNS server. Raises UsageError."""
    try:
        return ip_address(text)
    except ValueError:
        raise UsageError(f"{text!r} is not a DNS server's address", "give an IP address") from None


def _parse_host(text: str) -> str:
    try:
        return str(ip_address(text.strip("[]")))
    except ValueError:
        pass
    labels = text.rstrip(".").split(".")
    if len(text) > 253 or not all(
        label.isascii()
        and 1 <= len(label) <= 63
        and label.replace("-", "").replace("_", "").isalnum()
        and label[0] != "-"
        and label[-1] != "-"
        for label in labels
    ):
        raise UsageError(
            f"{text!r} is neither a host name nor an address",
            "give the name that clients will use, without a port",
        )
    return text.rstrip(".").lower()


def _parse_registry(text: str) -> str:
    """The URL itself; what it leads to is found out when it is opened."""
    try:
        url = urlsplit(text)
        _ = url.port  # raises for one that is no number
        valid = url.scheme == REGISTRY_SCHEME and len(url.path) > 1
    except ValueError:
        valid = False
    if not valid:
        # Without the text: it may hold a password.
        raise UsageError(
            "that is not the URL of a registry",
            f"give {REGISTRY_SCHEME}://USER:PASSWORD@HOST/DATABASE, or leave it out for SQLite",
        )
    return text


def check_agreement(config: GatewayConfig) -> None:
    """Refuse routes and DNS servers that cannot work with each other. Raises UsageError."""
    for pool in config.pools:
        for route in config.routes:
            if route.version == pool.version and _inside(route, pool.network):
                raise UsageError(
                    f"route {route} lies inside the pool {pool.network}",
                    "leave it out; use --no-isolation to let devices reach each other",
                )
    for server in config.dns:
        network = ip_network(server)
        if not any(pool.version == server.version for pool in config.pools):
            raise UsageError(
                f"devices cannot reach the DNS server {server} without an IPv{server.version} pool",
                f"leave it out, or give --pool{server.version}",
            )
        if not any(_inside(network, route) for route in config.advertised):
            raise UsageError(
                f"the DNS server {server} is outside the advertised routes",
                f"add --route {network}",
            )
        if any(pool.offers(server) for pool in config.pools):
            raise UsageError(
                f"the DNS server {server} is an address that devices are given",
                "use the gateway's own address or one outside the pools",
            )


def _inside(inner: IPNetwork, outer: IPNetwork) -> bool:
    if isinstance(inner, IPv4Network):
        return isinstance(outer, IPv4Network) and inner.subnet_of(outer)
    return isinstance(outer, IPv6Network) and inner.subnet_of(outer)
