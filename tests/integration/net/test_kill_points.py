"""SIGKILL of the client, of the helper and of both, at every step of connecting and disconnecting.

Afterwards the network is as it was: at once when the helper is left, otherwise after the next start
or after `qvpn unlock`. With ``-s`` the table of kill points is printed.
"""

from __future__ import annotations

import os
import select
import socket
from contextlib import ExitStack, suppress
from ipaddress import ip_network
from typing import TYPE_CHECKING, Final

import pytest

from qvpn_core.client.planner import RoutePolicy
from qvpn_core.helper import protocol
from qvpn_core.helper.protocol import Prefixes
from tests.integration.net.raw_helper import HELLO, PATIENCE, RawHelper, apply, unlock

if TYPE_CHECKING:
    from conftest import Namespace

pytestmark = pytest.mark.netns

KILL_SWITCH = protocol.SetFirewall(
    protocol.KillSwitch(protected=None, exempt=Prefixes(), lan=False, always=False)
)
#: A session with everything in it, message by message.
STEPS: Final[tuple[tuple[str, protocol.Request], ...]] = (
    ("greeting", HELLO),
    ("kill switch on", KILL_SWITCH),
    ("marked socket", protocol.OpenSocket("ipv4", "udp")),
    ("device", protocol.OpenTun(1300)),
    ("everything in the tunnel", apply()),
    ("another MTU", apply(mtu=1400)),
    ("some networks only", apply(RoutePolicy("only", (ip_network("198.51.100.0/24"),)))),
    ("portal exception", protocol.SignIn(5)),
    ("network released", protocol.Detach()),
    ("device again", protocol.OpenTun(1300)),
    ("everything again", apply()),
    ("kill switch off", protocol.SetFirewall(None)),
    ("closed", protocol.Close()),
)
#: What mends a killed helper's session, in turn.
CURES: Final = ("next start", "unlock")

#: Changes of the kernel from one kill in the middle to the next. Set it to 1 to try them all.
STRIDE: Final = 3


@pytest.fixture
def host(namespace: Namespace, neighbour: Namespace) -> Namespace:
    namespace.ip("route add default via 192.0.2.2")
    namespace.ip("-6 route add default via 2001:db8:1::2")
    return namespace


def after(helper: RawHelper, steps: int, held: ExitStack) -> None:
    """The session after so many messages; its client holds what it was given."""
    for _, request in STEPS[:steps]:
        helper.send(protocol.encode(request))
        reply, descriptors = helper.receive()
        assert not isinstance(reply, protocol.Failed), reply
        for descriptor in descriptors:
            held.callback(os.close, descriptor)


def cure(how: str) -> None:
    """What a user does next."""
    if how == "unlock":
        unlock()
        return
    with RawHelper() as helper:
        helper.hello()
        # The client that follows says so when its profile has no kill switch.
        helper.say(protocol.SetFirewall(None))
        helper.say(protocol.Close())


def test_the_client_is_killed_after_every_message(host: Namespace) -> None:
    before = host.snapshot()
    for steps in range(1, len(STEPS) + 1):
        with RawHelper() as helper:
            with ExitStack() as held:  # the kernel closes a dead client's descriptors
                after(helper, steps, held)
            helper.hang_up()
        if "qvpn_kill_switch" in host.sh("nft list tables"):
            # A crash must not open what the user wanted shut; the rest is as before already.
            assert "9484" not in host.ip("rule")
            assert "qvpn0" not in host.ip("link")
            unlock()
        assert host.snapshot() == before, f"killed after: {STEPS[steps - 1][0]}"
    print(f"\nclient killed after each of {len(STEPS)} messages: byte-identical")


@pytest.mark.parametrize("victims", ["the helper", "both"])
@pytest.mark.parametrize("turn", [0, 1])
def test_the_helper_is_killed_after_every_message(host: Namespace, victims: str, turn: int) -> None:
    before = host.snapshot()
    for steps in range(1, len(STEPS)):
        how = CURES[(steps + turn) % 2]
        with RawHelper() as helper, ExitStack() as held:
            after(helper, steps, held)
            helper.kill()
            if victims == "the helper":
                cure(how)  # while the client still holds the device
        if victims == "both":
            cure(how)
        assert host.snapshot() == before, f"killed after: {STEPS[steps - 1][0]}, {how}"
    print(f"\n{victims} killed after each of {len(STEPS) - 1} messages: byte-identical")


class Changes:
    """Tells, one after the other, of each change that is made to this namespace's network."""

    def __init__(self) -> None:
        self._sockets = []
        for protocol_, groups in ((socket.NETLINK_ROUTE, (1, 5, 7, 8, 9, 11, 19)), (12, (7,))):
            sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol_)
            sock.bind((0, sum(1 << group - 1 for group in groups)))
            self._sockets.append(sock)

    def wait(self, helper: RawHelper) -> bool:
        """Wait for the next change; False when the helper answers first."""
        ready, _, _ = select.select([*self._sockets, helper.socket], [], [], PATIENCE)
        for sock in ready:
            if sock is not helper.socket:
                sock.recv(1 << 16)
                return True
        return False

    def close(self) -> None:
        for sock in self._sockets:
            sock.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    "request_",
    [apply(), apply(RoutePolicy("only", (ip_network("10.0.0.0/8"),))), protocol.Detach()],
    ids=["connecting", "changing", "disconnecting"],
)
def test_the_helper_is_killed_in_the_middle_of_its_work(
    host: Namespace, request_: protocol.Request
) -> None:
    """The first change that the kernel tells of is the last, the fourth, the seventh, and so on."""
    before = host.snapshot()
    number, middle = 1 - STRIDE, True
    while middle:
        number += STRIDE
        with RawHelper() as helper, ExitStack() as held:
            after(helper, 4 if request_ == apply() else 5, held)
            changes = Changes()
            held.callback(changes.close)
            helper.send(protocol.encode(request_))
            for _ in range(number):
                middle = middle and changes.wait(helper)
            helper.kill()
        cure(CURES[number % 2])
        assert host.snapshot() == before, f"killed at change {number}"
    assert number > 3
    print(f"\nthe helper killed in the middle, until change {number}: byte-identical")


@pytest.mark.slow
def test_the_helper_is_killed_while_it_undoes(host: Namespace) -> None:
    before = host.snapshot()
    number, middle = 1 - STRIDE, True
    while middle:
        number += STRIDE
        with RawHelper() as helper:
            with ExitStack() as held:
                after(helper, 5, held)
                changes = Changes()
            helper.socket.shutdown(socket.SHUT_WR)
            for _ in range(number):
                middle = middle and changes.wait(helper)
            changes.close()
            with suppress(ProcessLookupError):
                helper.process.kill()
        cure(CURES[number % 2])
        assert host.snapshot() == before, f"killed at change {number}"
    assert number > 3
    print(f"\nthe helper killed while undoing, until change {number}: byte-identical")
