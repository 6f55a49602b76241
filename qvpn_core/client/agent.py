"""The process behind ``qvpn up``: one tunnel, its control socket, its signals, its end.

One per runtime directory, held by a lock that dies with the process. ``qvpn up`` starts it detached
through `start_detached` and hears one line from it: connected, or why not; ``--foreground`` calls
`run` in its own process. It parses no command line and prints nothing.
"""

from __future__ import annotations

import asyncio
import logging
import logging.handlers
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import msgspec

from qvpn_core.client import control, paths, profiles
from qvpn_core.client.holding import hold
from qvpn_core.client.profiles import Profile
from qvpn_core.client.resting import Resting
from qvpn_core.client.states import State
from qvpn_core.client.status import Status
from qvpn_core.client.tunnel import Change, Tunnel
from qvpn_core.errors import QvpnError, UsageError
from qvpn_core.program import module_command

log = logging.getLogger("qvpn")

_LOG_BYTES = 256 << 10
#: A gateway that does not hear our close, and a kernel that is slow to undo, together.
_STOP_SECONDS = 15.0


_first_word = msgspec.json.Decoder(control.StatusReply | control.Refusal)


async def run(
    wish: control.Wish,
    on_change: Callable[[Tunnel, Change], None] | None = None,
    *,
    signals: bool = True,
    resting: Resting | None = None,
) -> None:
    """Bring the tunnel up and hold it until `down`, SIGINT, SIGTERM or SIGHUP, or until it fails.

    Without `signals` these are left to the caller, who may cancel instead, to the same effect. With
    `resting`, the next tunnel of this process need not ask for permission.
    When it returns or raises, the network is as it was before. Raises the QvpnError with which the
    tunnel failed, and UsageError when another agent runs.
    """
    tunnel = _Tunnel(wish, signals=signals, resting=resting)
    tunnel.subscribe(lambda change: _log_change(tunnel, change))
    if on_change is not None:
        tunnel.subscribe(lambda change: on_change(tunnel, change))
    await hold(tunnel, lambda request: _answer(request, tunnel))


class _Tunnel(Tunnel):
    """A tunnel that perhaps hears signals while it lives."""

    def __init__(self, wish: control.Wish, *, signals: bool, resting: Resting | None) -> None:
        super().__init__(_profile(wish), wish.policy(), wish.kill_switch, resting=resting)
        self._signals = signals

    async def run(self) -> None:
        with _signals(self.disconnect) if self._signals else nullcontext():
            await super().run()


def _profile(wish: control.Wish) -> Profile:
    return replace(profiles.load(wish.profile), transport=wish.transport)


async def _answer(request: control.Concern, tunnel: Tunnel) -> control.Reply:
    match request:
        case control.SignInRequest(seconds=seconds):
            return control.SignInReply(await tunnel.sign_in(seconds))
        case control.RoutesRequest(mode, destinations, excluded):
            tunnel.set_policy(profiles.route_policy(mode, destinations, excluded))
            return control.Done()
        case control.KillSwitchRequest(mode):
            await tunnel.set_kill_switch(mode)
            return control.Done()
        case control.OfferRequest():
            return control.OfferReply(*tunnel.offer())
        case control.RetryRequest():
            tunnel.retry()
            return control.Done()
        case control.ConnectRequest(wish=wish):
            if tunnel.state is not State.BLOCKED:
                raise UsageError(
                    f"profile {tunnel.profile.name!r} is {tunnel.state} already",
                    "end it first: qvpn down",
                )
            await tunnel.connect(_profile(wish), wish.policy(), wish.kill_switch)
            return control.StatusReply(tunnel.status())
        case control.ExplainRequest(destination=destination):
            try:
                explanation = tunnel.explain(ip_address(destination))
            except ValueError:
                raise UsageError(f"{destination!r} is not an address") from None
            return control.ExplainReply(
                explanation.way, str(explanation.rule or ""), explanation.words
            )


def start_detached(wish: control.Wish) -> Status:
    """Start an agent that outlives us and wait until it is connected, or the kill switch blocks.

    Raises the agent's QvpnError. On KeyboardInterrupt the agent is ended and has undone everything
    when the exception goes on.
    """
    process: subprocess.Popen[bytes] | None = None
    try:
        process = subprocess.Popen(
            module_command("qvpn_core.client.agent"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd="/",
        )
        assert process.stdin is not None
        assert process.stdout is not None
        with process.stdin as stdin, suppress(BrokenPipeError):
            stdin.write(msgspec.json.encode(wish))
        line = process.stdout.readline()
    except BaseException:
        if process is not None:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(_STOP_SECONDS)
        raise
    try:
        word: control.StatusReply | control.Refusal = _first_word.decode(line)
    except msgspec.MsgspecError:
        process.wait()
        raise QvpnError("the qvpn process ended without a word", f"see {_log_file()}") from None
    if isinstance(word, control.Refusal):
        process.wait()
        raise _refused(word)
    return word.status


def _refused(word: control.Refusal) -> QvpnError:
    error = UsageError if word.reason == UsageError.reason else QvpnError
    return error(word.what, word.hint)


@contextmanager
def _signals(stop: Callable[[], None]) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    for number in numbers:
        loop.add_signal_handler(number, stop)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


def _log_file() -> Path:
    return paths.state_dir() / "agent.log"


def _log_change(tunnel: Tunnel, change: Change) -> None:
    before, after = change.transition.before, change.state
    if change.error is not None:
        log.warning("%s: %s", after, change.error)
    elif after is State.CONNECTED and before is not State.CONNECTED:
        log.info("connected to %s as %s", tunnel.profile.gateway, ", ".join(tunnel.addresses))
    elif after is not before:
        log.info("%s", after)


class _FirstWord:
    """The one line that a detached agent says to who started it; later ones go nowhere."""

    def __init__(self) -> None:
        self._said = False

    def say(self, word: control.StatusReply | control.Refusal) -> None:
        if self._said:
            return
        self._said = True
        # Until now the terminal was needed, for polkit may ask for a password there.
        with suppress(PermissionError):
            os.setsid()
        with suppress(BrokenPipeError):
            os.write(sys.stdout.fileno(), msgspec.json.encode(word) + b"\n")
        # Whoever reads our output to its end must not wait for as long as the tunnel lives.
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)

    def on_change(self, tunnel: Tunnel, change: Change) -> None:
        if change.state in (State.CONNECTED, State.BLOCKED):
            self.say(control.StatusReply(tunnel.status()))


def _log_to_file() -> None:
    try:
        paths.make_private(_log_file().parent)
        handler: logging.Handler = logging.handlers.RotatingFileHandler(
            _log_file(), maxBytes=_LOG_BYTES, backupCount=1
        )
    except OSError:
        handler = logging.NullHandler()  # no log is no reason to have no tunnel
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)


def main() -> int:
    """The detached agent's entry: a Wish on standard input, one reply line on standard output."""
    os.umask(0o077)
    first_word = _FirstWord()
    _log_to_file()
    try:
        wish = msgspec.json.decode(sys.stdin.buffer.read(), type=control.Wish)
        asyncio.run(run(wish, first_word.on_change))
    except QvpnError as error:
        first_word.say(control.refusal(error))
        return 1
    except Exception as defect:
        log.exception("the agent ended by a defect")
        first_word.say(
            control.Refusal("internal", f"qvpn has a defect: {defect!r}", str(_log_file()))
        )
        return 1
    # Unheard, unless it ended before it was up.
    first_word.say(control.Refusal("interrupted", "it was ended before it was connected"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
