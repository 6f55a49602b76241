"""The tunnel does what its state machine says: one session at a time, pauses, an orderly end.

The sessions here follow a script; real ones against a real gateway are in tests/integration.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import replace
from ipaddress import ip_network
from typing import Any

import pytest

from qvpn_core.client import states
from qvpn_core.client import tunnel as module
from qvpn_core.client.attachment import Attachment
from qvpn_core.client.moving import LeftBehind, Mover
from qvpn_core.client.planner import RoutePolicy
from qvpn_core.client.profiles import Profile, make_profile
from qvpn_core.client.states import Event, FirewallPolicy, KillSwitchMode, State
from qvpn_core.client.status import Stage, Status
from qvpn_core.client.tunnel import InternalError, Tunnel
from qvpn_core.errors import (
    AuthenticationFailed,
    CaptivePortal,
    GatewayRefused,
    GatewayUnreachable,
    NetworkSetupFailed,
    NoNetwork,
    TunnelLost,
    UsageError,
)
from qvpn_core.helper.errors import HelperLost
from qvpn_core.net.plan import KillSwitch
from qvpn_core.net.watch import Way

PROFILE = make_profile("home", "vpn.example.org", "token")
UNREACHABLE = GatewayUnreachable("no answer")
LOST = TunnelLost("gone")
REJECTED = AuthenticationFailed("not known")
LEFT_BEHIND = LeftBehind("the network changed")
PORTAL = CaptivePortal("sign in first", url="http://portal.example/")


class Script:
    """What the next sessions do: `True` is up, an exception ends the session, else it stays."""

    def __init__(self, *sessions: tuple[bool | Exception, ...], can_block: bool = True) -> None:
        self.sessions = list(sessions)
        self.can_block = can_block
        self.running = 0
        self.started = 0
        self.ended_by_cancellation = 0
        self.mover: Mover | None = None

    def session(
        self,
        profile: Profile,
        policy: RoutePolicy,
        attachment: Attachment,
        mover: Mover,
        *,
        kill_switch: KillSwitchMode,
        on_up: Callable[[], None],
        on_stage: Callable[[Stage], None],
        hurried: bool,
    ) -> ScriptedSession:
        self.mover = mover
        if self.can_block and kill_switch != "off":
            attachment.kill_switch = KillSwitch()
        return ScriptedSession(self, profile, policy, attachment, on_up, on_stage)


class ScriptedSession:
    def __init__(
        self,
        script: Script,
        profile: Profile,
        policy: RoutePolicy,
        attachment: Attachment,
        on_up: Callable[[], None],
        on_stage: Callable[[Stage], None],
    ) -> None:
        self.script = script
        self.policy = policy
        self.attachment = attachment
        self.on_stage = on_stage
        #: Changed by what the session learns, here that there was one more.
        self.profile = replace(profile, port=profile.port + 1)
        self.on_up = on_up

    async def run(self) -> None:
        script = self.script
        assert script.running == 0, "two sessions at once"
        script.running += 1
        script.started += 1
        try:
            for step in script.sessions.pop(0):
                self.on_stage("handshake")
                await asyncio.sleep(0)
                if isinstance(step, Exception):
                    raise step
                self.on_up()
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            script.ended_by_cancellation += 1
            raise
        finally:
            script.running -= 1

    def set_policy(self, policy: RoutePolicy) -> None:
        if policy.mode == "only":
            raise GatewayRefused("too many routes")
        self.policy = policy

    async def set_kill_switch(self, mode: KillSwitchMode) -> None:
        if mode == "always":
            raise NetworkSetupFailed("the kill switch cannot be written", "is the disk full?")
        self.attachment.kill_switch = KillSwitch() if mode == "on" else None

    def snapshot(self) -> Status:
        return Status(transport="quic")


class Watch:
    """Follows a tunnel's states."""

    def __init__(self, tunnel: Tunnel) -> None:
        self.tunnel = tunnel
        self.states: list[State] = []
        self._changed = asyncio.Event()
        tunnel.subscribe(self._on_change)

    def _on_change(self, change: module.Change) -> None:
        if change.transition.before is not change.state:
            self.states.append(change.state)
        self._changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._changed.clear()
            await self._changed.wait()


def play(
    monkeypatch: pytest.MonkeyPatch,
    script: Script,
    story: Callable[[Tunnel, Watch], Coroutine[Any, Any, None]],
    *,
    random: float = 1.0 - 2**-20,
    kill_switch: KillSwitchMode = "off",
) -> None:
    """Run a tunnel over `script` while `story` drives it."""
    monkeypatch.setattr(module, "Session", script.session)

    async def main() -> None:
        tunnel = Tunnel(PROFILE, RoutePolicy(), kill_switch, random=lambda: random)
        await asyncio.wait_for(story(tunnel, Watch(tunnel)), 10)
        assert script.running == 0
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert not left, "no task outlives the tunnel"

    asyncio.run(main())


@pytest.fixture
def long_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses outlast every story: only something else ends them."""
    monkeypatch.setattr(states, "FIRST_DELAY", 60.0)


def test_up_and_down(monkeypatch: pytest.MonkeyPatch) -> None:
    script = Script((True,))

    async def story(tunnel: Tunnel, watch: Watch) -> None:
        run = asyncio.create_task(tunnel.run())
        await watch.until(lambda: tunnel.state is State.CONNECTED)
        assert tunnel.status().transport == "quic"
        tunnel.disconnect()
        tunnel.disconnect()
        await run
        assert watch.states == [
            State.CONNECTING,
            State.CONNECTED,
            State.DISCONNECTING,
            State.DISCONNECTED,
        ]
        assert tunnel.status().error is None

    play(monkeypatch, script, story)
    assert script.ended_by_cancellation == 1


def test_whoever_watches_sees_every_stage_every_state_and_the_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    script = Script((True,))

    async def story(tunnel: Tunnel, watch: Watch) -> None:
        run = asyncio.create_task(tunnel.run())
        seen = []
        async for status in tunnel.watch():
            seen.append((status.state, status.stage))
            if status.state is State.CONNECTED:
                tunnel.disconnect()
        await run
        assert (State.CONNECTING, "handshake") in seen
        assert all(stage is None for state, stage in seen if state is not State.CONNECTING)
        assert list(dict.fromkeys(state for state, _ in seen[1:])) == [
            State.CONNECTING,
            State.CONNECTED,
            State.DISCONNECTING,
            State.DISCONNECTED,
        ]

    play(monkeypatch, script, story)


def test_a_tunnel_that_fails_says_so_to_those_who_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(tunnel: Tunnel, watch: Watch) -> None:
        run = asyncio.create_task(tunnel.run())
        last = [status async for status in tunnel.watch()][-1]
        assert (last.state, last.reason, last.stage) == (State.FAILED, LOST.reason, None)
        with pytest.raises(TunnelLost):
            await run

    play(monkeypatch, Script((LOST,)), story)


def test_a_new_route_policy_is_in_force_at_once_or_not_at_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def story(tunnel: Tunnel, watch: Watch) -> None:
        run = asyncio.create_task(tunnel.run())
        await watch.until(lambda: tunnel.state is State.CONNECTED)
        tunnel.set_policy(RoutePolicy("all-except", (), (ip_network("192.0.2.0/24"),)))
        assert tunnel.status().excluded == ("192.0.2.0/24",)
        with pytest.raises(GatewayRefused):
            tunnel.set_policy(RoutePolicy("only", (ip_network("192.0.2.0/24"),)))
        assert tunnel.status().mode == "all-except"
        tunnel.disconnect()
        await run

    play(monkeypatch, Script((True,)), story)


def test_the_kill_switch_of_a_live_session_is_changed_at_once_or_not_at_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def story(tunnel: Tunnel, watch: Watch) -> None:
        def held() -> tuple[str, str]:
            return tunnel.status().kill_switch, tunnel.status().firewall

        with pytest.raises(UsageError, match="disconnected"):
            await tunnel.set_kill_switch("on")
        run = asyncio.create_task(tunnel.run())
        await watch.until(lambda: tunnel.state is State.CONNECTED)
        await tunnel.set_kill_switch("on")
        assert held() == ("on", FirewallPolicy.BLOCK)
        with pytest.raises(NetworkSetupFailed):
            await tunnel.set_kill_switch("always")
        assert held() == ("on", FirewallPolicy.BLOCK)
        await tunnel.set_kill_switch("off")
        assert held() == ("off", FirewallPolicy.OPEN)
        tunnel.disconnect()
        await run

    play(monkeypatch, Script((True,)), story)


def test_in_a_pause_a_new_kill_switch_is_what_the_next_attempt_begins_with_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def story(tunnel: Tunnel, watch: Watch) -> None:
        run = asyncio.create_task(tunnel.run())
        await watch.until(lambda: State.RECONNECTING in watch.states)
        await tunnel.set_kill_switch("on")
        await watch.until(lambda: tunnel.state is State.BLOCKED)
        assert tunnel.status().firewall is FirewallPolicy.BLOCK
        tunnel.disconnect()
        await run

    play(monkeypatch, Script((True, LOST), (REJECTED,)), story, random=0.0)


@pytest.mark.usefixtures("long_pause")
def test_who_does_not_want_to_wait_ends_the_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    script = Script((True, LOST), (True,))

    async def story(tunnel: Tunnel, watch: Watch) -> None:
        run = asyncio.create_task(tunnel.run())
        await watch.until(lambda: State.RECONNECTING in watch.states)
        tunnel.retry()
        assert script.started == 1  # a task does it
        await watch.until(lambda: tunnel.state is State.CONNECTED)
        tunnel.retry()  # nothing to do
        tunnel.disconnect()
        await run
        assert script.started == 2

    play(monkeypatch, script, story)


@pytest.mark.parametrize("error", [UNREACHABLE, REJECTED])
def test_a_first_attempt_that_fails_ends_the_tunnel_with_its_reason(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    async def story(tunnel: Tunnel, watch: Watch) -> None:
        with pytest.raises(type(error)):
            await tunnel.run()
        assert watch.states == [State.CONNECTING, State.FAILED]
        assert tunnel.status().error == str(error)

    play(monkeypatch, Script((error,)), story)


def test_giving_up_with_a_kill_switch_blocks_until_the_user_disconnects(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def story(tunnel: Tunnel, watch: Watch) -> None:
        run = asyncio.create_task(tunnel.run())
        await watch.until(lambda: tunnel.state is State.BLOCKED)
        status = tunnel.status()
        assert (status.kill_switch, status.firewall) == ("on", FirewallPolicy.BLOCK)
        assert status.error == str(REJECTED)
        tunnel.disconnect()
        await run
        assert watch.states[-1] is State.DISCONNECTED
        assert tunnel.status().firewall is FirewallPolicy.OPEN

    play(monkeypatch, Script((True, REJECTED)), story, kill_switch="on")


def test_from_blocked_another_profile_is_tried_without_opening_in_between(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def story(tunnel: Tunnel, watch: Watch) -> None:
        run = asyncio.create_task(tunnel.run())
        await watch.until(lambda: tunnel.state is State.BLOCKED)
        other = replace(PROFILE, name="other")
        for state in (State.BLOCKED, State.CONNECTED):
            await tunnel.connect(other, RoutePolicy(lan=True), "always")
            assert tunnel.state is state
            assert tunnel.status().profile == "other"
        assert State.DISCONNECTED not in watch.states
        assert State.FAILED not in watch.states
        tunnel.disconnect()
        await run

    play(monkeypatch, Script((REJECTED,), (LOST,), (True,)), story, kill_switch="on")


def test_a_kill_switch_that_could_not_be_put_in_force_does_not_pretend(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def story(tunnel: Tunnel, watch: Watch) -> None:
        with pytest.raises(AuthenticationFailed):
            await tunnel.run()
        assert watch.states == [State.CONNECTING, State.FAILED]
        assert tunnel.status().firewall is FirewallPolicy.OPEN

    play(monkeypatch, Script((REJECTED,), can_block=False), story, kill_switch="always")


def test_a_lost_tunnel_comes_back_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    script = Script((True, LOST), (UNREACHABLE,), (True,))

    async def story(tunnel: Tunnel, watch: Watch) -> None:
        run = asyncio.create_task(tunnel.run())
        await watch.until(lambda: tunnel.state is State.RECONNECTING)
        assert tunnel.status().reason == "tunnel-lost"
        await watch.until(lambda: tunnel.state is State.CONNECTED)
        assert tunnel.status().reason is None, "a connected tunnel has nothing to explain"
        tunnel.disconnect()
        await run

    play(monkeypatch, script, story)
    assert script.started == 3


def test_what_one_session_learned_of_its_gateway_the_next_one_knows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def story(tunnel: Tunnel, watch: Watch) -> None:
        run = asyncio.create_task(tunnel.run())
        await watch.until(lambda: tunnel.state is State.RECONNECTING)
        assert tunnel.profile.port == PROFILE.port + 1
        await watch.until(lambda: tunnel.state is State.CONNECTED)
        tunnel.disconnect()
        await run
        assert tunnel.profile.port == PROFILE.port + 2

    play(monkeypatch, Script((True, LOST), (True,)), story, random=0.0)


@pytest.mark.usefixtures("long_pause")
def test_a_network_that_comes_up_ends_the_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(tunnel: Tunnel, watch: Watch) -> None:
        run = asyncio.create_task(tunnel.run())
        await watch.until(lambda: tunnel.state is State.RECONNECTING)
        tunnel.network_up()
        tunnel.network_up()
        await watch.until(lambda: tunnel.state is State.CONNECTED)
        tunnel.disconnect()
        await run

    play(monkeypatch, Script((True, LOST), (True,)), story)


@pytest.mark.usefixtures("long_pause")
def test_a_session_that_could_not_come_along_is_replaced_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def story(tunnel: Tunnel, watch: Watch) -> None:
        run = asyncio.create_task(tunnel.run())
        await watch.until(lambda: watch.states[-1:] == [State.RECONNECTING])
        await watch.until(lambda: tunnel.state is State.CONNECTED)
        tunnel.disconnect()
        await run

    play(monkeypatch, Script((True, LEFT_BEHIND), (True,)), story, random=0.0)


@pytest.mark.usefixtures("long_pause")
def test_a_pause_ends_when_another_way_appears_and_not_for_other_news(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def story(tunnel: Tunnel, watch: Watch) -> None:
        around = tunnel._surroundings
        way: list[Way | None] = [None]
        around.addresses, around.way_to = ("203.0.113.130",), lambda _peer: way[0]
        run = asyncio.create_task(tunnel.run())
        await watch.until(lambda: tunnel.state is State.RECONNECTING)
        for _ in range(3):
            around.news()  # there is still no network
            await asyncio.sleep(0)
        assert tunnel.state is State.RECONNECTING
        assert script.started == 1
        way[0] = Way(2, None, None, 1)
        around.news()
        await watch.until(lambda: tunnel.state is State.CONNECTED)
        tunnel.disconnect()
        await run

    script = Script((True, LOST), (True,))
    play(monkeypatch, script, story)


@pytest.mark.usefixtures("long_pause")
def test_sleep_ends_a_pause_although_the_way_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(tunnel: Tunnel, watch: Watch) -> None:
        around = tunnel._surroundings
        around.addresses, around.way_to = ("203.0.113.130",), lambda _peer: Way(2, None, None, 1)
        run = asyncio.create_task(tunnel.run())
        await watch.until(lambda: tunnel.state is State.RECONNECTING)
        around.news(3600.0)
        await watch.until(lambda: tunnel.state is State.CONNECTED)
        tunnel.disconnect()
        await run

    play(monkeypatch, Script((True, LOST), (True,)), story, random=0.0)


def test_trouble_of_a_live_session_is_in_the_status(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(tunnel: Tunnel, watch: Watch) -> None:
        run = asyncio.create_task(tunnel.run())
        await watch.until(lambda: tunnel.state is State.CONNECTED)
        assert script.mover is not None
        script.mover.trouble = NoNetwork("no network")
        assert tunnel.status().state is State.CONNECTED
        assert tunnel.status().reason == "no-network"
        script.mover.trouble = None
        assert tunnel.status().reason is None
        tunnel.disconnect()
        await run

    script = Script((True,))
    play(monkeypatch, script, story)


# A captive portal


def test_behind_a_portal_it_is_tried_every_few_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing tells when somebody has signed in; a pause of a minute would be too long."""

    async def story(tunnel: Tunnel, watch: Watch) -> None:
        run = asyncio.create_task(tunnel.run())
        await watch.until(lambda: tunnel.state is State.RECONNECTING)
        tunnel._machine._attempt = 10  # a minute
        tunnel._feed(Event.RETRY_DUE)
        await watch.until(lambda: tunnel.status().reason == "captive-portal")
        assert tunnel.status().portal == "http://portal.example/"
        due = tunnel._machine.retry_at
        assert due is not None
        assert due - asyncio.get_running_loop().time() <= module.PORTAL_RETRY
        tunnel.disconnect()
        await run

    play(monkeypatch, Script((True, LOST), (PORTAL,)), story, random=0.0)


@pytest.mark.usefixtures("long_pause")
@pytest.mark.parametrize("possible", [True, False])
def test_signing_in_lets_a_browser_out_and_says_what_to_open(
    monkeypatch: pytest.MonkeyPatch, possible: bool
) -> None:
    async def story(tunnel: Tunnel, watch: Watch) -> None:
        let_out: list[int] = []

        async def let(seconds: int) -> None:
            let_out.append(seconds)

        if possible:
            monkeypatch.setattr(tunnel._attachment, "sign_in", let)
        run = asyncio.create_task(tunnel.run())
        await watch.until(lambda: tunnel.state is State.RECONNECTING)
        with pytest.raises(UsageError, match="does not ask"):
            await tunnel.sign_in(60)
        tunnel.network_up()
        await watch.until(lambda: tunnel.status().reason == "captive-portal")
        if possible:
            assert await tunnel.sign_in(60) == "http://portal.example/"
            assert let_out == [60]
        else:
            with pytest.raises(HelperLost):
                await tunnel.sign_in(60)
        tunnel.disconnect()
        await run

    play(monkeypatch, Script((True, LOST), (PORTAL,)), story, random=0.0)


def test_a_revoked_device_stops_trying(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(tunnel: Tunnel, watch: Watch) -> None:
        with pytest.raises(AuthenticationFailed):
            await tunnel.run()
        assert watch.states[-2:] == [State.RECONNECTING, State.FAILED]

    play(monkeypatch, Script((True, LOST), (REJECTED,)), story)


def test_a_defect_ends_the_tunnel_instead_of_hanging_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def story(tunnel: Tunnel, _watch: Watch) -> None:
        with pytest.raises(InternalError, match="ZeroDivisionError"):
            await tunnel.run()

    play(monkeypatch, Script((True, ZeroDivisionError())), story)
    assert "Traceback" in caplog.text


@pytest.mark.parametrize("script", [(), (True,), (True, LOST)], ids=["trying", "up", "pausing"])
def test_cancelling_ends_everything_in_every_phase(
    monkeypatch: pytest.MonkeyPatch, script: tuple[bool | Exception, ...]
) -> None:
    goal = [State.CONNECTING, State.CONNECTED, State.RECONNECTING][len(script)]

    async def story(tunnel: Tunnel, watch: Watch) -> None:
        run = asyncio.create_task(tunnel.run())
        await watch.until(lambda: tunnel.state is goal)
        run.cancel()
        await asyncio.wait([run])
        assert run.cancelled()

    play(monkeypatch, Script(script), story)


def test_disconnecting_right_after_connecting_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def story(tunnel: Tunnel, _watch: Watch) -> None:
        tunnel.subscribe(
            lambda change: tunnel.disconnect() if change.state is State.CONNECTING else None
        )
        await tunnel.run()
        assert tunnel.state is State.DISCONNECTED

    play(monkeypatch, Script((True,)), story)
