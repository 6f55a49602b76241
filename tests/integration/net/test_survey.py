"""The survey of a machine's network, against what was configured."""

from __future__ import annotations

import os
import subprocess
from ipaddress import ip_network
from typing import TYPE_CHECKING

import pytest

from qvpn_core.net.names import CLIENT_TUN, RULE_PRIORITY
from qvpn_core.net.survey import Attached, Survey, survey

if TYPE_CHECKING:
    from conftest import Namespace

pytestmark = pytest.mark.netns


def test_a_machine_without_links_has_nothing(namespace: Namespace) -> None:
    assert survey() == Survey()


def test_networks_of_links_are_found_and_tunnels_loopback_and_link_local_are_not(
    namespace: Namespace, neighbour: Namespace
) -> None:
    namespace.ip("link add br0 type bridge")
    namespace.ip("address add 172.17.0.1/16 dev br0")
    namespace.ip("link set br0 up")
    namespace.ip("link add off0 type bridge")
    namespace.ip("address add 10.1.0.1/16 dev off0")
    namespace.ip(f"tuntap add {CLIENT_TUN} mode tun")
    namespace.ip(f"address add 10.86.0.2/24 dev {CLIENT_TUN}")
    namespace.ip(f"link set {CLIENT_TUN} up")
    namespace.ip("address add 192.0.2.99/32 dev eth0")
    namespace.ip("address add 192.0.2.100/24 dev eth0")  # of a network that it has already
    assert survey().attached == (
        Attached("eth0", ip_network("192.0.2.0/24")),
        Attached("br0", ip_network("172.17.0.0/16")),
        Attached("eth0", ip_network("2001:db8:1::/64")),
    )


def test_rules_of_others_that_decide_before_ours_are_found(namespace: Namespace) -> None:
    namespace.ip("rule add priority 5270 table 52")
    namespace.ip("-6 rule add priority 5270 table 52")
    namespace.ip("rule add priority 20000 table 52")
    namespace.ip(f"rule add priority {RULE_PRIORITY} table 9484 protocol 148")
    assert survey().rules_before == (5270,)


def test_anybody_may_look(namespace: Namespace, neighbour: Namespace) -> None:
    child = os.fork()
    if child == 0:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
        os._exit(0 if survey().attached else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_many_addresses_are_found_too(namespace: Namespace, neighbour: Namespace) -> None:
    lines = "".join(f"address add 10.{i // 250}.{i % 250}.1/24 dev eth0\n" for i in range(1000))
    subprocess.run(["ip", "-batch", "-"], input=lines, text=True, check=True)
    assert len(survey().attached) == 1002
