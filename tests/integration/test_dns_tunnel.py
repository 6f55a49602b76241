"""Names through a tunnel, looked up for real: which server saw the question, and who asked it.

The machine is the world's client with files and resolvers of its own. The company's name server is
behind the tunnel, the provider's beside it; both know all names.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from qvpn_core.net.dns import DnsPlan
from qvpn_core.net.dns.keeper import DnsKeeper
from tests.world import plan, probes
from tests.world.machine import Machine, unpack, until
from tests.world.namespaces import Namespace
from tests.world.vpn import Vpn, VpnClient

pytestmark = pytest.mark.netns


class Inside(Namespace):
    """The network namespace of a machine, whose programs also see the machine's files."""

    def __init__(self, machine: Machine) -> None:
        self.__dict__.update(machine.network.__dict__)
        self._machine = machine

    def command(self, argv: Sequence[str]) -> list[str]:
        return self._machine.command(argv)


@pytest.fixture(scope="module")
def resolved(namespaces_work: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked package of systemd-resolved, or skips."""
    directory = tmp_path_factory.mktemp("resolved")
    if reason := unpack(directory, "systemd-resolved"):
        pytest.skip(reason)
    return directory


class Lookups:
    """A machine with a profile, and the name servers' view of what it asks."""

    resolved: subprocess.Popen[Any]

    def __init__(self, vpn: Vpn, machine: Machine, directory: Path) -> None:
        self.vpn = vpn
        self.machine = machine
        self.client = VpnClient(Inside(machine), directory / "client")

    def ask(self, name: str) -> tuple[str, set[tuple[str, str]]]:
        """The address found, and (who asked, which server) of every question about the name."""
        before = len(probes.dns_queries(self.vpn.world.internet))
        found = self.machine.run("getent", "ahostsv4", name, check=False).stdout.split()
        asked = probes.dns_queries(self.vpn.world.internet)[before:]
        return found[0] if found else "", {(a, at) for a, what, _, _, at in asked if what == name}

    @property
    def beside(self) -> set[tuple[str, str]]:
        """Asked of the provider, beside the tunnel."""
        return {(plan.ROUTER4, plan.PROVIDER_DNS.v4)}

    @property
    def through(self) -> set[tuple[str, str]]:
        """Asked of the company, through the tunnel."""
        return {(plan.GATEWAY4, plan.COMPANY_DNS.v4)}


@pytest.fixture(scope="module")
def world(
    namespaces_work: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Vpn, Path]]:
    """A running gateway that offers the company's name server."""
    directory = tmp_path_factory.mktemp("dns-tunnel")
    with Vpn(directory, "--dns", plan.COMPANY_DNS.v4, relay=False) as vpn:
        yield vpn, directory


@pytest.fixture
def plain(world: tuple[Vpn, Path], tmp_path: Path) -> Iterator[Lookups]:
    """A machine without any resolver: programs read /etc/resolv.conf."""
    vpn, _ = world
    with Machine(vpn.world.client, tmp_path) as machine:
        machine.sh(f"echo nameserver {plan.PROVIDER_DNS.v4} > /etc/resolv.conf")
        yield from _enrolled(vpn, machine, tmp_path)


@pytest.fixture
def modern(world: tuple[Vpn, Path], resolved: Path, tmp_path: Path) -> Iterator[Lookups]:
    """A machine with systemd-resolved, which knows the provider's name server from its card."""
    vpn, _ = world
    with Machine(vpn.world.client, tmp_path, resolved) as machine:
        machine.start_bus()
        service = machine.start_resolved()
        machine.sh("ln -sf ../run/systemd/resolve/stub-resolv.conf /etc/resolv.conf")
        machine.sh(f"resolvectl dns eth0 {plan.PROVIDER_DNS.v4}; resolvectl llmnr eth0 no")
        for lookups in _enrolled(vpn, machine, tmp_path):
            lookups.resolved = service
            yield lookups


def _enrolled(vpn: Vpn, machine: Machine, directory: Path) -> Iterator[Lookups]:
    lookups = Lookups(vpn, machine, directory)
    with lookups.client:
        lookups.client.add_profile(vpn.gateway.token(directory.name.lower().replace("_", "-")))
        yield lookups


def state(machine: Machine) -> str:
    """Everything that says how names are resolved."""
    return machine.sh(
        "ls -li --full-time /etc/*resolv.conf*; cat /etc/resolv.conf;"
        "if [ -e /run/dbus/system_bus_socket ]; then"
        " for what in dns domain default-route; do resolvectl $what eth0; done;"
        " cat /run/systemd/resolve/resolv.conf; fi"
    )


def test_with_a_plain_file_all_names_are_asked_through_the_tunnel(plain: Lookups) -> None:
    before = state(plain.machine)
    assert plain.ask("www.beta.test") == (plan.BETA.v4, plain.beside)
    plain.client.up("--all")
    assert plain.ask("www.beta.test") == (plan.BETA.v4, plain.through)
    plain.client.down()
    assert state(plain.machine) == before
    assert plain.ask("www.beta.test") == (plan.BETA.v4, plain.beside)


def test_with_systemd_resolved_all_names_are_asked_through_the_tunnel(modern: Lookups) -> None:
    before = state(modern.machine)
    assert modern.ask("www.beta.test") == (plan.BETA.v4, modern.beside)
    modern.client.up("--all")
    # A fresh name, which no cache knows.
    assert modern.ask("files.beta.test") == (plan.SITES[4].v4, modern.through)
    assert "systemd-resolved" in str(modern.client.status())
    modern.client.down()
    assert state(modern.machine) == before
    assert modern.ask("gateway.test") == (plan.GATEWAY4, modern.beside)


def test_internal_names_are_asked_through_the_tunnel_and_others_beside_it(
    modern: Lookups,
) -> None:
    modern.client.up("--only", "192.0.2.0/24")
    index = int(modern.machine.sh("cat /sys/class/net/qvpn0/ifindex"))
    keeper = DnsKeeper("qvpn0", index, lambda records: None)
    split = DnsPlan((ip_address(plan.COMPANY_DNS.v4),), ("alpha.test",), ("alpha.test",))
    report = modern.machine.call(keeper.set, split)
    assert (report.backend, report.error) == ("systemd-resolved", None)
    assert modern.ask("www.alpha.test") == (plan.ALPHA.v4, modern.through)
    assert modern.ask("www.beta.test") == (plan.BETA.v4, modern.beside)
    # A single label is completed with the company's domain and asked nowhere else.
    found = modern.machine.run("getent", "ahostsv4", "files").stdout.split()[0]
    assert found == plan.SITES[1].v4
    assert modern.machine.call(keeper.remove) == ()
    assert modern.ask("dns.alpha.test") == (plan.COMPANY_DNS.v4, modern.beside)


def test_for_some_networks_only_a_gateway_without_domains_is_not_asked(modern: Lookups) -> None:
    modern.client.up("--only", "192.0.2.0/24")
    assert modern.ask("www.alpha.test") == (plan.ALPHA.v4, modern.beside)


def test_after_a_kill_of_the_agent_names_are_asked_as_before(plain: Lookups) -> None:
    before = state(plain.machine)
    plain.client.up("--all")
    agent = plain.client.agent()
    assert agent is not None
    subprocess.run(["kill", "-KILL", str(agent)], check=True)
    until(lambda: state(plain.machine) == before, "the file as before")
    assert plain.ask("www.beta.test") == (plan.BETA.v4, plain.beside)


def test_systemd_resolved_may_lose_its_memory_in_the_middle_of_a_session(
    modern: Lookups,
) -> None:
    modern.client.up("--all")
    modern.machine.stop(modern.resolved)
    modern.machine.sh("rm -rf /run/systemd/resolve/*")
    modern.machine.start_resolved()
    modern.machine.sh(f"resolvectl dns eth0 {plan.PROVIDER_DNS.v4}")
    names = iter(f"{number}.alpha.test" for number in range(1000))
    until(lambda: modern.ask(next(names))[1] == modern.through, "names through the tunnel again")


def test_a_profile_can_leave_name_servers_alone(plain: Lookups) -> None:
    file = plain.client.directory / "config" / "profiles" / "home.toml"
    file.write_text(file.read_text().replace("[dns]\n", "[dns]\nuse = false\n"))
    before = state(plain.machine)
    plain.client.up("--all")
    # Everything is in the tunnel, the questions to the provider's server included.
    asked = {(plan.GATEWAY4, plan.PROVIDER_DNS.v4)}
    assert plain.ask("www.beta.test") == (plan.BETA.v4, asked)
    assert state(plain.machine) == before
    assert "profile" in plain.client.status()["resolver"]


def test_the_kill_switch_keeps_names_from_a_network_that_claims_their_domain(
    modern: Lookups,
) -> None:
    # As a DHCP server can: systemd-resolved prefers the link whose domain fits best, and sends
    # out of it whatever the routes say.
    modern.machine.sh("resolvectl domain eth0 beta.test")
    modern.client.up("--all")
    assert modern.ask("www.beta.test") == (plan.BETA.v4, modern.beside)
    modern.client.down()
    modern.client.up("--all", "--kill-switch", "on")
    assert not modern.ask("files.beta.test")[1] & modern.beside
    assert modern.ask("www.alpha.test") == (plan.ALPHA.v4, modern.through)
