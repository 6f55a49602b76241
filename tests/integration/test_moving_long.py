"""Moves that take their time: longer than the gateway waits, and through a captive portal."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from qvpn_core.client.captive import VARIABLE
from qvpn_core.transport import settings
from tests.integration.moving import MOVED, RESTARTED, Scene, conversation, report
from tests.world import plan
from tests.world.vpn import PATIENCE, until

pytestmark = pytest.mark.netns


@pytest.mark.slow
def test_an_outage_longer_than_the_gateway_waits(moving: Scene) -> None:
    """The session is gone at both ends, and nothing is tried until there is a network."""
    addresses = moving.client.peek()["addresses"]
    with conversation(moving.client) as talk:
        moving.world.unplug_client()
        patience = settings.IDLE_TIMEOUT + PATIENCE
        until(lambda: moving.gateway.session("laptop") is None, "the gateway forgets", patience)
        until(lambda: moving.client.peek()["state"] == "reconnecting", "so does the client")
        until(lambda: moving.client.peek()["reason"] == "no-network", "and it knows why")
        moving.world.plug_client()
        begin = time.monotonic()
        talk.round_trip(RESTARTED)
        report("a link is back after half a minute", [time.monotonic() - begin])
    assert moving.client.peek()["addresses"] == addresses


@pytest.mark.slow
def test_a_client_that_was_stopped_longer_than_the_gateway_waits(moving: Scene) -> None:
    agent = moving.client.agent()
    assert agent is not None
    with conversation(moving.client) as talk:
        os.kill(agent, signal.SIGSTOP)
        try:
            patience = settings.IDLE_TIMEOUT + PATIENCE
            until(lambda: moving.gateway.session("laptop") is None, "the gateway forgets", patience)
        finally:
            os.kill(agent, signal.SIGCONT)
        begin = time.monotonic()
        talk.round_trip(RESTARTED)
        report("a stopped client goes on", [time.monotonic() - begin])


#: What is asked for instead of the usual check, which is not in this internet.
CHECK = f"http://{plan.BETA.v4}/generate_204"
PORTAL = """
import http.server
class Portal(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(302)
        self.send_header("Location", "http://192.168.50.1/welcome")
        self.end_headers()
server = http.server.HTTPServer(("0.0.0.0", 8080), Portal)
print("bound", flush=True)
server.serve_forever()
"""
BROWSER = f"""
import urllib.parse, http.client
url = urllib.parse.urlsplit({CHECK!r})
connection = http.client.HTTPConnection(url.netloc, timeout=10)
connection.request("GET", url.path)
print(connection.getresponse().status)
"""
CAPTURE = """
table inet portal {
  chain prerouting {
    type nat hook prerouting priority dstnat
    iifname "lan0" meta nfproto ipv4 tcp dport 80 redirect to :8080
  }
  chain forward {
    type filter hook forward priority filter - 1
    iifname "lan0" meta l4proto { tcp, udp } th dport 443 reject with icmpx type admin-prohibited
  }
}
"""


@contextlib.contextmanager
def portal(moving: Scene) -> Iterator[None]:
    """The router answers for every web site and lets nothing else out."""
    server = moving.world.router.popen([sys.executable, "-c", PORTAL], stdout=subprocess.PIPE)
    assert server.stdout is not None
    assert server.stdout.readline() == b"bound\n"
    moving.world.router.nft(CAPTURE)
    moving.world.router.flush_nat()
    try:
        yield
    finally:
        moving.world.router.nft("delete table inet portal")
        server.terminate()


def test_a_first_attempt_behind_a_portal_says_where_to_sign_in(moving_stage: Scene) -> None:
    client = moving_stage.client
    client.environment[VARIABLE] = CHECK
    with portal(moving_stage):
        done = client.command("up", "home", "--all", check=False, timeout=2 * PATIENCE)
    moving_stage.settle()
    assert done.returncode == 1
    assert "open http://192.168.50.1/welcome in a browser" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_gateway_that_does_not_answer_is_no_portal(moving_stage: Scene) -> None:
    client = moving_stage.client
    client.environment[VARIABLE] = CHECK
    moving_stage.gateway.stop()
    done = client.command("up", "home", "--all", check=False, timeout=2 * PATIENCE)
    moving_stage.settle()
    assert "Connection refused" in done.stderr or "no answer" in done.stderr


def test_a_tunnel_that_meets_a_portal_explains_it_and_goes_on_after_signing_in(
    moving_stage: Scene,
) -> None:
    """Everything is tunnelled, so that only marked packets can ask."""
    client = moving_stage.client
    client.environment[VARIABLE] = CHECK
    client.up("--all")
    with conversation(client) as talk:
        with portal(moving_stage):
            talk.say()
            until(
                lambda: client.peek()["reason"] == "captive-portal",
                "the portal is recognised",
                2 * PATIENCE,
            )
            assert client.peek()["state"] == "reconnecting"
            assert "qvpn sign-in" in client.peek()["error"]
            assert "http://192.168.50.1/welcome" in client.command("sign-in").stdout
            assert client.host.run([sys.executable, "-c", BROWSER]).stdout.strip() == "302"
        begin = time.monotonic()
        talk.hear(PATIENCE)
        report("after signing in", [time.monotonic() - begin])
    until(lambda: client.peek()["reason"] is None, "nothing is wrong any more", MOVED)
    assert client.command("sign-in", check=False).stderr.startswith("qvpn: this network does not")
    moving_stage.settle()
