"""The client moves: other addresses, links and routers, NATs that forget, gateways that restart.

An open TCP connection through the tunnel goes on each time; how long that took is printed. The
limits are wider than what is promised, for a busy machine.
"""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qvpn_core.transport import settings
from tests.integration.moving import (
    MOVED,
    RESTARTED,
    Scene,
    conversation,
    report,
    same_session,
)
from tests.world import plan, probes
from tests.world.vpn import (
    PATIENCE,
    no_defects,
    until,
)

pytestmark = pytest.mark.netns


def test_another_address_on_the_same_link(moving: Scene) -> None:
    check, times = same_session(moving), []
    with conversation(moving.client) as talk:
        for number in range(10, 15):
            before = moving.peer
            moving.world.move_client(number)
            times.append(talk.round_trip(MOVED))
            until(lambda: moving.peer != before, "the gateway has followed")  # noqa: B023
    check()
    report("another address on the same link", times)


def test_from_one_link_to_another_and_back(moving: Scene) -> None:
    """The cable is plugged in and the radio goes off; later the cable is pulled."""
    check, times, world = same_session(moving), [], moving.world
    with conversation(moving.client) as talk:
        for _ in range(3):
            world.use_cable()
            world.client.ip("link set eth0 down")
            times.append(talk.round_trip(MOVED))
            world.unuse_cable()
            world.move_client(2)
            times.append(talk.round_trip(MOVED))
    check()
    report("from one link to another", times)


def test_another_default_route_while_the_old_one_would_still_work(moving: Scene) -> None:
    check, times = same_session(moving), []
    with conversation(moving.client) as talk:
        for _ in range(3):
            for change in (moving.world.use_cable, lambda: moving.world.move_client(2)):
                before = moving.peer
                change()
                times.append(talk.round_trip(MOVED))
                until(lambda: moving.peer != before, "the gateway has followed")  # noqa: B023
                times.append(talk.round_trip(MOVED))
    check()
    report("another default route", times)


def test_a_download_goes_on_through_moves(moving: Scene) -> None:
    check, size = same_session(moving), 24 << 20
    moving.world.relay.set(delay=0.01)
    with subprocess.Popen(
        moving.client.host.command(
            ["curl", "-s", "-o", "/dev/null", "-w", "%{size_download}", "--max-time", "60",
             f"http://{plan.ALPHA.v4}/bytes/{size}"]
        ),
        stdout=subprocess.PIPE,
    ) as fetching:  # fmt: skip
        received = lambda: moving.client.peek()["rx_bytes"]  # noqa: E731
        for number in (20, 21, 22):
            begun = received()
            until(lambda: received() > begun + (2 << 20), "the download goes on")  # noqa: B023
            moving.world.move_client(number)
        out, _ = fetching.communicate(timeout=60)
    assert int(out) == size
    check()


def test_a_nat_that_forgets_while_packets_flow_is_not_noticed(moving: Scene) -> None:
    check, times = same_session(moving), []
    with conversation(moving.client) as talk:
        for _ in range(5):
            before = moving.peer
            moving.world.router.flush_nat()
            times.append(talk.round_trip(MOVED))
            until(lambda: moving.peer != before, "the gateway has followed")  # noqa: B023
    check()
    report("a NAT forgot, packets from inside", times)


def test_a_nat_that_forgets_an_idle_client_is_told_within_one_keepalive(moving: Scene) -> None:
    """Only the gateway sends, and nothing that it sends arrives."""
    check = same_session(moving)
    address = moving.client.address(4)
    ping = ["ping", "-n", "-q", "-c", "1", "-W", "1", address]
    assert moving.world.gateway.run(ping, check=False).returncode == 0
    moving.world.router.flush_nat()
    begin = time.monotonic()
    assert moving.world.gateway.run(ping, check=False).returncode != 0, "the NAT has forgotten"
    until(
        lambda: moving.world.gateway.run(ping, check=False).returncode == 0,
        "the client is reached again",
        settings.KEEPALIVE + 2 * MOVED,
    )
    report("a NAT forgot, packets from outside", [time.monotonic() - begin])
    check()


def test_a_link_that_comes_back_after_seconds(moving: Scene) -> None:
    """What was sent meanwhile leaves at once when it can."""
    check, times = same_session(moving), []
    with conversation(moving.client) as talk:
        for _ in range(3):
            moving.world.unplug_client()
            until(lambda: moving.client.peek()["reason"] == "no-network", "the status says why")
            talk.say()
            time.sleep(2.5)  # an outage: TCP has begun to wait longer between its attempts
            begin = time.monotonic()
            moving.world.plug_client()
            talk.hear(MOVED)
            times.append(time.monotonic() - begin)
            assert moving.client.peek()["reason"] is None
    check()
    report("a link is back after 2.5 s", times)


def test_where_only_the_other_ip_version_is_left_the_gateway_is_found_by_it(
    moving_stage: Scene,
) -> None:
    moving_stage.client.up("--only", plan.NETS[0][0], name="named")
    addresses = moving_stage.client.peek()["addresses"]
    with conversation(moving_stage.client) as talk:
        assert plan.CLIENT6 in moving_stage.peer, "a name with both has IPv6 first"
        begin = time.monotonic()
        moving_stage.client.host.run(
            ["ip", "-6", "addr", "flush", "dev", "eth0", "scope", "global"]
        )
        talk.round_trip(RESTARTED)
        report("only IPv4 is left", [time.monotonic() - begin])
        assert plan.ROUTER4 in moving_stage.peer
    assert moving_stage.client.peek()["addresses"] == addresses
    moving_stage.settle()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_gateway_that_restarts(moving: Scene, number: signal.Signals) -> None:
    addresses = moving.client.peek()["addresses"]
    with conversation(moving.client) as talk:
        probes.ping_ms(moving.client.host, plan.ALPHA.v4)  # the last acknowledgement is out too
        moving.gateway.stop(number)
        moving.gateway.start()
        begin = time.monotonic()
        talk.round_trip(RESTARTED)
        report(f"a gateway restarted after {number.name}", [time.monotonic() - begin])
    assert moving.client.peek()["addresses"] == addresses


def test_a_gateway_that_is_gone_for_good_is_noticed_and_waited_for(moving: Scene) -> None:
    with conversation(moving.client) as talk:
        moving.gateway.stop(signal.SIGKILL)
        begin = time.monotonic()
        talk.say()
        until(
            lambda: moving.client.peek()["state"] == "reconnecting",
            "the silence is noticed",
            settings.IDLE_TIMEOUT * 2 / 3,
        )
        report("a silent gateway is noticed", [time.monotonic() - begin])


def test_a_slow_and_lossy_path_is_no_reason_to_reconnect(moving: Scene) -> None:
    """Half a second there and back, and every fifth packet lost each way."""
    check, before = same_session(moving), len(moving.client.log)
    moving.world.relay.set(delay=0.25, loss=0.2)
    echoes = probes.udp_echo(moving.client.host, plan.ALPHA.v4, count=24, interval=0.5, wait=2.0)
    assert 2 <= echoes.distinct < 24
    check()
    assert "reconnecting" not in moving.client.log[before:]


def test_copies_of_packets_sent_from_elsewhere_do_not_move_a_session(moving: Scene) -> None:
    """Somebody on the way sees all packets and sends each again, from an address of its own."""
    check, before = same_session(moving), moving.peer
    gateway, internet = moving.world.gateway, moving.world.internet
    watcher = gateway.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800))
    sender = internet.socket(socket.AF_INET, socket.SOCK_DGRAM)
    router = socket.inet_aton(plan.ROUTER4)
    with watcher, sender, conversation(moving.client) as talk:
        watcher.bind(("eth0", 0x0800))
        watcher.settimeout(0)
        copied = 0
        for _ in range(20):
            talk.round_trip()
            while True:
                try:
                    packet = watcher.recv(65535)
                except BlockingIOError:
                    break
                if packet[12:16] == router and packet[22:24] == (443).to_bytes(2, "big"):
                    sender.sendto(packet[28:], (plan.GATEWAY4, 443))
                    copied += 1
        talk.round_trip()
    assert copied > 20
    assert moving.peer == before
    check()


CLOCK = """
import sys, time
real = time.clock_gettime
def clock_gettime(clock):
    asleep = float(open({file!r}).read() or 0) if clock == time.CLOCK_BOOTTIME else 0.0
    return real(clock) + asleep
time.clock_gettime = clock_gettime
from qvpn_core.client.cli import main
sys.exit(main(["up", "home", "--foreground", "--only", {network!r}]))
"""


@pytest.mark.parametrize(("asleep", "words"), [(12, "12 s asleep"), (3600, "slept for 3600 s")])
def test_a_machine_that_slept(moving_stage: Scene, tmp_path: Path, asleep: int, words: str) -> None:
    """As far as it can be tried here: one clock is made to say so, everything else is real."""
    file, log = tmp_path / "asleep", tmp_path / "log"
    file.write_text("0")
    script = CLOCK.format(file=str(file), network=plan.NETS[0][0])
    with log.open("wb") as output:
        process = moving_stage.client.host.popen(
            [sys.executable, "-c", script],
            stderr=output,
            env=moving_stage.client.environment,
            cwd=Path(__file__).parents[2],
        )
    moving_stage.client.wait_for("connected")
    with conversation(moving_stage.client) as talk:
        file.write_text(str(asleep))
        begin = time.monotonic()
        moving_stage.client.host.ip(
            "addr add 127.0.0.77/32 dev lo"
        )  # any news: a resume brings some
        until(lambda: words in log.read_text(), "it is noticed", MOVED)
        talk.round_trip(RESTARTED)
        report(f"after {asleep} s of sleep", [time.monotonic() - begin])
    moving_stage.client.host.ip("addr del 127.0.0.77/32 dev lo")
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE) == 0
    no_defects(log.read_text())
