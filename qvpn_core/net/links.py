"""Addresses, routes and rules by rtnetlink (linux/rtnetlink.h, linux/fib_rules.h) with pyroute2.

`Kernel` is synchronous and belongs to one thread; see :mod:`qvpn_core.net.worker`. It touches the
device it is given, and routes and rules that carry our numbers (:mod:`qvpn_core.net.names`).
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from ipaddress import ip_interface, ip_network
from types import TracebackType
from typing import Any, Final, Self

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from qvpn_core.errors import NetworkSetupFailed, PermissionMissing
from qvpn_core.net import sysctl
from qvpn_core.net.names import FWMARK, PROTOCOL, RULE_PRIORITY, TABLE
from qvpn_core.net.plan import Interface, Network, Route, RouteKind
from qvpn_core.net.worker import in_thread

VERSIONS: Final = (4, 6)
_FAMILY: Final[dict[int, int]] = {4: socket.AF_INET, 6: socket.AF_INET6}
_FIB_RULE_INVERT: Final = 0x2
_IFF_UP: Final = 0x1  # linux/if.h
#: rtm_type (linux/rtnetlink.h) of our routes.
_KIND: Final[dict[int, RouteKind]] = {1: "tunnel", 7: "unreachable", 9: "throw"}
_IFA_F_NODAD: Final = 0x02
_IFA_F_NOPREFIXROUTE: Final = 0x200
#: More rules of ours than anybody could have left behind.
_MAX_RULES: Final = 64
#: Looks at our table; a device takes its routes with it in one go.
_MAX_FLUSHES: Final = 8
#: What the kernel says when the thing to delete, its table, device or address family is not there.
_ABSENT: Final = frozenset(
    {
        errno.ENOENT,
        errno.ESRCH,
        errno.ENODEV,
        errno.EADDRNOTAVAIL,
        errno.EAFNOSUPPORT,
        errno.EOPNOTSUPP,
    }
)


class Kernel:
    """A netlink socket with our verbs, which raise NetworkSetupFailed or PermissionMissing."""

    def __init__(self) -> None:
        self._netlink: Any = IPRoute()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._netlink.close()

    def add_address(self, index: int, address: Interface) -> None:
        """Give the device an address, usable at once; a wider prefix also gets its route."""
        host = address.network.num_addresses == 1
        with _doing(f"add the address {address}"):
            self._netlink.addr(
                "replace",
                index=index,
                family=_FAMILY[address.version],
                address=str(address.ip),
                prefixlen=address.network.prefixlen,
                flags=_IFA_F_NODAD | (_IFA_F_NOPREFIXROUTE if host else 0),
            )

    def remove_address(self, index: int, address: Interface) -> None:
        """Take an address away; fine when it or the device is gone."""
        with _doing(f"remove the address {address}", absent_is_fine=True):
            self._netlink.addr(
                "del",
                index=index,
                family=_FAMILY[address.version],
                address=str(address.ip),
                prefixlen=address.network.prefixlen,
            )

    def addresses(self, index: int) -> set[Interface]:
        """The addresses of the device."""
        with _doing("list addresses"):
            return {
                ip_interface(
                    (entry.get("IFA_LOCAL") or entry.get("IFA_ADDRESS"), entry["prefixlen"])
                )
                for entry in self._netlink.get_addr(index=index)
            }

    def set_up(self, index: int) -> bool:
        """Bring the device up; whether it was down."""
        with _doing("bring the TUN up"):
            (link,) = self._netlink.get_links(index)
            if link["flags"] & _IFF_UP:
                return False
            self._netlink.link("set", index=index, state="up")
            return True

    def remove_tun(self, name: str) -> None:
        """Delete the TUN of this name; fine when there is none, or something else has the name."""
        with _doing(f"remove the device {name}", absent_is_fine=True):
            for index in self._netlink.link_lookup(ifname=name, kind="tun"):
                self._netlink.link("del", index=index)

    def put_route(self, index: int, route: Route) -> None:
        """Add an entry to our table, or replace the one for the same prefix."""
        with _doing(f"add the {route.kind} route to {route.prefix}"):
            if route.kind == "tunnel":
                # Not scope link: then the kernel would look for others' routers in the tunnel when
                # a route is added without a device (it looks for a scope nearer than the route's).
                way: dict[str, Any] = {"type": "unicast", "oif": index, "scope": "universe"}
            else:
                way = {"type": route.kind}
            self._netlink.route("replace", **_entry(route.prefix), **way)

    def routes(self, version: int) -> dict[Network, RouteKind | None]:
        """Our table's entries, with a kind where they are of one of ours."""
        with _doing("list our routes"):
            entries = list(self._netlink.get_routes(family=_FAMILY[version], table=TABLE))
        return {_prefix(entry, version): _KIND.get(entry["type"]) for entry in entries}

    def delete_route(self, prefix: Network) -> None:
        """Delete our table's entry for `prefix`; fine when there is none."""
        with _doing(f"delete the route to {prefix}", absent_is_fine=True):
            self._netlink.route("del", scope="nowhere", **_entry(prefix))  # of whatever scope

    def flush_routes(self, version: int) -> None:
        """Delete every route of ours from our table, also while its device takes some with it."""
        for _ in range(_MAX_FLUSHES):
            with _doing("list our routes"):
                # The whole list first: the kernel cuts one short that shrinks as it is read.
                ours = list(
                    self._netlink.get_routes(family=_FAMILY[version], table=TABLE, proto=PROTOCOL)
                )
            if not ours:
                return
            for entry in ours:
                self.delete_route(_prefix(entry, version))
        raise NetworkSetupFailed(f"IPv{version} routes stay in table {TABLE}", "try again")

    def add_rule(self, version: int) -> None:
        """Send unmarked traffic to our table first; fine when the rule exists."""
        try:
            with _doing(f"add the IPv{version} routing rule"):
                self._netlink.rule("add", **_rule(version))
        except NetworkSetupFailed as error:
            if _errno(error) != errno.EEXIST:
                raise

    def has_rule(self, version: int) -> bool:
        """Whether our rule is there."""
        with _doing("list routing rules"):
            return any(
                rule.get("FRA_PRIORITY") == RULE_PRIORITY
                and rule.get("FRA_TABLE") == TABLE
                and rule.get("FRA_FWMARK") == FWMARK
                and rule["flags"] & _FIB_RULE_INVERT
                for rule in self._netlink.get_rules(family=_FAMILY[version])
            )

    def remove_rules(self, version: int) -> None:
        """Remove our rule, however often it is there."""
        with _doing(f"remove the IPv{version} routing rule", absent_is_fine=True):
            for _ in range(_MAX_RULES):
                self._netlink.rule("del", **_rule(version))


async def bring_up(index: int, addresses: Sequence[Interface]) -> None:
    """As `bring_up_now`, in a worker thread."""
    await in_thread(bring_up_now, index, addresses)


def bring_up_now(index: int, addresses: Sequence[Interface]) -> None:
    """Give a TUN its addresses and bring it up (the gateway's side).

    Their prefixes become connected routes, as with ``ip address add``. The TUN gets no link-local
    address, so that it solicits no routers and sends no IPv6 redirects, and sends no IPv4 ones.
    """
    name = socket.if_indextoname(index)
    sysctl.write(f"net/ipv4/conf/{name}/send_redirects", "0")
    if sysctl.read(f"net/ipv6/conf/{name}/addr_gen_mode") is not None:
        sysctl.write(f"net/ipv6/conf/{name}/addr_gen_mode", "1")
    with Kernel() as kernel:
        for address in addresses:
            kernel.add_address(index, address)
        kernel.set_up(index)


def _entry(prefix: Network) -> dict[str, Any]:
    family = _FAMILY[prefix.version]
    return {"family": family, "dst": str(prefix), "table": TABLE, "proto": PROTOCOL}


def _prefix(entry: Any, version: int) -> Network:
    """The destination of a route as the kernel lists it."""
    whole = "0.0.0.0" if version == 4 else "::"
    return ip_network((entry.get("RTA_DST") or whole, entry["dst_len"]))


def _rule(version: int) -> dict[str, Any]:
    return {
        "family": _FAMILY[version],
        "priority": RULE_PRIORITY,
        "table": TABLE,
        "fwmark": FWMARK,
        "flags": _FIB_RULE_INVERT,
        "protocol": PROTOCOL,
    }


@contextmanager
def _doing(what: str, *, absent_is_fine: bool = False) -> Iterator[None]:
    try:
        yield
    except NetlinkError as error:
        if absent_is_fine and error.code in _ABSENT:
            return
        if error.code in (errno.EPERM, errno.EACCES):
            hint = "in a container, allow CAP_NET_ADMIN" if os.geteuid() == 0 else "use sudo"
            raise PermissionMissing("not allowed to change the network", hint) from error
        raise NetworkSetupFailed(f"cannot {what} ({os.strerror(error.code)})") from error


def _errno(error: NetworkSetupFailed) -> int | None:
    cause = error.__cause__
    return cause.code if isinstance(cause, NetlinkError) else None
