"""A small internet in network namespaces: what integration tests, benchmarks and the demo run in.

::

    from tests.world import World, plan, probes

    with World() as world:
        world.relay.set(delay=0.02, loss=0.01)
        probes.source_seen(world.client, plan.ALPHA.v4)   # "203.0.113.2": the NAT's address

Needs root, /dev/net/tun, iproute2 and nftables; `unavailable()` says what is missing. Knows nothing
about qvpn and nothing about pytest.
"""

from tests.world import plan, probes
from tests.world.capture import Capture, Seen
from tests.world.impairment import Impairment
from tests.world.namespaces import Namespace, WorldError, leftovers, own, unavailable
from tests.world.packets import Packet
from tests.world.relay import Relay
from tests.world.snapshot import snapshot
from tests.world.topology import Router, World

__all__ = [
    "Capture",
    "Impairment",
    "Namespace",
    "Packet",
    "Relay",
    "Router",
    "Seen",
    "World",
    "WorldError",
    "leftovers",
    "own",
    "plan",
    "probes",
    "snapshot",
    "unavailable",
]
