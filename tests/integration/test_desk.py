"""Ordinary users on a desktop: permission by the real polkit; what others gain, which is nothing.

The bus, polkitd and pkexec are real and private (tests/world/desk.py); polkit's rules stand in for
the person who enters a password.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, Self

import pytest

from tests.world import Namespace, plan, probes, snapshot
from tests.world.desk import SESSION, UNLOCK, USERS, Desk, unavailable
from tests.world.vpn import Credentials, Vpn, until

pytestmark = pytest.mark.netns

PATIENCE: Final = 20.0
QVPN: Final = str(Path(sys.executable).parent / "qvpn")
#: What an attacker may run: everything that the installed client can.
PROBE: Final = """
import asyncio, sys
from ipaddress import ip_interface, ip_network
from qvpn_core.errors import QvpnError
from qvpn_core.helper.client import Helper
from qvpn_core.net.plan import NetworkPlan, Route
async def main():
    try:
        helper = await Helper.start()
    except QvpnError as error:
        print(error.reason, flush=True)
        return
    print("welcome", flush=True)
    tun = await helper.open_tun(1300)
    route = Route(ip_network("198.51.100.0/24"), "tunnel", "advertised")
    await helper.apply(NetworkPlan((ip_interface("10.86.0.2"),), 1300, (route,)), None)
    print("applied", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await helper.close()
    tun.close()
asyncio.run(main())
"""


@pytest.fixture(scope="module")
def network(namespaces_work: None) -> Iterator[Namespace]:
    if reason := unavailable():
        pytest.skip(reason)
    with Namespace("desk") as made:
        yield made


@pytest.fixture(scope="module")
def module_desk(network: Namespace, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    with Desk(network, tmp_path_factory.mktemp("desk")) as desk:
        yield desk


@pytest.fixture
def desk(module_desk: Desk, network: Namespace) -> Iterator[Desk]:
    """One desk for all tests, on which nobody may do anything; the network stays as it was."""
    before = snapshot(network)
    module_desk.allow()
    yield module_desk
    until(lambda: snapshot(network) == before, "the network is as it was")


def probe(desk: Desk, user: str) -> str:
    """What a session of `user` comes to."""
    with held(desk, user) as process:
        assert process.stdout is not None
        return str(process.stdout.readline()).strip()


def held(desk: Desk, user: str) -> subprocess.Popen[str]:
    """A session of `user` that ends with its standard input."""
    return subprocess.Popen(
        desk.as_user(user, [sys.executable, "-X", "dev", "-c", PROBE]),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd="/",
    )


# --- permission -------------------------------------------------------------------------------


def test_who_is_allowed_gets_a_session_and_leaves_nothing(desk: Desk) -> None:
    desk.allow(ada=SESSION)
    assert probe(desk, "ada") == "welcome"
    assert probe(desk, "bob") == "polkit-agent-missing"


def test_a_user_whom_nobody_can_ask_is_told_so(desk: Desk) -> None:
    assert probe(desk, "ada") == "polkit-agent-missing"


def test_a_user_whom_a_rule_forbids_it_is_told_so(desk: Desk) -> None:
    desk.rules("polkit.addRule(function(action, subject) { return polkit.Result.NO; });")
    assert probe(desk, "ada") == "not-authorized"


def test_without_polkit_and_without_pkexec_the_words_say_so(desk: Desk) -> None:
    desk.allow(ada=SESSION)
    desk.sh("mv /run/dbus/system_bus_socket /run/dbus/away")
    assert probe(desk, "ada") == "polkit-missing"
    desk.sh("mv /run/dbus/away /run/dbus/system_bus_socket")
    desk.sh("mount --bind /dev/null /usr/bin/pkexec")  # not executable
    assert probe(desk, "ada") == "polkit-missing"
    desk.sh("umount /usr/bin/pkexec")
    assert probe(desk, "ada") == "welcome"


def test_without_an_installed_helper_the_words_say_so(desk: Desk) -> None:
    desk.allow(ada=SESSION)
    desk.sh("mv /usr/local/lib/qvpn /usr/local/lib/away")
    assert probe(desk, "ada") == "helper-missing"
    desk.sh("mv /usr/local/lib/away /usr/local/lib/qvpn")


def test_without_an_agent_the_terminal_asks_and_a_wrong_password_is_told(desk: Desk) -> None:
    """pkexec's own agent, on a terminal of the user's: the way of somebody who came by SSH."""
    controller, terminal = os.openpty()
    argv = desk.as_user("ada", ["setsid", "--ctty", "--wait", sys.executable, "-c", PROBE])
    process = subprocess.Popen(argv, stdin=terminal, stdout=terminal, stderr=terminal, cwd="/")
    os.close(terminal)
    try:
        heard = hear(controller, b"Password:")
        assert b"qvpn needs to change" in heard, "polkit shows what is asked, and why"
        until(lambda: not termios.tcgetattr(controller)[3] & termios.ECHO, "it listens")
        os.write(controller, b"wrong\n")
        hear(controller, b"not-authorized")
        process.wait(PATIENCE)
    finally:
        process.kill()
        process.wait()
        os.close(controller)


def hear(terminal: int, word: bytes) -> bytes:
    """Everything from a terminal until `word` comes."""
    heard = b""
    end = time.monotonic() + PATIENCE
    while word not in heard:
        ready, _, _ = select.select([terminal], [], [], max(0.0, end - time.monotonic()))
        assert ready, f"no {word!r} in {heard!r}"
        try:
            heard += os.read(terminal, 4096)
        except OSError:
            pytest.fail(f"no {word!r} in {heard!r}")
    return heard


# --- what others gain -------------------------------------------------------------------------


def test_an_ordinary_user_cannot_start_the_helper_by_hand(desk: Desk) -> None:
    for words in (["session"], ["unlock"], ["boot"], []):
        argv = desk.as_user("ada", ["/usr/local/lib/qvpn/qvpn-helper", *words])
        done = subprocess.run(argv, capture_output=True, text=True, cwd="/")
        assert done.returncode in (1, 2)
        assert done.stderr.count("\n") == 1


def test_pkexec_starts_the_helper_for_nothing_but_a_session_or_a_release(desk: Desk) -> None:
    desk.allow(ada=SESSION + " " + UNLOCK)
    for words in (["boot"], ["session", "more"], ["unlock", "--force"], ["--help"], []):
        argv = desk.as_user("ada", ["pkexec", "/usr/local/lib/qvpn/qvpn-helper", *words])
        done = subprocess.run(argv, capture_output=True, text=True, cwd="/", stdin=-3)
        assert done.returncode != 0, words
    # What matches an action is allowed by it, but leads nowhere without a socket from qvpn.
    argv = desk.as_user("ada", ["pkexec", "/usr/local/lib/qvpn/qvpn-helper", "session"])
    done = subprocess.run(argv, capture_output=True, text=True, cwd="/", stdin=-3)
    assert done.returncode == 1
    assert "not for the hand" in done.stderr


def test_another_user_gains_nothing_from_a_session(desk: Desk, network: Namespace) -> None:
    desk.allow(ada=SESSION, bob=SESSION + " " + UNLOCK)
    with held(desk, "ada") as session:
        assert session.stdout is not None
        assert [session.stdout.readline() for _ in range(2)] == ["welcome\n", "applied\n"]
        during = snapshot(network)
        assert probe(desk, "bob") == "network-taken"
        done = desk.qvpn("bob", "unlock")
        assert done.returncode == 1
        assert "another user" in done.stderr
        [helper] = helpers(network)
        for argv in (["kill", "-9", str(helper)], ["cat", f"/proc/{helper}/environ"]):
            assert subprocess.run(desk.as_user("bob", argv), capture_output=True).returncode
            assert subprocess.run(desk.as_user("ada", argv), capture_output=True).returncode
        assert snapshot(network) == during
        status = json.loads(desk.qvpn("bob", "status", "--json").stdout)
        assert (status["state"], status["other_user"]) == ("disconnected", "ada")
        done = desk.qvpn("bob", "down")
        assert done.returncode == 1
        assert "a tunnel of ada is up" in done.stderr


def helpers(network: Namespace) -> list[int]:
    """The helpers at work in a namespace."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (entry / "ns/net").stat().st_ino == network.path.stat().st_ino:
                if b"qvpn-helper\0session" in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
    return found


def test_the_run_directory_shows_others_the_owner_and_nothing_else(desk: Desk) -> None:
    desk.allow(ada=SESSION)
    with held(desk, "ada") as session:
        assert session.stdout is not None
        assert [session.stdout.readline() for _ in range(2)] == ["welcome\n", "applied\n"]
        script = "cd /run/qvpn; cat *.owner; cat *.journal *.lock; touch x; rm -f *.owner; ls"
        done = subprocess.run(
            desk.as_user("bob", ["sh", "-c", script]), capture_output=True, text=True
        )
        assert f'"uid":{USERS["ada"]}' in done.stdout
        assert done.stderr.count("Permission denied") == 4, done.stderr


def test_a_run_directory_that_is_not_roots_is_not_used(desk: Desk) -> None:
    desk.allow(ada=SESSION)
    desk.sh("mv /run/qvpn /run/away; mkdir /run/qvpn; chown ada /run/qvpn")
    assert probe(desk, "ada") == "network-setup"
    desk.sh("rm -r /run/qvpn; ln -s /etc /run/qvpn")
    assert probe(desk, "ada") == "network-setup"
    desk.sh("rm /run/qvpn; mv /run/away /run/qvpn")


def test_a_full_disk_changes_nothing(desk: Desk) -> None:
    desk.allow(ada=SESSION)
    desk.sh("mount -t tmpfs -o size=4k,mode=755 full /run/qvpn")
    desk.sh("head -c 9999 /dev/zero > /run/qvpn/x || true")
    assert probe(desk, "ada") == "network-setup"
    desk.sh("umount /run/qvpn")


# --- rest -------------------------------------------------------------------------------------

#: A session that rests, and then does what it reads, a word a line.
RESTING: Final = """
import asyncio, os, sys
from ipaddress import ip_interface, ip_network
from qvpn_core.errors import QvpnError
from qvpn_core.helper import protocol
from qvpn_core.helper.client import Helper
from qvpn_core.net.plan import NetworkPlan, Route
HELLO = protocol.encode(protocol.Hello(protocol.VERSION))
async def main():
    helper = await Helper.start()
    tun = await helper.open_tun(1300)
    route = Route(ip_network("198.51.100.0/24"), "tunnel", "advertised")
    await helper.apply(NetworkPlan((ip_interface("10.86.0.2"),), 1300, (route,)), None)
    tun.close()
    print("rests" if await helper.rest() else "ended", flush=True)
    while word := (await asyncio.to_thread(sys.stdin.readline)).strip():
        match word:
            case "resume":
                try:
                    await helper.resume()
                    print("welcome", flush=True)
                except QvpnError as error:
                    print(error.reason, flush=True)
            case "rest":
                print("rests" if await helper.rest() else "ended", flush=True)
            case "report":  # which only a session may
                helper._channel.send(protocol.encode(protocol.Report()))
                await helper.lost
                print("lost", flush=True)
            case "child":  # which has the socket, but is not who made it
                if os.fork() == 0:
                    helper._channel.send(HELLO)
                    os._exit(0)
                await helper.lost
                print("lost", flush=True)
    await helper.hang_up()
asyncio.run(main())
"""


class Resting:
    """A client of a user whose helper rests, the only one at work when this begins."""

    def __init__(self, desk: Desk, user: str) -> None:
        self.process = subprocess.Popen(
            desk.as_user(user, [sys.executable, "-X", "dev", "-c", RESTING]),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd="/",
        )
        assert self.hear() == "rests"
        # It starts its program anew, and has no command line while it does.
        [self.helper] = until(lambda: helpers(desk.network), "the helper rests")

    def hear(self) -> str:
        """The next line."""
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], PATIENCE)
        assert ready, "no word"
        return str(self.process.stdout.readline()).strip()

    def tell(self, word: str) -> str:
        """Have it do something; what came of it."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{word}\n")
        self.process.stdin.flush()
        return self.hear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            with suppress(BrokenPipeError):
                stream.close()
        try:
            self.process.wait(PATIENCE)
        finally:
            self.process.kill()
            self.process.wait(PATIENCE)


def test_a_helper_that_rests_holds_nothing_and_asks_nobody_again(
    desk: Desk, network: Namespace
) -> None:
    before = snapshot(network)
    desk.allow(ada=SESSION)
    with Resting(desk, "ada") as ada:
        assert snapshot(network) == before
        until(lambda: desk.sh("ls /run/qvpn") == "", "nobody has the network")
        desk.allow()  # from now on, a password would have to be entered
        assert probe(desk, "ada") == "polkit-agent-missing"
        for _ in range(3):
            assert ada.tell("resume") == "welcome"
            assert helpers(network) == [ada.helper]
            assert ada.tell("rest") == "rests"
        assert snapshot(network) == before
    until(lambda: not helpers(network), "it ends with its client")


def test_while_one_rests_another_user_may_have_the_network(desk: Desk) -> None:
    desk.allow(ada=SESSION, bob=SESSION)
    with Resting(desk, "ada") as ada:
        with held(desk, "bob") as bob:
            assert bob.stdout is not None
            assert [bob.stdout.readline() for _ in range(2)] == ["welcome\n", "applied\n"]
            assert ada.tell("resume") == "network-taken"
            assert bob.stdin is not None
            bob.stdin.close()
            bob.wait(PATIENCE)


def test_a_helper_that_rests_obeys_a_rule_that_has_come_since(
    desk: Desk, network: Namespace
) -> None:
    desk.allow(ada=SESSION)
    with Resting(desk, "ada") as ada:
        desk.rules("polkit.addRule(function(action, subject) { return polkit.Result.NO; });")
        assert ada.tell("resume") == "not-allowed"
        until(lambda: not helpers(network), "it has ended")


def test_without_polkits_word_nothing_begins_again(desk: Desk, network: Namespace) -> None:
    desk.allow(ada=SESSION)
    with Resting(desk, "ada") as ada:
        desk.sh("mv /run/dbus/system_bus_socket /run/dbus/away")
        assert ada.tell("resume") == "not-allowed"
        desk.sh("mv /run/dbus/away /run/dbus/system_bus_socket")
        until(lambda: not helpers(network), "it has ended")


@pytest.mark.parametrize("word", ["report", "child"])
def test_what_rests_takes_nothing_but_a_greeting_of_its_own_client(
    desk: Desk, network: Namespace, word: str
) -> None:
    desk.allow(ada=SESSION)
    with Resting(desk, "ada") as ada:
        assert ada.tell(word) == "lost"
        until(lambda: not helpers(network), "it has ended")


@pytest.mark.parametrize("who", ["client", "helper"])
def test_what_rests_ends_with_its_client_and_by_roots_will(
    desk: Desk, network: Namespace, who: str
) -> None:
    desk.allow(ada=SESSION)
    with Resting(desk, "ada") as ada:
        if who == "client":
            ada.process.kill()
        else:
            os.kill(ada.helper, signal.SIGTERM)
        until(lambda: not helpers(network), "it has ended")


@contextmanager
def helper_edited(desk: Desk, change: str) -> Iterator[None]:
    """The installed helper's process.py, with a change in sed's words."""
    directory = "/usr/local/lib/qvpn/lib/qvpn_core/helper"
    file, compiled = f"{directory}/process.py", f"{directory}/__pycache__"
    # What is compiled is used without a look at its source.
    desk.sh(f"mv {compiled} {compiled}.kept; cp {file} {file}.kept; sed -i '{change}' {file}")
    try:
        yield
    finally:
        desk.sh(f"mv {file}.kept {file}; mv {compiled}.kept {compiled}")


def test_roots_will_is_done_between_a_session_and_the_rest_too(
    desk: Desk, network: Namespace
) -> None:
    desk.allow(ada=SESSION)
    late = 's/log.info("the session is over")/&; time.sleep(1)/'
    with helper_edited(desk, late), Resting(desk, "ada") as ada:
        os.kill(ada.helper, signal.SIGTERM)
        until(lambda: not helpers(network), "it has ended")


def test_nothing_rests_for_ever(desk: Desk, network: Namespace) -> None:
    desk.allow(ada=SESSION)
    with helper_edited(desk, "s/^REST: Final = .*/REST: Final = 2/"), Resting(desk, "ada"):
        until(lambda: not helpers(network), "it has ended by itself")


# --- release ----------------------------------------------------------------------------------


def test_unlock_frees_the_network_of_a_killed_session_without_a_password(
    desk: Desk, network: Namespace
) -> None:
    before = snapshot(network)
    desk.allow(ada=SESSION + " " + UNLOCK)
    with held(desk, "ada") as session:
        assert session.stdout is not None
        assert [session.stdout.readline() for _ in range(2)] == ["welcome\n", "applied\n"]
        for number in helpers(network):
            os.kill(number, signal.SIGKILL)
        session.kill()
    assert "9484" in network.ip("rule")
    desk.allow(ada=UNLOCK)
    assert desk.qvpn("ada", "unlock").returncode == 0
    assert snapshot(network) == before
    assert desk.qvpn("ada", "unlock").returncode == 0, "again is fine"
    assert desk.qvpn("bob", "unlock").returncode == 1


# --- the whole product ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vpn_desk(
    vpn: Vpn, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Vpn, Desk, Credentials]]:
    """A desk in the place of the first client, on which ada has a profile."""
    if reason := unavailable():
        pytest.skip(reason)
    with Desk(vpn.world.client, tmp_path_factory.mktemp("vpn-desk")) as desk:
        token = vpn.gateway.token("ada")
        done = desk.qvpn(
            "ada", "profile", "add", "home", "--gateway", token.gateway,
            "--token", token.token, "--pin", token.pin,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        desk.allow(ada=SESSION + " " + UNLOCK)
        yield vpn, desk, token


def status_of(desk: Desk) -> dict[str, Any]:
    status: dict[str, Any] = json.loads(desk.qvpn("ada", "status", "--json").stdout)
    return status


def test_an_ordinary_user_connects_uses_and_disconnects(
    vpn_desk: tuple[Vpn, Desk, Credentials],
) -> None:
    vpn, desk, _ = vpn_desk
    client = vpn.world.client
    before = snapshot(client)
    done = desk.qvpn("ada", "up", "home")
    assert done.returncode == 0, done.stderr
    assert probes.source_seen(client, plan.ALPHA.v4) == plan.GATEWAY4
    assert status_of(desk)["state"] == "connected"
    assert desk.qvpn("ada", "down").returncode == 0
    assert snapshot(client) == before


def test_a_killed_helper_is_replaced_and_the_tunnel_comes_back(
    vpn_desk: tuple[Vpn, Desk, Credentials],
) -> None:
    vpn, desk, _ = vpn_desk
    client = vpn.world.client
    before = snapshot(client)
    assert desk.qvpn("ada", "up", "home").returncode == 0
    [killed] = helpers(client)
    os.kill(killed, signal.SIGKILL)
    until(
        lambda: helpers(client) not in ([], [killed]) and status_of(desk)["state"] == "connected",
        "connected by another helper",
    )
    assert probes.source_seen(client, plan.ALPHA.v4) == plan.GATEWAY4
    assert desk.qvpn("ada", "down").returncode == 0
    assert snapshot(client) == before


def test_root_ends_a_users_tunnel_and_it_does_not_come_back(
    vpn_desk: tuple[Vpn, Desk, Credentials],
) -> None:
    vpn, desk, _ = vpn_desk
    before = snapshot(vpn.world.client)
    assert desk.qvpn("ada", "up", "home").returncode == 0
    desk.run(QVPN, "unlock")
    until(lambda: status_of(desk)["state"] == "failed", "ended")
    assert status_of(desk)["reason"] == "helper-ended"
    assert snapshot(vpn.world.client) == before
