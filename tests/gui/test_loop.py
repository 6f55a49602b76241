"""The app's loop does what asyncio's does, and leaves Qt its turn."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import sys
import threading
import time

import pytest
from PySide6.QtCore import QObject, QTimer
from PySide6.QtWidgets import QApplication

from qvpn_gui.loop import Loop
from tests.gui.conftest import Play, until


def test_callbacks_run_in_their_order_and_not_within_the_call(play: Play) -> None:
    async def story() -> None:
        loop, seen = asyncio.get_running_loop(), list[int]()
        for number in range(5):
            loop.call_soon(seen.append, number)
        loop.call_soon(lambda: loop.call_soon(seen.append, 99))
        assert seen == []
        await asyncio.sleep(0.01)
        assert seen == [0, 1, 2, 3, 4, 99]

    play(story())


def test_timers_come_in_time_and_never_early(play: Play) -> None:
    async def story() -> None:
        loop, seen = asyncio.get_running_loop(), list[float]()
        begin = loop.time()
        for delay in (0.03, 0.01, 0.02, 0.0, 0.0105):
            loop.call_at(begin + delay, seen.append, delay)
        cancelled = loop.call_later(0.005, seen.append, -1.0)
        cancelled.cancel()
        await until(lambda: len(seen) == 5)
        assert seen == sorted(seen)
        assert loop.time() - begin >= 0.03

    play(story())


def test_cancelled_timers_do_not_pile_up(loop: Loop, play: Play) -> None:
    async def story() -> None:
        for _ in range(5000):
            loop.call_later(3600, print).cancel()
        assert len(loop._heap) < 500

    play(story())


def test_a_flood_of_callbacks_does_not_starve_the_windows(play: Play) -> None:
    async def story() -> None:
        loop, over = asyncio.get_running_loop(), False
        painted = 0

        def paint() -> None:
            nonlocal painted
            painted += 1

        def flood() -> None:
            time.sleep(0.001)
            if not over:
                loop.call_soon(flood)

        timer = QTimer(interval=5)
        timer.timeout.connect(paint)
        timer.start()
        for _ in range(50):
            loop.call_soon(flood)
        await until(lambda: painted >= 10)
        over = True
        timer.stop()

    play(story())


def test_threads_wake_the_loop(play: Play) -> None:
    async def story() -> None:
        loop, heard = asyncio.get_running_loop(), asyncio.Event()
        thread = threading.Thread(target=loop.call_soon_threadsafe, args=(heard.set,))
        thread.start()
        await heard.wait()
        thread.join()
        assert await asyncio.to_thread(lambda: 6 * 7) == 42
        found = await loop.getaddrinfo("127.0.0.1", 443, type=socket.SOCK_DGRAM)
        assert found[0][4] == ("127.0.0.1", 443)

    play(story())


def test_readers_and_writers_can_be_changed_while_they_run(play: Play) -> None:
    async def story() -> None:
        loop = asyncio.get_running_loop()
        one, other = socket.socketpair()
        with one, other:
            one.setblocking(False)
            heard: asyncio.Future[bytes] = loop.create_future()
            loop.add_reader(one, lambda: None)
            loop.add_reader(one, lambda: heard.set_result(one.recv(9)) or loop.remove_reader(one))
            writable = asyncio.Event()
            loop.add_writer(other, writable.set)
            await writable.wait()
            assert loop.remove_writer(other)
            assert not loop.remove_writer(other)
            other.send(b"hello")
            assert await heard == b"hello"
            assert not loop.remove_reader(one)

    play(story())


def test_streams_processes_and_signals_work(play: Play) -> None:
    async def story() -> None:
        loop = asyncio.get_running_loop()
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", "print(input())",
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        printed, _ = await process.communicate(b"through a pipe\n")
        assert printed == b"through a pipe\n"
        heard = asyncio.Event()
        loop.add_signal_handler(signal.SIGUSR1, heard.set)
        os.kill(os.getpid(), signal.SIGUSR1)
        await heard.wait()
        loop.remove_signal_handler(signal.SIGUSR1)

    play(story())


def test_cycles_are_collected_on_the_thread_of_qt_and_only_there(play: Play) -> None:
    where: list[int] = []

    class Cycle(QObject):
        def __init__(self) -> None:
            super().__init__()
            self.itself = self

        def __del__(self) -> None:
            where.append(threading.get_ident())

    def allocate() -> None:
        for _ in range(20):
            _kept = [[] for _ in range(10_000)]

    async def story() -> None:
        Cycle()
        await asyncio.to_thread(allocate)
        kept: list[list[int]] = []

        def more() -> bool:
            kept.extend([] for _ in range(1000))
            return bool(where)

        await until(more)
        assert where == [threading.get_ident()]

    play(story())


@pytest.mark.parametrize("elsewhere", [True, False])
def test_a_closed_loop_leaves_collection_as_it_was(qapp: QApplication, elsewhere: bool) -> None:
    before = gc.isenabled()
    try:
        (gc.enable if elsewhere else gc.disable)()
        with Loop(qapp):
            assert not gc.isenabled()
        assert gc.isenabled() == elsewhere
    finally:
        (gc.enable if before else gc.disable)()


def test_a_broken_callback_is_told_and_the_others_run(loop: Loop, play: Play) -> None:
    told: list[str] = []
    loop.set_exception_handler(lambda _loop, context: told.append(repr(context["exception"])))

    async def story() -> None:
        loop.call_soon(lambda: 1 / 0)
        heard = asyncio.Event()
        loop.call_soon(heard.set)
        await heard.wait()

    play(story())
    assert told == ["ZeroDivisionError('division by zero')"]
