"""With the kill switch on nothing leaves beside the tunnel, whatever happens; then all is open.

Programs of the client and of a container behind it send all the time, by TCP, UDP and ICMP over
both IP versions; a capture on the client's cable counts what is neither QUIC to the gateway nor
what keeps the link alive. ``pytest -s`` shows the counts, a line for each event.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from qvpn_core.client import control
from tests.world import Capture, Namespace, Seen, plan, probes
from tests.world.machine import Machine
from tests.world.packets import ICMP, ICMP6, TCP, UDP
from tests.world.senders import Senders
from tests.world.vpn import GATEWAY_PORT, Vpn, VpnClient, until

pytestmark = [pytest.mark.netns, pytest.mark.timeout(300)]

LAN = plan.LANS[0]
CONTAINER = "172.17.0.2", "fd17::2"
#: Everything, but for the network of the containers, which would be out of reach else.
ALL = ("--all", "--except", "172.17.0.0/24", "fd17::/64")
#: Neighbour discovery and multicast listener reports (RFC 4861, RFC 3810).
LINK_CHATTER = frozenset({130, 131, 132, 133, 134, 135, 136, 143})
GATEWAYS = (plan.GATEWAY4, plan.GATEWAY6)
#: The question for the gateway's own name (RFC 1035 section 3.1).
GATEWAY_NAME = b"\x07gateway\x04test\x00"
PORTAL_CHECK = b"\x11connectivitycheck\x07gstatic\x03com\x00"
#: Seconds that an event lasts that has no end of its own: dozens of packets of each kind.
WHILE = 0.7

KINDS = {
    (version, protocol): name
    for version in (4, 6)
    for protocol, name in ((UDP, "udp"), (TCP, "tcp"), (ICMP if version == 4 else ICMP6, "icmp"))
}


def is_transport(seen: Seen) -> bool:
    packet = seen.packet
    ours = packet.protocol in (UDP, TCP) and packet.destination_port == GATEWAY_PORT
    return not seen.outgoing and ours and packet.destination in GATEWAYS


def is_leak(seen: Seen) -> bool:
    """Whether the client, or who is behind it, sent this beside the tunnel."""
    packet = seen.packet
    if seen.outgoing or is_transport(seen):  # the former is of the router, to the client
        return False
    if packet.destination_port == plan.DNS_PORT:
        # A gateway's name, and that of the check for a captive portal when no gateway answers.
        if GATEWAY_NAME in packet.data or PORTAL_CHECK in packet.data:
            return False
    return not (packet.protocol == ICMP6 and packet.data[packet.transport] in LINK_CHATTER)


def since_the_first_to_the_gateway() -> Callable[[Seen], bool]:
    """`is_leak` from the first packet to the gateway on; before it nothing is promised."""
    connecting = False

    def match(seen: Seen) -> bool:
        nonlocal connecting
        connecting = connecting or is_transport(seen)
        return connecting and is_leak(seen)

    return match


class Cable:
    """The client's cable with programs that send all the time, at both places behind it."""

    def __init__(self, vpn: Vpn, container: Namespace) -> None:
        self.vpn = vpn
        self.host = vpn.world.client
        self.container = container

    @contextlib.contextmanager
    def tight(self, event: str, match: Callable[[Seen], bool] = is_leak) -> Iterator[None]:
        """Nothing leaks while the block runs, during which something is tried."""
        senders = [Senders(host, plan.BETA) for host in (self.host, self.container)]
        begin = time.monotonic()
        with Capture(self.vpn.world.router, "lan0", match) as capture:
            with contextlib.ExitStack() as stack:
                for sender in senders:
                    stack.enter_context(sender)
                yield
                until(lambda: all(sender.rounds >= 20 for sender in senders), "packets are sent")
        tried = sum(sender.rounds for sender in senders) * len(KINDS)
        seconds = time.monotonic() - begin
        print(f"leaks: {event:<34} {capture.count:>3} of {tried:>5} packets in {seconds:4.1f} s")
        assert capture.seen == [], event

    def leaking(self) -> set[tuple[str, str]]:
        """(who, what) of everything that leaves now beside a tunnel: the capture can see."""
        with (
            Senders(self.host, plan.BETA) as one,
            Senders(self.container, plan.BETA) as other,
            Capture(self.vpn.world.router, "lan0", is_leak) as capture,
        ):
            until(lambda: min(one.rounds, other.rounds) >= 20, "packets are sent")
        return {
            (
                "container" if seen.packet.source in CONTAINER else "client",
                f"{KINDS[seen.packet.version, seen.packet.protocol]}{seen.packet.version}",
            )
            for seen in capture.seen
            if (seen.packet.version, seen.packet.protocol) in KINDS
        }

    def helper(self) -> int:
        """The process of the client's helper."""
        done = self.vpn.world.router.run(["ip", "netns", "pids", self.host.name])
        for pid in map(int, done.stdout.split()):
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                if b"qvpn_core.helper" in words and b"session" in words:
                    return pid
        raise AssertionError("there is no helper")


#: Everybody's everything, when nothing blocks.
EVERYTHING = {
    (who, f"{name}{version}")
    for who in ("client", "container")
    for (version, _), name in KINDS.items()
}


@pytest.fixture(scope="module")
def cable(namespaces_work: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cable]:
    """A world whose client forwards for a container, as container engines set it up."""
    with (
        Vpn(tmp_path_factory.mktemp("leaks"), relay=False) as vpn,
        Namespace("container") as container,
    ):
        host = vpn.world.client
        host.ip(
            f"link add c0 type veth peer name eth0 netns {container.name}",
            "link set c0 up",
            "addr add 172.17.0.1/24 dev c0",
            "addr add fd17::1/64 dev c0 nodad",
        )
        for name in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
            host.sysctl(name, 1)
        container.ip(
            "link set eth0 up",
            f"addr add {CONTAINER[0]}/24 dev eth0",
            f"addr add {CONTAINER[1]}/64 dev eth0 nodad",
            "route add default via 172.17.0.1",
            "route add ::/0 via fd17::1",
        )
        # So that a packet shows who sent it, the container is not masqueraded on the cable.
        host.nft(
            "table inet engine {\n chain post {\n type nat hook postrouting priority srcnat\n"
            ' oifname "qvpn0" masquerade\n }\n}\n'
        )
        vpn.world.router.ip("route add 172.17.0.0/24 via " + plan.CLIENT4)
        yield Cable(vpn, container)


@pytest.fixture
def client(cable: Cable) -> Iterator[VpnClient]:
    client = cable.vpn.clients[0]
    yield client
    client.command("unlock", check=False)
    cable.vpn.settle()


def reachable(cable: Cable, seen_as: str) -> None:
    """The internet is reached from the client, which appears there as `seen_as`."""
    assert probes.source_seen(cable.host, plan.ALPHA.v4) == seen_as
    version6 = probes.source_seen(cable.host, plan.ALPHA.v6)
    assert version6 == (plan.GATEWAY6 if seen_as == plan.GATEWAY4 else plan.CLIENT6)


def test_nothing_leaks_from_the_first_packet_to_the_gateway_until_it_is_released(
    cable: Cable, client: VpnClient
) -> None:
    world, gateway, host = cable.vpn.world, cable.vpn.gateway, cable.host
    assert cable.leaking() == EVERYTHING, "the capture must be able to see a leak"

    with cable.tight("connect", since_the_first_to_the_gateway()):
        client.up(*ALL, "--kill-switch", "on")
    reachable(cable, plan.GATEWAY4)
    status = client.status()
    assert (status["kill_switch"], status["firewall"]) == ("on", "block")

    with cable.tight("connected"):
        time.sleep(WHILE)
        assert probes.source_seen(cable.container, plan.ALPHA.v4) == plan.GATEWAY4

    with cable.tight("gateway restart"):
        gateway.stop()
        client.wait_for("reconnecting")
        time.sleep(WHILE)
        gateway.start()
        client.wait_for("connected")
    reachable(cable, plan.GATEWAY4)

    with cable.tight("interface flap"):
        host.set_link("eth0", up=False)
        time.sleep(WHILE)
        world.move_client(2)
        until(lambda: online(cable), "the tunnel goes on")

    with cable.tight("address change"):
        world.move_client(3)
        time.sleep(WHILE)
        world.move_client(2)
        until(lambda: online(cable), "the tunnel goes on")

    with cable.tight("DHCP option 121 routes"):
        routes = [f"{net} via {LAN.router4}" for net in ("0.0.0.0/1", plan.NETS[1][0])]
        routes += [f"{plan.BETA.v6}/128 via {LAN.router6}", f"2000::/3 via {LAN.router6}"]
        host.ip(*(f"route add {route}" for route in routes))
        time.sleep(WHILE)
        reachable(cable, plan.GATEWAY4)
        host.ip(*(f"route del {route}" for route in routes))

    with cable.tight("default route without a device"):
        host.ip("route del default", f"route add default via {LAN.router4}")
        assert "dev eth0" in host.ip("route show default"), "not by way of the tunnel"
        host.ip("route del ::/0", f"route add ::/0 via {LAN.router6}")
        assert "dev eth0" in host.run(["ip", "-6", "route", "show", "default"]).stdout
        reachable(cable, plan.GATEWAY4)

    with cable.tight("another LAN"):
        host.ip("addr add 203.0.113.66/26 dev eth0", "addr add 198.51.100.66/24 dev eth0")
        time.sleep(WHILE)
        host.ip("addr del 203.0.113.66/26 dev eth0", "addr del 198.51.100.66/24 dev eth0")

    with cable.tight("the helper is killed, reconnect"):
        os.kill(cable.helper(), signal.SIGKILL)
        until(lambda: client.peek().get("state") != "connected", "the loss is noticed")
        client.wait_for("connected")
    reachable(cable, plan.GATEWAY4)

    with cable.tight("the client is killed"):
        pid = client.agent()
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        until(lambda: "qvpn0" not in host.ip("link show"), "the tunnel is gone")
        time.sleep(WHILE)
        status = client.status()
        assert (status["state"], status["firewall"]) == ("disconnected", "block")
        assert "kill switch: on" in client.command("status").stdout
        assert "qvpn unlock" in client.command("routes", "explain", plan.BETA.v4).stdout

    client.command("unlock")
    reachable(cable, plan.ROUTER4)
    assert cable.leaking() == EVERYTHING


def online(cable: Cable) -> bool:
    try:
        return probes.source_seen(cable.host, plan.ALPHA.v4, 1.0) == plan.GATEWAY4
    except OSError:
        return False


def test_a_kill_switch_is_changed_under_a_live_tunnel(
    cable: Cable, client: VpnClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QVPN_RUNTIME_DIR", client.environment["QVPN_RUNTIME_DIR"])
    client.up(*ALL)
    since = client.status()["since"]
    for mode, firewall in (("on", "block"), ("off", "open"), ("on", "block")):
        assert control.ask(control.KillSwitchRequest(mode)) == control.Done()
        status = client.status()
        assert (status["kill_switch"], status["firewall"]) == (mode, firewall)
        assert ("qvpn_kill_switch" in cable.host.run(["nft", "list", "tables"]).stdout) == (
            mode == "on"
        )
    assert (status["state"], status["since"]) == ("connected", since)
    reachable(cable, plan.GATEWAY4)
    with cable.tight("the client is killed"):
        pid = client.agent()
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        until(lambda: "qvpn0" not in cable.host.ip("link show"), "the tunnel is gone")
        time.sleep(WHILE)
    client.command("unlock")
    reachable(cable, plan.ROUTER4)


def test_a_tunnel_that_is_given_up_stays_blocked_until_down(
    cable: Cable, client: VpnClient
) -> None:
    client.up(*ALL, "--kill-switch", "on")
    with cable.tight("the device is revoked"):
        cable.vpn.gateway.command("revoke", "first")
        client.wait_for("blocked")
        time.sleep(WHILE)
    assert client.status()["reason"] == "authentication"
    with cable.tight("another attempt, in vain"):
        again = client.command("up", "home", "--kill-switch", "on", check=False)
    assert again.returncode == 1
    assert "does not know this device" in again.stderr
    with cable.tight("another attempt, with success"):
        client.add_profile(cable.vpn.gateway.token("anew"), "anew")
        client.up(*ALL, "--kill-switch", "on", name="anew")
    reachable(cable, plan.GATEWAY4)
    assert client.status()["profile"] == "anew"
    assert "end it first" in client.command("up", "home", check=False).stderr
    client.down()
    reachable(cable, plan.ROUTER4)
    assert cable.leaking() == EVERYTHING
    # A first attempt that fails blocks as well, and says how to get out.
    with cable.tight("a first attempt that fails", since_the_first_to_the_gateway()):
        failed = client.command("up", "home", "--kill-switch", "on", check=False)
    assert failed.returncode == 1
    assert failed.stderr.count("\n") == 1
    assert "the kill switch holds until: qvpn down" in failed.stderr
    with cable.tight("blocked"):
        time.sleep(WHILE)
    client.down()
    reachable(cable, plan.ROUTER4)


class Inside(Namespace):
    """The network namespace of a machine, whose programs also see the machine's files."""

    def __init__(self, machine: Machine) -> None:
        self.__dict__.update(machine.network.__dict__)
        self.command = machine.command  # type: ignore[method-assign]


def test_always_blocks_also_between_sessions_and_after_a_reboot(
    cable: Cable, tmp_path: Path
) -> None:
    vpn = cable.vpn
    with Machine(cable.host, tmp_path) as machine:
        client = VpnClient(Inside(machine), tmp_path / "client")
        named = vpn.gateway.token("always")
        client.add_profile(
            type(named)(named.name, named.token, f"gateway.test:{GATEWAY_PORT}", named.pin)
        )
        try:
            client.up(*ALL, "--kill-switch", "always")
            with cable.tight("disconnect"):
                client.down()
                time.sleep(WHILE)
            assert client.status()["kill_switch"] == "always"
            with cable.tight("connect by a name, then disconnect"):
                client.up(*ALL, "--kill-switch", "always")
                reachable(cable, plan.GATEWAY4)
                client.down()
            # A reboot: what the kernel knew and what was in /run is gone.
            machine.sh("nft delete table inet qvpn_kill_switch; rm -rf /run/qvpn")
            assert cable.leaking()
            machine.run(sys.executable, "-P", "-m", "qvpn_core.helper", "boot")
            with cable.tight("after a reboot"):
                time.sleep(WHILE)
                assert client.status()["firewall"] == "block"
            client.command("unlock")
            reachable(cable, plan.ROUTER4)
            assert cable.leaking() == EVERYTHING
            machine.run(sys.executable, "-P", "-m", "qvpn_core.helper", "boot")
            reachable(cable, plan.ROUTER4)
        finally:
            client.command("unlock", check=False)
            client.close()
