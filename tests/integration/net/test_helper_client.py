"""The client's half against the real helper: replies in order, whatever is cancelled or dies."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from ipaddress import ip_network
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from qvpn_core.client.attachment import Attachment
from qvpn_core.client.planner import RoutePolicy
from qvpn_core.errors import GatewayUnreachable, NetworkSetupFailed
from qvpn_core.helper.client import Helper
from qvpn_core.helper.errors import HelperEnded, HelperLost, NetworkTaken
from qvpn_core.net.plan import KillSwitch, NetworkPlan, Route
from tests.integration.net.raw_helper import PATIENCE, plan_for
from tests.world.vpn import until

if TYPE_CHECKING:
    from conftest import Namespace

pytestmark = [pytest.mark.netns, pytest.mark.usefixtures("namespace")]
FULL = plan_for()
SPLIT = plan_for(RoutePolicy("only", (ip_network("198.51.100.0/24"),)))
LARGE = NetworkPlan(
    FULL.addresses,
    1300,
    tuple(Route(ip_network((i << 100, 64)), "throw", "excluded") for i in range(32, 3532)),
)


def play(namespace: Namespace, story: Callable[[Helper], Awaitable[object]]) -> None:
    """Run a story with a helper; the network is as before afterwards, nothing is left open."""
    before = namespace.snapshot()

    async def main() -> None:
        async with asyncio.timeout(PATIENCE * 2):
            helper = await Helper.start()
            try:
                await story(helper)
            finally:
                await helper.close()
                await helper.close()
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert not left

    asyncio.run(main())
    assert namespace.snapshot() == before


def test_a_tunnel_and_its_end(namespace: Namespace) -> None:
    async def story(helper: Helper) -> None:
        with await helper.open_tun(1300) as tun:
            assert tun.name == "qvpn0"
            state = await helper.apply(FULL, None)
            assert state is not None
            assert state.backend == "none"
            assert (await helper.report()).routes == len(FULL.routes)
            await helper.set_firewall(KillSwitch())
            assert (await helper.report()).kill_switch == "on"

    play(namespace, story)


def test_errors_come_back_as_what_they_were(namespace: Namespace) -> None:
    async def story(helper: Helper) -> None:
        with pytest.raises(NetworkSetupFailed, match="no device"):
            await helper.apply(FULL, None)
        sock = await helper.open_socket(socket.AF_INET6, socket.SOCK_DGRAM)
        assert (sock.family, sock.type) == (socket.AF_INET6, socket.SOCK_DGRAM)
        sock.close()
        with pytest.raises(NetworkTaken):
            await Helper.start()
        assert issubclass(GatewayUnreachable, Exception)

    play(namespace, story)


def test_requests_are_answered_in_order_also_after_cancellations(namespace: Namespace) -> None:
    async def story(helper: Helper) -> None:
        descriptors = len(os.listdir("/proc/self/fd"))
        with await helper.open_tun(1300):
            # Several large ones at once do not fit the socket's buffer.
            tasks = [
                asyncio.ensure_future(helper.apply(plan, None)) for plan in (FULL, *[LARGE] * 5)
            ]
            tasks += [
                asyncio.ensure_future(helper.open_socket(socket.AF_INET, socket.SOCK_DGRAM))
                for _ in range(4)
            ]
            await asyncio.sleep(0)
            for task in tasks[1::2]:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            for task, result in zip(tasks, results, strict=True):
                assert task.cancelled() or not isinstance(result, Exception), result
                if isinstance(result, socket.socket):
                    result.close()
            assert (await helper.report()).routes > 0
        # What arrived for those who were gone was closed.
        assert len(os.listdir("/proc/self/fd")) == descriptors

    play(namespace, story)


def test_a_helper_that_dies_is_noticed_by_all_who_wait_and_the_next_cleans_up(
    namespace: Namespace,
) -> None:
    before = namespace.snapshot()

    async def story(helper: Helper) -> None:
        with await helper.open_tun(1300):
            await helper.apply(FULL, None)
            waiting = asyncio.ensure_future(helper.apply(LARGE, None))
            await asyncio.sleep(0)
            helper._process.kill()
            with pytest.raises(HelperLost):
                await waiting
            assert isinstance(await helper.lost, HelperLost)
            with pytest.raises(HelperLost):
                await helper.report()
        await (await Helper.start()).close()
        assert namespace.snapshot() == before

    play(namespace, story)


def test_a_helper_that_is_told_to_end_says_so(namespace: Namespace) -> None:
    async def story(helper: Helper) -> None:
        with await helper.open_tun(1300):
            await helper.apply(FULL, None)
            os.kill(helper._process.pid, signal.SIGTERM)
            ended = await helper.lost
            assert isinstance(ended, HelperEnded)
            assert not ended.transient

    play(namespace, story)


def test_a_cancelled_start_leaves_no_process(namespace: Namespace) -> None:
    async def main() -> None:
        for delay in (0.0, 0.02, 0.06):
            starting = asyncio.ensure_future(Helper.start())
            await asyncio.wait([starting], timeout=delay)
            starting.cancel()
            await asyncio.wait([starting])
            if not starting.cancelled():
                await starting.result().close()

    asyncio.run(main())
    until(lambda: not helpers(), "no helper is left")


def helpers() -> list[str]:
    """The helpers that this process started and that still run."""
    found = []
    for file in Path("/proc/self/task").glob("*/children"):
        for pid in file.read_text().split():
            with suppress(OSError):
                if b"qvpn_core.helper" in Path("/proc", pid, "cmdline").read_bytes():
                    found.append(pid)
    return found


def test_an_attachment_gets_over_the_death_of_its_helper(namespace: Namespace) -> None:
    before = namespace.snapshot()

    async def main() -> None:
        attachment = Attachment()
        lost: list[Exception] = []
        await attachment.prepare(None)
        with attachment.watched(lost.append):
            await attachment.attach(FULL, None)
            assert attachment._helper is not None
            attachment._helper._process.kill()
            await attachment._helper.lost
            await asyncio.sleep(0)
            assert [type(error) for error in lost] == [HelperLost]
        assert "9484" in await asyncio.to_thread(namespace.ip, "rule"), "nothing leaks meanwhile"
        await attachment.prepare(None)
        assert attachment.plan is None
        await attachment.attach(SPLIT, None)
        attachment._helper._process.kill()
        await attachment._helper.lost
        await attachment.release()
        await attachment.close()

    asyncio.run(main())
    assert namespace.snapshot() == before


def test_it_works_on_the_event_loop_of_qt(namespace: Namespace) -> None:
    pytest.importorskip("qasync", reason="needs the extra gui: PySide6-Essentials and qasync")
    script = """
import asyncio, sys, qasync
from PySide6.QtCore import QCoreApplication
from qvpn_core.helper.client import Helper
async def main():
    helper = await Helper.start()
    (await helper.open_tun(1300)).close()
    await helper.close()
    print("done")
loop = qasync.QEventLoop(QCoreApplication(sys.argv))
with loop:
    loop.run_until_complete(main())
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.stdout == "done\n", done.stderr
