"""The helper's process: who may speak to it, what it refuses, and that it always cleans up."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest

from qvpn_core.client.planner import RoutePolicy
from qvpn_core.helper import protocol, rundir
from qvpn_core.helper.protocol import Failed, Prefixes
from qvpn_core.net.names import FWMARK
from tests.integration.net.raw_helper import HELLO, PATIENCE, ROOT, RawHelper, apply, unlock
from tests.world.vpn import until

if TYPE_CHECKING:
    from conftest import Namespace

pytestmark = pytest.mark.netns
KILL_SWITCH = protocol.SetFirewall(
    protocol.KillSwitch(protected=None, exempt=Prefixes(), lan=False, always=False)
)


@pytest.fixture
def host(namespace: Namespace, neighbour: Namespace) -> Iterator[Namespace]:
    """A namespace with a LAN and a default route; afterwards it must be as it was."""
    namespace.ip("route add default via 192.0.2.2")
    namespace.ip("-6 route add default via 2001:db8:1::2")
    before = namespace.snapshot()
    yield namespace
    assert namespace.snapshot() == before
    assert files() == []


def files() -> list[str]:
    """Ours in /run/qvpn."""
    name = f"net-{rundir.namespace()}"
    return sorted(path.name for path in rundir.DIRECTORY.glob(f"*{name}.*"))


def run_file(kind: str) -> Path:
    return rundir.DIRECTORY / f"net-{rundir.namespace()}.{kind}"


# --- a session --------------------------------------------------------------------------------


def test_a_session_from_greeting_to_close(host: Namespace) -> None:
    before = host.snapshot()
    with RawHelper() as helper:
        tun = helper.open()
        reply = helper.say(apply())
        assert isinstance(reply, protocol.Applied)
        assert helper.say(apply()) == reply, "the same again is fine"
        assert "9484" in host.ip("rule")
        report = helper.say(protocol.Report())
        assert isinstance(report, protocol.Reported)
        assert report.addresses == ("10.86.0.2", "fd86::2")
        assert report.mtu == 1300
        assert helper.say(protocol.Close()) == protocol.Closed(())
        assert host.snapshot() == before
        assert helper.wait() == 0
        os.close(tun)


def test_the_helper_is_ready_soon(host: Namespace) -> None:
    times = []
    for _ in range(3):
        started = time.monotonic()
        with RawHelper() as helper:
            helper.hello()
            times.append(time.monotonic() - started)
    print(f"\nready after {sorted(round(1000 * t) for t in times)} ms")
    assert min(times) < 1.0, "150 ms on a quiet machine"


def test_sockets_carry_the_mark_and_come_while_the_rest_is_still_loading(host: Namespace) -> None:
    with RawHelper() as helper:
        helper.hello()
        for family, kind, expected in (
            ("ipv4", "udp", (socket.AF_INET, socket.SOCK_DGRAM)),
            ("ipv6", "tcp", (socket.AF_INET6, socket.SOCK_STREAM)),
        ):
            helper.send(protocol.encode(protocol.OpenSocket(family, kind)))
            reply, (descriptor,) = helper.receive()
            assert reply == protocol.Done()
            with socket.socket(fileno=descriptor) as sock:
                assert (sock.family, sock.type) == expected
                assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_MARK) == FWMARK


def test_after_detach_there_may_be_another_tunnel(host: Namespace) -> None:
    before = host.snapshot()
    with RawHelper() as helper:
        first = helper.open()
        helper.say(apply())
        assert helper.say(protocol.Detach()) == protocol.Done()
        assert helper.say(protocol.Detach()) == protocol.Done()
        assert host.snapshot() == before
        assert isinstance(helper.say(protocol.OpenTun(1400)), protocol.Opened)
        os.close(first)


def test_what_undoes_a_change_is_on_disk_before_the_device_exists(host: Namespace) -> None:
    with RawHelper() as helper:
        tun = helper.open()
        records = msgspec.json.decode(run_file("journal").read_bytes())["records"]
        assert {record["type"] for record in records} == {
            "tun", "routes", "client-firewall", "setting", "rules",
        }  # fmt: skip
        os.close(tun)


OFFLOADS = """
import os, sys
from qvpn_core.net.tun import Tun
os.setgroups([]); os.setgid(65534); os.setuid(65534)
tun = Tun(int(sys.argv[1]), "qvpn0")
print(tun.set_offload(True), tun.set_offload(False))
"""


def test_who_got_the_device_may_switch_its_offloads_without_root(host: Namespace) -> None:
    with RawHelper() as helper:
        tun = helper.open()
        done = subprocess.run(
            [sys.executable, "-c", OFFLOADS, str(tun)],
            pass_fds=[tun],
            capture_output=True,
            text=True,
            env={"PYTHONPATH": ROOT},
        )
        assert done.stdout == "True True\n", done.stderr
        os.close(tun)


def test_everybody_may_read_whose_session_it_is_and_nothing_else(host: Namespace) -> None:
    with RawHelper() as helper:
        tun = helper.open()
        assert rundir.owner() == rundir.Owner(0, helper.process.pid)
        modes = {path: (rundir.DIRECTORY / path).stat().st_mode & 0o777 for path in files()}
        name = f"net-{rundir.namespace()}"
        assert modes == {f"{name}.journal": 0o600, f"{name}.lock": 0o600, f"{name}.owner": 0o644}
        assert rundir.DIRECTORY.stat().st_mode & 0o777 == 0o755
        os.close(tun)
        helper.kill()
        assert rundir.owner() is None, "a dead one owns nothing"
    unlock()


def test_a_process_that_nothing_reaches_but_its_socket(host: Namespace) -> None:
    with RawHelper() as helper:
        tun = helper.open()
        number = helper.process.pid
        for sent in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGTSTP, signal.SIGPIPE):
            os.kill(number, sent)
        assert isinstance(helper.say(protocol.Report()), protocol.Reported)
        assert os.getsid(number) == number
        assert os.readlink(f"/proc/{number}/cwd") == "/"
        links = {os.readlink(entry) for entry in Path(f"/proc/{number}/fd").iterdir()}
        assert not any("tun" in link for link in links), "the device is its client's alone"
        assert {os.readlink(f"/proc/{number}/fd/{fd}") for fd in (1, 2)} == {"/dev/null"}
        os.close(tun)


# --- the end ----------------------------------------------------------------------------------


def test_sigterm_undoes_everything_and_says_so(host: Namespace) -> None:
    before = host.snapshot()
    with RawHelper() as helper:
        tun = helper.open()
        helper.say(apply())
        helper.terminate()
        assert helper.receive() == (protocol.Goodbye(()), [])
        assert host.snapshot() == before
        os.close(tun)


def test_a_device_that_its_client_made_persistent_goes_all_the_same(host: Namespace) -> None:
    import fcntl

    with RawHelper() as helper:
        tun = helper.open()
        helper.say(apply())
        fcntl.ioctl(tun, 0x400454CB, 1)  # TUNSETPERSIST
        os.close(tun)


def test_a_kill_switch_outlives_a_client_that_dies_but_not_one_that_closes(
    host: Namespace,
) -> None:
    before = host.snapshot()
    with RawHelper() as helper:
        helper.hello()
        assert helper.say(KILL_SWITCH) == protocol.Done()
        assert helper.say(protocol.Close()) == protocol.Closed(())
        assert host.snapshot() == before
    with RawHelper() as helper:
        helper.hello()
        helper.say(KILL_SWITCH)
        helper.hang_up()
    assert "qvpn_kill_switch" in host.sh("nft list tables")
    with RawHelper() as helper:
        helper.hello()
        assert "qvpn_kill_switch" in host.sh("nft list tables"), "until somebody decides"
        assert helper.say(protocol.SetFirewall(None)) == protocol.Done()
    assert host.snapshot() == before


# --- two at once ------------------------------------------------------------------------------


def test_a_second_session_is_refused_and_harms_nothing(host: Namespace) -> None:
    with RawHelper() as first:
        tun = first.open()
        first.say(apply())
        during = host.snapshot()
        with RawHelper() as second:
            reply = second.say(HELLO)
            assert isinstance(reply, Failed)
            assert reply.reason == "network-taken"
        assert host.snapshot() == during
        assert isinstance(first.say(apply()), protocol.Applied)
        os.close(tun)


def test_the_next_session_waits_for_the_end_of_one_whose_client_died(host: Namespace) -> None:
    with RawHelper() as first:
        tun = first.open()
        first.say(apply())
        first.socket.close()
        with RawHelper() as second:
            second.hello()
            assert "9484" not in host.ip("rule")
        os.close(tun)


def test_unlock_ends_a_living_session_only_for_root_and_its_owner(host: Namespace) -> None:
    before = host.snapshot()
    with RawHelper() as helper:
        tun = helper.open()
        helper.say(apply())
        unlock()  # root's word
        assert helper.receive() == (protocol.Goodbye(()), [])
        assert host.snapshot() == before
        os.close(tun)


# --- interference -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    [
        "ip rule del priority 9484",
        "ip -6 route flush table 9484",
        "ip address del 10.86.0.2/32 dev qvpn0",
        "ip link set qvpn0 down",
        "nft flush ruleset",
        "nft delete table inet qvpn_kill_switch",
    ],
)
def test_the_helper_puts_back_what_somebody_removes(host: Namespace, command: str) -> None:
    def state() -> list[str]:
        return sorted(host.snapshot().splitlines())

    with RawHelper() as helper:
        tun = helper.open()
        helper.say(KILL_SWITCH)
        helper.say(apply())
        wanted = state()
        host.sh(command)
        end = time.monotonic() + PATIENCE
        while state() != wanted:
            assert time.monotonic() < end, f"{command} stays"
        report = helper.say(protocol.Report())
        assert isinstance(report, protocol.Reported)
        assert report.repairs > 0
        helper.say(protocol.Close())
        os.close(tun)


def test_a_fight_about_a_rule_does_not_keep_the_helper_from_its_client(host: Namespace) -> None:
    with RawHelper() as helper:
        tun = helper.open()
        helper.say(apply())
        end = time.monotonic() + 2.0
        while time.monotonic() < end:
            subprocess.run(["ip", "rule", "del", "priority", "9484"], capture_output=True)
        started = time.monotonic()
        report = helper.say(protocol.Report())
        assert isinstance(report, protocol.Reported)
        assert time.monotonic() - started < PATIENCE / 2
        assert 0 < report.repairs <= 25, "it is bounded"
        os.close(tun)


# --- a hostile peer ---------------------------------------------------------------------------


def test_a_greeting_comes_first_and_once(host: Namespace) -> None:
    for words in ([apply()], [protocol.Close()], [HELLO, HELLO]):
        with RawHelper() as helper:
            replies = [helper.say(word) for word in words]
            assert isinstance(replies[-1], Failed)
            assert replies[-1].reason == "protocol"
            assert helper.wait() == 0


def test_another_version_is_told_so(host: Namespace) -> None:
    with RawHelper() as helper:
        reply = helper.say(protocol.Hello(protocol.VERSION + 1))
        assert isinstance(reply, Failed)
        assert reply.reason == "helper-version"
        assert helper.wait() == 0


@pytest.mark.parametrize(
    "data",
    [
        b"\x00",
        b"\xc1" * 100,
        bytes(range(256)) * 2,
        b"\x91" * 100_000,
        msgspec.msgpack.encode({"do": "run", "command": "id"}),
        msgspec.msgpack.encode({"do": "open-tun", "mtu": 1300, "name": "eth0"}),
        msgspec.msgpack.encode({"do": "open-tun", "mtu": "1300"}),
        msgspec.msgpack.encode({"do": "open-socket", "family": "packet", "kind": "raw"}),
        msgspec.msgpack.encode({"do": "sign-in", "seconds": 10**9}),
        b"x" * (protocol.MAX_MESSAGE + 1),
    ],
    ids=lambda data: data[:12].hex(),
)
def test_what_is_no_request_ends_the_session_in_order(host: Namespace, data: bytes) -> None:
    with RawHelper() as helper:
        tun = helper.open()
        helper.say(apply())
        helper.send(data)
        reply, _ = helper.receive()
        assert isinstance(reply, Failed)
        assert reply.reason == "protocol"
        assert helper.wait() == 0
        os.close(tun)


def test_descriptors_are_not_taken(host: Namespace) -> None:
    read, write = os.pipe()
    with RawHelper() as helper:
        helper.hello()
        helper.send(protocol.encode(protocol.Report()), [write, write])
        os.close(write)
        reply, _ = helper.receive()
        assert isinstance(reply, Failed)
        assert os.read(read, 1) == b"", "nobody holds the other end"
    os.close(read)


def test_a_process_that_only_inherits_the_socket_gets_nothing(host: Namespace) -> None:
    with RawHelper() as helper:
        helper.hello()
        child = os.fork()
        if child == 0:
            try:
                helper.send(protocol.encode(protocol.OpenSocket("ipv4", "udp")))
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        reply, descriptors = helper.receive()
        assert isinstance(reply, Failed)
        assert "another process" in reply.what
        assert descriptors == []


def test_after_close_nothing_is_answered(host: Namespace) -> None:
    with RawHelper() as helper:
        helper.hello()
        helper.send(protocol.encode(protocol.Close()))
        helper.send(protocol.encode(protocol.OpenSocket("ipv4", "udp")))
        assert helper.receive() == (protocol.Closed(()), [])
        assert helper.receive() == (None, [])


ADDRESSES = ("10.86.0.2",)
ROUTE = protocol.Routes("tunnel", "advertised", Prefixes(v4=b"\x08\x0a\0\0\0"))


def network(**changes: object) -> protocol.Apply:
    good = protocol.Network(ADDRESSES, 1300, (ROUTE,), ())
    return protocol.Apply(msgspec.structs.replace(good, **changes))


@pytest.mark.parametrize(
    "request_",
    [
        network(addresses=()),
        network(addresses=("127.0.0.1",)),
        network(addresses=("224.0.0.1",)),
        network(addresses=("0.0.0.0",)),
        network(addresses=("::ffff:10.0.0.1",)),
        network(addresses=("fe80::1%eth0",)),
        network(addresses=("10.0.0.1/8",)),
        network(addresses=("10.0.0.1; reboot",)),
        network(addresses=("fd86::2",), mtu=1200),
        network(routes=(ROUTE, ROUTE)),
        network(routes=(msgspec.structs.replace(ROUTE, prefixes=Prefixes(v4=b"\x08\x0a")),)),
        network(routes=(msgspec.structs.replace(ROUTE, prefixes=Prefixes(v4=b"\x08\x0a\0\0\1")),)),
        network(routes=(msgspec.structs.replace(ROUTE, prefixes=Prefixes(v4=b"\x21\x0a\0\0\0")),)),
        network(endpoints=(("eth0", 443),)),
        network(endpoints=(("127.0.0.1", 443),)),
        protocol.Apply(
            network().network, protocol.Dns(("10.0.0.53",), ("a.example\nnameserver 1.2.3.4",), ())
        ),
        protocol.Apply(network().network, protocol.Dns(("127.0.0.53",), (".",), ())),
        protocol.SetFirewall(
            protocol.KillSwitch(Prefixes(v6=b"\x81" + bytes(16)), Prefixes(), False, False)
        ),
    ],
    ids=lambda request: re.sub(r"\W+", "-", repr(request))[-60:],
)
def test_what_no_session_may_have_is_refused_and_changes_nothing(
    host: Namespace, request_: protocol.Request
) -> None:
    with RawHelper() as helper:
        tun = helper.open()
        before = host.snapshot()
        reply = helper.say(request_)
        assert isinstance(reply, Failed)
        assert reply.reason == "not-allowed", reply
        assert host.snapshot() == before
        assert isinstance(helper.say(network()), protocol.Applied), "the session goes on"
        os.close(tun)


def test_a_device_that_became_somebody_elses_is_not_configured(host: Namespace) -> None:
    with RawHelper() as helper:
        tun = helper.open()
        os.close(tun)
        # The helper closes its own descriptor when it has sent it, perhaps after us.
        until(lambda: "qvpn0" not in host.ip("link"), "the device is gone")
        host.ip("link add qvpn0 type veth peer name other")
        before = host.snapshot()
        reply = helper.say(apply())
        assert isinstance(reply, Failed)
        assert reply.reason == "tun-unavailable"
        helper.say(protocol.Close())
        assert host.snapshot() == before
    host.ip("link del qvpn0")


def test_four_thousand_routes_fit_into_one_message(host: Namespace) -> None:
    some = [ip_network((i << 100, 64)) for i in range(0x20, 0x20 + 2000)]
    more = [ip_network((i << 12, 24)) for i in range(0x0A00, 0x0A00 + 2000)]
    with RawHelper() as helper:
        tun = helper.open()
        policy = RoutePolicy("only", (*more, *some))
        assert isinstance(helper.say(apply(policy)), protocol.Applied)
        routes = host.ip("route show table 9484") + host.ip("-6 route show table 9484")
        assert routes.count("\n") >= 4000
        os.close(tun)


# --- the journal ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00" * 100,
        b"{" * 100_000,
        b'{"records":[{"type":"file","path":"/etc/passwd"},{"type":"rules"}]}',
        b'{"records":[{"type":"setting","name":"../../etc/passwd","previous":"","ours":""}]}',
        b'{"records":[{"type":"setting","name":"net/ipv4/ip_forward"}]}',
        b'{"records":' + b"[" * 50_000,
        b"x" * ((1 << 20) + 1),
    ],
    ids=range(8),
)
def test_a_journal_that_cannot_be_read_breaks_nothing(host: Namespace, content: bytes) -> None:
    with RawHelper() as helper:
        tun = helper.open()
        helper.say(apply())
        helper.kill()
        os.close(tun)
    host.sh("sysctl -q -w net.ipv4.conf.all.src_valid_mark=0")
    run_file("journal").write_bytes(content)
    with RawHelper() as helper:
        helper.hello()
        assert "9484" not in host.ip("rule"), "what carries our names is removed all the same"


@pytest.mark.parametrize("kind", ["journal", "lock", "owner", "new"])
def test_links_in_the_run_directory_lead_nowhere(
    host: Namespace, tmp_path: Path, kind: str
) -> None:
    """Only root could make them; but nothing here may depend on that."""
    victim = tmp_path / "victim"
    victim.write_text("precious")
    path = (
        run_file(kind)
        if kind != "new"
        else run_file("journal").with_name(f".net-{rundir.namespace()}.journal.new")
    )
    path.symlink_to(victim)
    with RawHelper() as helper:
        reply = helper.say(HELLO)
        if kind == "lock":
            assert isinstance(reply, Failed)
            path.unlink()
        else:
            assert reply == protocol.Welcome()
            assert isinstance(helper.say(protocol.OpenTun(1300)), protocol.Opened)
    assert victim.read_text() == "precious"


@pytest.mark.parametrize("what", ["fifo", "directory", "somebody else's"])
def test_a_journal_that_root_has_not_written_is_not_read(host: Namespace, what: str) -> None:
    path = run_file("journal")
    if what == "fifo":
        os.mkfifo(path)
    elif what == "directory":
        path.mkdir()
    else:
        path.write_text('{"records":[]}')
        os.chown(path, 64001, 64001)
    with RawHelper() as helper:
        helper.hello()
        if what == "directory":
            reply = helper.say(protocol.OpenTun(1300))
            assert isinstance(reply, Failed), "nothing is changed that could not be recorded"
            path.rmdir()
