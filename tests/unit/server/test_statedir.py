"""The state directory: whole files or none, and one gateway at a time."""

import stat
import subprocess
import sys
from pathlib import Path

import pytest

from qvpn_core.errors import UsageError
from qvpn_server.statedir import StateDir


def test_files_and_directory_are_private(tmp_path: Path) -> None:
    state = StateDir(tmp_path / "a" / "state")
    state.create({state.private_key: b"key", state.config: b"config"})
    assert stat.S_IMODE(state.path.stat().st_mode) == 0o700
    assert stat.S_IMODE(state.private_key.stat().st_mode) == 0o600
    assert sorted(file.name for file in state.path.iterdir()) == ["gateway.toml", "private-key.pem"]
    assert state.initialised


def test_a_path_that_cannot_be_a_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    state = StateDir(tmp_path / "file" / "state")
    with pytest.raises(UsageError, match=r"cannot write to .*Not a directory"):
        state.create({state.config: b"config"})


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path) -> None:
    """A file size limit of the process stands for the disk: EFBIG comes as ENOSPC would."""
    script = (
        "import resource, signal, sys, pathlib\n"
        "from qvpn_server.statedir import StateDir\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "state = StateDir(pathlib.Path(sys.argv[1]))\n"
        "state.create({state.private_key: b'k', state.config: b'c' * 100_000})\n"
    )
    state = StateDir(tmp_path / "state")
    done = subprocess.run(
        [sys.executable, "-c", script, state.path], capture_output=True, text=True, timeout=30
    )
    assert "UsageError: cannot write to" in done.stderr
    assert "File too large" in done.stderr
    assert not state.path.exists()


def test_an_existing_directory_keeps_its_other_files_after_a_failure(tmp_path: Path) -> None:
    state = StateDir(tmp_path)
    (tmp_path / "mine").write_text("stays")
    (tmp_path / "gateway.toml").mkdir()  # cannot be replaced by a file
    with pytest.raises(UsageError, match="cannot write"):
        state.create({state.private_key: b"key", state.config: b"config"})
    assert sorted(file.name for file in tmp_path.iterdir()) == ["gateway.toml", "mine"]


def test_only_one_gateway_at_a_time(tmp_path: Path) -> None:
    state = StateDir(tmp_path)
    with state.locked():
        with pytest.raises(UsageError, match="a gateway already runs"), state.locked():
            pass
    with state.locked():
        pass


def test_the_admin_address_is_short_however_deep_the_directory(tmp_path: Path) -> None:
    deep = tmp_path / ("x" * 100) / ("y" * 100)
    deep.mkdir(parents=True)
    with StateDir(deep).admin_address() as address:
        assert len(address) < 108
        Path(address).write_text("here")
    assert (deep / "admin.sock").read_text() == "here"


def test_no_descriptor_outlives_its_use(tmp_path: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(10):
        with StateDir(tmp_path).admin_address(), StateDir(tmp_path).locked():
            pass
    assert len(list(Path("/proc/self/fd").iterdir())) == before
