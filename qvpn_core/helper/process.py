"""The root process: one session on descriptor 0, from its greeting to when everything is undone.

A loop of its own over a few descriptors, without threads but those that load `engine.py` and ask
polkit. It is deaf to the terminal; SIGTERM ends it in order. Whatever ends the session, the network
and names are as before when the process ends, or rests; only a kill switch outlives a session that
did not say goodbye.
"""

from __future__ import annotations

import array
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING, Final

from qvpn_core.errors import PermissionMissing, ProtocolViolation
from qvpn_core.helper import polkit, protocol
from qvpn_core.helper.entrance import UCRED, Entrance, Peer, open_socket, peer_of
from qvpn_core.helper.errors import NotAllowed
from qvpn_core.helper.log import Log
from qvpn_core.helper.polkit import Verdict
from qvpn_core.helper.protocol import MAX_MESSAGE
from qvpn_core.helper.rundir import RunDirectory
from qvpn_core.helper.service import Answer, Service

if TYPE_CHECKING:
    from qvpn_core.helper.engine import Engine

#: Seconds that a helper waits for a session to begin, also for the next one of the same app.
REST: Final = 900.0
#: In the environment of a helper that waits for another session. pkexec lets nobody set it.
RESTED: Final = "QVPN_RESTED"
#: Seconds that a client may take to read a reply.
_SEND: Final = 10.0
_IGNORED: Final = (
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGPIPE,
    signal.SIGTSTP,
    signal.SIGTTIN,
    signal.SIGTTOU,
    signal.SIGUSR1,
    signal.SIGUSR2,
)


class Session:
    """One session, from the socket to its end."""

    def __init__(
        self,
        channel: socket.socket,
        peer: Peer,
        log: Log,
        *,
        started_for: str | None = None,
        rested: bool = False,
    ) -> None:
        """`started_for` is PKEXEC_UID; `rested`, that an earlier session came before this one."""
        self._channel = channel
        self._peer = peer
        self._log = log
        self._started_for = started_for
        self._rested = rested
        #: Whether polkit lets the peer begin again without asking.
        self._kept = rested
        self._asking: threading.Thread | None = None
        self._entrance = Entrance(peer.uid, self._alive)
        self._service = Service(self, self.engine)
        self._directory: RunDirectory | None = None
        self._engine: Engine | None = None

    def run(self, terminated: int) -> bool:
        """Serve until the end. `terminated` is readable once the process was told to end.

        Returns whether the same peer may have another session without asking its user again.
        """
        try:
            while True:
                ready = self._wait(terminated)
                if not ready and self._directory is None:
                    return False  # nobody came
                if terminated in ready:
                    self._send(Answer(protocol.Goodbye(self._undo())))
                    return False
                if self._channel.fileno() in ready:
                    answer = self._read()
                    if answer is None or not self._send(answer) or answer.over:
                        return answer is not None and answer.rest
                if self._engine is not None:
                    self._engine.turn(time.monotonic())
        finally:
            self._undo()
            self._entrance.leave()

    # -- what needs no engine

    def begin(self) -> None:
        """Take the network; when a dead session left something in it, undo that first."""
        if self._rested and self._polkit() not in (Verdict.ALLOWED, Verdict.TO_ASK):
            raise NotAllowed("polkit no longer allows this", "ask your administrator")
        if self._started_for is not None and not self._rested:
            self._asking = threading.Thread(target=self._see_whether_kept, daemon=True)
            self._asking.start()
        self._directory = self._entrance.enter()
        self._log.info(f"a session of user {self._peer.uid} begins")
        if self._directory.has("journal"):
            self.engine()
        else:
            threading.Thread(target=_load, daemon=True).start()

    def open_socket(self, family: int, kind: int) -> socket.socket:
        """A marked socket."""
        return open_socket(family, kind)

    def engine(self) -> Engine:
        """The kernel's half, from now on."""
        if self._engine is None:
            from qvpn_core.helper.engine import Engine

            assert self._directory is not None
            self._engine = Engine(self._directory, self._peer.uid, self._log)
        return self._engine

    def may_rest(self) -> bool:
        """Whether polkit, just after it was asked, would have let the peer in once more.

        Where an administrator wants a password each time, there is nothing that we could keep.
        """
        if self._asking is not None:  # a session that was over before polkit had answered
            self._asking.join()
        return self._kept

    def _see_whether_kept(self) -> None:
        self._kept = self._polkit() is Verdict.ALLOWED

    def _polkit(self) -> Verdict:
        return polkit.check(polkit.SESSION, self._peer.pid, self._peer.uid)

    # -- the socket

    def _wait(self, terminated: int) -> set[int]:
        """What is readable, and nothing when no session has begun for too long."""
        poller = select.poll()
        numbers = [terminated, self._channel.fileno()]
        timeout = None if self._directory is not None else REST * 1000
        if self._engine is not None:
            numbers += self._engine.filenos()
            due = self._engine.due()
            timeout = None if due is None else max(0.0, due - time.monotonic()) * 1000 + 1
        for number in numbers:
            poller.register(number, select.POLLIN)
        return {number for number, _ in poller.poll(timeout)}

    def _read(self) -> Answer | None:
        """The answer to the next packet; None at the end."""
        try:
            # Room for the sender's credentials only: the kernel drops descriptors that do not fit.
            data, ancillary, flags, _ = self._channel.recvmsg(
                MAX_MESSAGE, socket.CMSG_SPACE(UCRED.size), socket.MSG_CMSG_CLOEXEC
            )
        except OSError:
            return None
        if not data:
            return None
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            return _violation("a packet that is too long, or with descriptors")
        if not self._from_peer(ancillary):
            return _violation("a packet of another process")
        return self._service.handle(data)

    def _from_peer(self, ancillary: Sequence[tuple[int, int, bytes]]) -> bool:
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_CREDENTIALS:
                pid, uid, _gid = UCRED.unpack(data)
                return (pid, uid) == (self._peer.pid, self._peer.uid)
        return False

    def _send(self, answer: Answer) -> bool:
        """Whether the peer has it. What rides with it is closed here."""
        ancillary = []
        if answer.descriptor is not None:
            number = array.array("i", [answer.descriptor.fileno()])
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, number)]
        try:
            self._channel.sendmsg([protocol.encode(answer.reply)], ancillary)
        except OSError:
            return False
        finally:
            if answer.descriptor is not None:
                answer.descriptor.close()
        return True

    def _alive(self) -> bool:
        poller = select.poll()
        poller.register(self._channel, 0)  # only what is always told: the other end's end
        return not poller.poll(0)

    def _undo(self) -> tuple[str, ...]:
        if self._engine is None:
            return ()
        return self._engine.undo()


def _violation(what: str) -> Answer:
    reason = ProtocolViolation.reason
    return Answer(protocol.Failed(reason, what, "install qvpn again"), over=True)


def _load() -> None:
    """Import the engine while the client finds its gateway; long before an end may need it.

    By then, an upgrade may have removed the files.
    """
    import_module("qvpn_core.helper.engine")


def serve(started_for: str | None, *, rested: bool) -> None:
    """Serve the peer of descriptor 0, then end, or begin anew: then it does not return.

    `rested` says that this is such a new beginning. Raises PermissionMissing before anything else.
    """
    log = Log()
    terminated = _terminated()
    try:
        channel = socket.socket(fileno=0)
        if (channel.family, channel.type) != (socket.AF_UNIX, socket.SOCK_SEQPACKET):
            raise OSError
    except OSError:
        raise PermissionMissing("qvpn-helper is not for the hand", "use qvpn up") from None
    with channel:
        peer = peer_of(channel, started_for)
        channel.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        channel.settimeout(_SEND)
        _leave_terminal()
        try:
            session = Session(channel, peer, log, started_for=started_for, rested=rested)
            rest = session.run(terminated)
        except Exception as defect:
            log.warning(f"a defect: {defect!r} at {_place(defect)}")
            raise
        log.info("the session is over")
        if rest and started_for is not None and not _told_to_end(terminated):
            # By the program itself, so that nothing of one session is in the next.
            environment = {"PKEXEC_UID": started_for, RESTED: "1"}
            os.execve(sys.executable, sys.orig_argv, environment)  # noqa: S606


def _terminated() -> int:
    """A descriptor that becomes readable with SIGTERM."""
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    readable, writable = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.set_wakeup_fd(writable, warn_on_full_buffer=False)
    signal.signal(signal.SIGTERM, lambda *_: None)
    return readable


def _told_to_end(terminated: int) -> bool:
    """Whether SIGTERM has come; from now on it ends the process where it is."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    return bool(select.select([terminated], [], [], 0)[0])


def _leave_terminal() -> None:
    """A session of its own, and nothing to write to."""
    with suppress(PermissionError):  # it leads one already
        os.setsid()
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for number in (1, 2):
        os.dup2(null, number)
    os.close(null)


def _place(defect: BaseException) -> str:
    trace = defect.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return "unknown"
    return f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"
