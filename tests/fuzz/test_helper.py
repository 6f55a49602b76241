"""Bytes from a hostile client into the helper, from a hostile helper to its client, from a disk.

Only the documented errors come out; what is accepted survives encoding and parsing again.
"""

from __future__ import annotations

import struct
from contextlib import suppress

import msgspec
import pytest

from qvpn_core.helper import protocol, wire
from qvpn_core.helper.errors import NotAllowed
from qvpn_core.helper.protocol import Prefixes, ProtocolError
from qvpn_core.helper.watch import nftables_losses, rtnetlink_losses
from qvpn_core.net.records import LEFTOVERS, Record
from qvpn_core.net.sysctl import RestoreSetting
from tests.fuzz.harness import Target, fuzz

PREFIXES = Prefixes(v4=b"\x08\x0a\0\0\0\x20\xc0\0\2\1", v6=b"\x40\xfd\x86" + bytes(14))
NETWORK = protocol.Network(
    ("10.86.0.2", "fd86::2"),
    1300,
    (protocol.Routes("tunnel", "advertised", PREFIXES),),
    (("192.0.2.2", 443),),
)
REQUESTS: tuple[protocol.Request, ...] = (
    protocol.Hello(1),
    protocol.OpenTun(1300),
    protocol.OpenSocket("ipv6", "udp"),
    protocol.Apply(NETWORK, protocol.Dns(("10.0.0.53",), (".", "corp.example"), ("a.example",))),
    protocol.Detach(),
    protocol.SetFirewall(protocol.KillSwitch(PREFIXES, Prefixes(), True, False)),
    protocol.SignIn(60),
    protocol.Report(),
    protocol.Close(),
    protocol.Rest(),
)
STATE = protocol.DnsState("file", "no resolver is in charge", None)
REPLIES: tuple[protocol.Reply, ...] = (
    protocol.Welcome(),
    protocol.Opened("qvpn0", 7),
    protocol.Applied(STATE),
    protocol.Reported(("10.86.0.2",), 1300, 2, STATE, "on", 3),
    protocol.Closed(("something stays",)),
    protocol.Closed((), resting=True),
    protocol.Failed("network-setup", "it does not work", "try again"),
    protocol.Goodbye(()),
)


def run_request(data: bytes) -> None:
    with suppress(ProtocolError):
        request = protocol.decode_request(data)
        assert protocol.decode_request(protocol.encode(request)) == request
        with suppress(NotAllowed):
            if isinstance(request, protocol.Apply):
                plan = wire.unpack_network(request.network)
                assert wire.unpack_network(wire.pack_network(plan)).addresses == plan.addresses
                if request.dns is not None:
                    wire.unpack_dns(request.dns)
            elif isinstance(request, protocol.SetFirewall) and request.kill_switch:
                wire.unpack_kill_switch(request.kill_switch)


def run_reply(data: bytes) -> None:
    with suppress(ProtocolError):
        reply = protocol.decode_reply(data)
        assert protocol.decode_reply(protocol.encode(reply)) == reply


def run_record(data: bytes) -> None:
    with suppress(ValueError, RecursionError):
        record = msgspec.json.decode(data, type=Record)
        assert msgspec.json.decode(msgspec.json.encode(record), type=Record) == record


def run_netlink(data: bytes) -> None:
    set(rtnetlink_losses(data, 7))
    set(nftables_losses(data))


RULE = struct.pack("=IHHII", 16 + 12 + 8, 33, 0, 0, 0) + bytes(12) + struct.pack("=HHI", 8, 6, 9484)
TABLE = struct.pack("=IHHII", 16 + 4 + 16, 0xA02, 0, 0, 0) + bytes(4) + b"\x10\0\1\0qvpn_client\0"
RECORDS = (*LEFTOVERS, RestoreSetting("net/ipv4/conf/all/src_valid_mark", "0", "1"))

TARGETS = [
    Target("helper requests", run_request, [protocol.encode(request) for request in REQUESTS]),
    Target("helper replies", run_reply, [protocol.encode(reply) for reply in REPLIES]),
    Target("journal records", run_record, [msgspec.json.encode(record) for record in RECORDS]),
    Target("netlink news", run_netlink, [RULE, TABLE, RULE + TABLE]),
]


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_parsers_take_anything(target: Target) -> None:
    assert fuzz(target) > 0


def test_the_seeds_mean_something() -> None:
    assert set(rtnetlink_losses(RULE, 7))
    assert set(nftables_losses(TABLE))
