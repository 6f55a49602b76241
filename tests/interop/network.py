"""The network that the interoperation tests run in.

Three namespaces, so that a tunnel ends on a router and not on the host that answers:

    client 192.0.2.2 ══ underlay ══ 192.0.2.1 proxy 198.51.100.1 ── inner ── 198.51.100.2 host
           2001:db8:1::2           2001:db8:1::1    2001:db8:2::1           2001:db8:2::2

The client has no route beyond the underlay: whatever reaches the host came through a tunnel. The
host has a default route to the proxy, so that it can begin a conversation with a tunnel's client.
"""

from __future__ import annotations

from tests.world.namespaces import Namespace, create


class Network:
    """The three namespaces of this module's picture, between `create` and `destroy`."""

    CLIENT = ("192.0.2.2", "2001:db8:1::2")
    PROXY = ("192.0.2.1", "2001:db8:1::1")
    PROXY_INSIDE = ("198.51.100.1", "2001:db8:2::1")
    HOST = ("198.51.100.2", "2001:db8:2::2")

    def __init__(self) -> None:
        self.client, self.proxy, self.host = (
            Namespace(label) for label in ("client", "proxy", "host")
        )
        self.namespaces = (self.client, self.proxy, self.host)

    def build(self) -> None:
        """Make the namespaces, their links and their addresses. Raises WorldError."""
        create(self.namespaces)
        # Programs in the client's namespace see this file instead of the machine's own.
        self.client.set_resolvers(["198.51.100.53"])
        self.client.ip(
            f"link add underlay type veth peer name underlay netns {self.proxy.name}",
            "link set underlay up",
            "addr add 192.0.2.2/24 dev underlay",
            "addr add 2001:db8:1::2/64 dev underlay nodad",
        )
        for forwarding in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
            self.proxy.sysctl(forwarding, 1)
        self.proxy.ip(
            "link set underlay up",
            "addr add 192.0.2.1/24 dev underlay",
            "addr add 2001:db8:1::1/64 dev underlay nodad",
            f"link add inner type veth peer name inner netns {self.host.name}",
            "link set inner up",
            "addr add 198.51.100.1/24 dev inner",
            "addr add 2001:db8:2::1/64 dev inner nodad",
        )
        self.host.ip(
            "link set inner up",
            "addr add 198.51.100.2/24 dev inner",
            "addr add 2001:db8:2::2/64 dev inner nodad",
            "route add default via 198.51.100.1",
            "route add ::/0 via 2001:db8:2::1",
        )
