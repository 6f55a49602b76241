"""The test world itself: a client behind a NAT router, a gateway, an internet, all on this machine.

:class:`World` makes the namespaces and links of `plan`, starts the internet host's services and the
impairment relay on the router's uplink, and takes all of it away again. It knows nothing about
VPNs: everything here works, and can be observed, without any.
"""

from __future__ import annotations

import select
import socket
import struct
import subprocess
import sys
import time
from types import TracebackType
from typing import Final, Self

from tests.world import plan
from tests.world.namespaces import Namespace, WorldError, create, destroy
from tests.world.relay import ROOT, LinkEnd, Relay

#: How long the services may take to start, in seconds: generous, as machines are shared.
_PATIENCE: Final = 20.0
_NETLINK_NETFILTER: Final = 12  # linux/netlink.h
_CT_DELETE: Final = 0x0102  # linux/netfilter/nfnetlink_conntrack.h

_HOME_ROUTER: Final = """
table inet home {
  chain translate {
    type nat hook postrouting priority srcnat
    oifname "wan0" meta nfproto ipv4 masquerade fully-random
  }
  chain input {
    type filter hook input priority filter
    iifname "wan0" meta l4proto { tcp, udp } ct state != { established, related } drop
  }
  chain forward {
    type filter hook forward priority filter
    iifname "wan0" ct state != { established, related } drop
  }
}
"""


class Router(Namespace):
    """The home router: source NAT for IPv4, a stateful firewall for both families."""

    def flush_nat(self) -> None:
        """Forget all connections, as a router does that restarts or is short of memory.

        What the internet sends is dropped silently until the client sends again, and its next
        packet leaves from a new port.
        """
        with self.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER) as netlink:
            request, acknowledged = 1, 4  # NLM_F_REQUEST, NLM_F_ACK
            netlink.send(
                struct.pack("=IHHIIBBH", 20, _CT_DELETE, request | acknowledged, 1, 0, 0, 0, 0)
            )
            status = struct.unpack_from("=i", netlink.recv(4096), 16)[0]
        if status:
            raise WorldError(f"the kernel did not flush its connections (error {-status})")


class World:
    """Everything up and ready between ``with World() as world:`` and the end of the block.

    `client`, `router`, `gateway` and `internet` are namespaces with the interfaces and addresses of
    `plan`; `client2` exists with `second_client`. Without `relay` the uplink is a plain veth pair:
    for throughput. `mtu` (bytes) is the uplink's. `seed` makes the relay's choices repeatable.
    Raises WorldError, in one line, where the world cannot be built.
    """

    client: Namespace
    client2: Namespace
    router: Router
    gateway: Namespace
    internet: Namespace
    relay: Relay

    def __init__(
        self, *, relay: bool = True, second_client: bool = False, mtu: int = 1500, seed: int = 1
    ) -> None:
        self._with_relay = relay
        self._with_second = second_client
        self._mtu = mtu
        self._seed = seed
        self.client = Namespace("client")
        self.router = Router("router")
        self.gateway = Namespace("gateway")
        self.internet = Namespace("internet")
        self.namespaces = [self.client, self.router, self.gateway, self.internet]
        if second_client:
            self.client2 = Namespace("client2")
            self.namespaces.append(self.client2)

    def __enter__(self) -> Self:
        try:
            self._build()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End every process and remove every namespace. May be repeated."""
        if hasattr(self, "relay"):
            self.relay.close()
        destroy(self.namespaces)

    # -- interruptions

    def move_client(self, number: int) -> None:
        """Give the client another address in its LAN, host `number`, as a new DHCP lease would.

        Removes every address and default route of its interface first and brings the link up, so
        this also mends a client whose link was down.
        """
        self.client.ip(
            "link set eth0 up", "addr flush dev eth0 scope global", *_lan_host(0, number)
        )

    def add_cable(self) -> None:
        """Give the client a second link to the router, eth1 in the second LAN, still unused.

        For a world without a second client, whose LAN that is.
        """
        lan = plan.LANS[1]
        self.router.ip(
            f"link add lan1 type veth peer name eth1 netns {self.client.name}",
            "link set lan1 up",
            f"addr add {lan.router4}/24 dev lan1",
            f"addr add {lan.router6}/64 dev lan1 nodad",
        )

    def use_cable(self) -> None:
        """Bring the second link up and make it the client's way out."""
        self.client.ip(
            "link set eth1 up", "addr flush dev eth1 scope global", *_lan_host(1, device="eth1")
        )

    def unuse_cable(self) -> None:
        """Take the second link down, and with it its routes and addresses."""
        self.client.ip("addr flush dev eth1", "link set eth1 down")

    def unplug_client(self) -> None:
        """Take the carrier from the client's interface; its addresses and routes stay."""
        self.router.set_link("lan0", up=False)

    def plug_client(self) -> None:
        """Give the carrier back."""
        self.router.set_link("lan0", up=True)

    # -- building

    def _build(self) -> None:
        create(self.namespaces)
        services = self._start_services()
        for host in (self.router, self.internet):
            _make_router(host)
        if self._with_relay:
            self.relay = Relay(
                LinkEnd(self.router, "wan0", plan.ROUTER4, plan.ROUTER6),
                LinkEnd(self.internet, "isp0", plan.ISP4, plan.ISP6),
                self._seed,
            )
        self._build_router()
        self._build_internet()
        self.client.ip("link set eth0 up", *_lan_host(0))
        self.client.set_resolvers([plan.PROVIDER_DNS.v4, plan.PROVIDER_DNS.v6])
        if self._with_second:
            self.client2.ip("link set eth0 up", *_lan_host(1))
            self.client2.set_resolvers([plan.PROVIDER_DNS.v4, plan.PROVIDER_DNS.v6])
        self.gateway.ip(
            "link set eth0 up",
            f"addr add {plan.GATEWAY4}/25 dev eth0",
            f"addr add {plan.GATEWAY6}/64 dev eth0 nodad",
            f"route add default via {plan.DATACENTRE4}",
            f"route add ::/0 via {plan.DATACENTRE6}",
        )
        self.gateway.set_resolvers([plan.COMPANY_DNS.v4, plan.COMPANY_DNS.v6])
        if self._with_relay:
            self.relay.ready()
        _await_line(services)

    def _start_services(self) -> subprocess.Popen[bytes]:
        return self.internet.popen(
            [sys.executable, "-m", "tests.world.services"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def _build_router(self) -> None:
        lines = []
        for number, client in enumerate(self._clients()):
            lan = plan.LANS[number]
            lines += [
                f"link add lan{number} type veth peer name eth0 netns {client.name}",
                f"link set lan{number} up",
                f"addr add {lan.router4}/24 dev lan{number}",
                f"addr add {lan.router6}/64 dev lan{number} nodad",
            ]
        if not self._with_relay:
            lines.append(f"link add wan0 type veth peer name isp0 netns {self.internet.name}")
        lines += [
            f"link set wan0 up mtu {self._mtu}",
            f"addr add {plan.ROUTER4}/30 dev wan0",
            f"addr add {plan.ROUTER6}/64 dev wan0 nodad",
            f"route add default via {plan.ISP4}",
            f"route add ::/0 via {plan.ISP6}",
        ]
        self.router.ip(*lines)
        self.router.nft(_HOME_ROUTER)

    def _build_internet(self) -> None:
        lines = [
            f"link add dc0 type veth peer name eth0 netns {self.gateway.name}",
            "link set dc0 up",
            f"link set isp0 up mtu {self._mtu}",
            f"addr add {plan.ISP4}/30 dev isp0",
            f"addr add {plan.ISP6}/64 dev isp0 nodad",
            f"addr add {plan.DATACENTRE4}/25 dev dc0",
            f"addr add {plan.DATACENTRE6}/64 dev dc0 nodad",
        ]
        for site in plan.SITES:
            lines += [f"addr add {site.v4}/32 dev lo", f"addr add {site.v6}/128 dev lo nodad"]
        for lan in plan.LANS:
            lines.append(f"route add {lan.prefix6} via {plan.ROUTER6}")
        self.internet.ip(*lines)

    def _clients(self) -> list[Namespace]:
        return [self.client, self.client2] if self._with_second else [self.client]


def _make_router(host: Namespace) -> None:
    for name, value in (
        ("ipv4/ip_forward", 1),
        ("ipv6/conf/all/forwarding", 1),
        ("ipv6/conf/default/forwarding", 1),
        # Addresses survive a link that goes down: the router keeps its configuration.
        ("ipv6/conf/all/keep_addr_on_down", 1),
        ("ipv6/conf/default/keep_addr_on_down", 1),
        # Every oversize packet is answered, not ten a second.
        ("ipv4/icmp_ratelimit", 0),
        ("ipv6/icmp/ratelimit", 0),
    ):
        host.sysctl(name, value)


def _lan_host(lan_number: int, number: int = 2, device: str = "eth0") -> list[str]:
    lan = plan.LANS[lan_number]
    return [
        f"addr add {lan.client4(number)}/24 dev {device}",
        f"addr add {lan.client6(number)}/64 dev {device} nodad",
        f"route replace default via {lan.router4} dev {device}",
        f"route replace ::/0 via {lan.router6} dev {device}",
    ]


def _await_line(services: subprocess.Popen[bytes]) -> None:
    assert services.stdout is not None
    end = time.monotonic() + _PATIENCE
    if not select.select([services.stdout], [], [], max(0.0, end - time.monotonic()))[0]:
        raise WorldError(f"the internet host's services did not start within {_PATIENCE:.0f} s")
    if services.stdout.readline() != b"ready\n":
        raise WorldError("the internet host's services did not start: their message is above")
