"""The watchdog of a service manager, and whose files a command of root makes."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from qvpn_core.errors import UsageError
from qvpn_server.notify import keep_alive, watchdog_interval
from qvpn_server.statedir import StateDir


@pytest.mark.parametrize(
    ("usec", "pid", "seconds"),
    [
        ("3000000", None, 1.5),
        ("3000000", "ours", 1.5),
        ("3000000", "1", None),
        ("0", None, None),
        ("-1", None, None),
        ("soon", None, None),
        ("", None, None),
    ],
)
def test_the_interval_is_half_of_what_is_allowed(
    monkeypatch: pytest.MonkeyPatch, usec: str, pid: str | None, seconds: float | None
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", usec)
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    if pid is not None:
        monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()) if pid == "ours" else pid)
    assert watchdog_interval() == seconds


def test_signs_of_life_go_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "20000")
        monkeypatch.delenv("WATCHDOG_PID", raising=False)

        async def twice() -> None:
            alive = asyncio.create_task(keep_alive())
            for _ in range(2):
                assert await asyncio.to_thread(manager.recv, 100) == b"WATCHDOG=1"
            alive.cancel()

        asyncio.run(twice())


@pytest.mark.skipif(os.geteuid() != 0, reason="it takes root to be somebody else")
def test_what_root_makes_in_anothers_directory_is_theirs(tmp_path: Path) -> None:
    state = Path("/tmp") / f"qvpn-test-{os.getpid()}"
    state.mkdir(mode=0o700)
    try:
        os.chown(state, 64001, 64001)
        script = (
            "import os; from pathlib import Path; from qvpn_server.statedir import StateDir;"
            f"StateDir(Path({str(state)!r})).act_as_owner();"
            f"open({str(state / 'file')!r}, 'w').close(); print(os.getresuid(), os.getgroups())"
        )
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, timeout=30
        )
        assert done.stdout == "(64001, 64001, 64001) []\n", done.stderr
        assert (state / "file").stat().st_uid == 64001
        with pytest.raises(UsageError, match="belongs to user 64001"):
            StateDir(state).refuse_root()
    finally:
        (state / "file").unlink(missing_ok=True)
        state.rmdir()


def test_root_stays_root_in_its_own_directory(tmp_path: Path) -> None:
    StateDir(tmp_path).act_as_owner()
    StateDir(tmp_path / "none").act_as_owner()
    StateDir(tmp_path).refuse_root()
    assert os.geteuid() == os.stat(tmp_path).st_uid
