"""The helper's installation by its own command: root runs nothing that somebody else can change."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from qvpn_core.helper import install

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="root is needed to give files away")

SOMEBODY = 65534


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """An interpreter of root's, in a directory of its own."""
    path = tmp_path / "python" / "bin" / "python3"
    path.parent.mkdir(parents=True, mode=0o755)
    path.write_bytes(b"")
    path.chmod(0o755)
    return path


def test_what_is_roots_alone_is_strong(python: Path) -> None:
    assert install.weak_spot(python, set()) is None


@pytest.mark.parametrize(
    "weaken",
    [
        lambda path: os.chown(path, SOMEBODY, 0),
        lambda path: path.chmod(0o777),
        lambda path: (os.chown(path, 0, SOMEBODY), path.chmod(0o775)),
    ],
    ids=["owner", "everybody", "group"],
)
@pytest.mark.parametrize("above", [0, 1, 2])
def test_what_somebody_can_change_is_found_at_every_step(
    python: Path, weaken: Callable[[Path], object], above: int
) -> None:
    weak = (python, *python.parents)[above]
    weaken(weak)
    assert install.weak_spot(python, set()) == weak


def test_in_a_sticky_directory_what_is_roots_stays_roots(python: Path) -> None:
    python.parent.chmod(0o1777)
    assert install.weak_spot(python, set()) is None
    os.chown(python, SOMEBODY, 0)
    assert install.weak_spot(python, set()) == python


def test_all_of_the_interpreter_is_looked_at() -> None:
    parts = set(install.interpreter())
    assert Path(os.path.realpath(os.__file__)) in parts
    assert Path(os.path.realpath(importlib.util.__file__)) in parts
    assert not any("site-packages" in part.parts for part in parts)


def test_what_is_copied_only_root_can_write(tmp_path: Path) -> None:
    (tmp_path / "from/__pycache__").mkdir(parents=True)
    (tmp_path / "from/module.py").write_text("x = 1\n")
    (tmp_path / "from/module.py").chmod(0o666)
    (tmp_path / "from/__pycache__/module.pyc").write_bytes(b"somebody's")
    os.chown(tmp_path / "from/module.py", SOMEBODY, SOMEBODY)
    install.copy(tmp_path / "from", tmp_path / "to")
    assert sorted(path.name for path in (tmp_path / "to").rglob("*")) == ["module.py"]
    status = (tmp_path / "to/module.py").stat()
    assert (status.st_uid, status.st_gid, status.st_mode & 0o777) == (0, 0, 0o644)


@pytest.fixture
def target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Places of its own to install to."""
    directory = tmp_path / "local/lib/qvpn"
    directory.parent.mkdir(parents=True)
    monkeypatch.setattr(install, "TARGET", directory)
    monkeypatch.setattr(install, "HELPER", directory / "qvpn-helper")
    monkeypatch.setattr(install, "POLICY", tmp_path / "polkit/io.github.qvpn.policy")
    return directory


@pytest.fixture
def strong(monkeypatch: pytest.MonkeyPatch) -> None:
    """An interpreter of root's, whichever runs the tests."""
    monkeypatch.setattr(install, "interpreter", lambda: iter(()))


@pytest.mark.usefixtures("strong")
def test_an_installed_helper_runs_with_nothing_of_where_it_came_from(
    target: Path, tmp_path: Path
) -> None:
    assert install.main([]) == 0
    (tmp_path / "evil").mkdir()
    (tmp_path / "evil/msgspec.py").write_text("raise SystemExit(77)")
    done = subprocess.run(
        [str(target / "qvpn-helper"), "--help"],
        env={"PYTHONPATH": str(tmp_path / "evil"), "PYTHONHOME": "/nowhere"},
        cwd=tmp_path / "evil",
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (
        2,
        "qvpn-helper: qvpn-helper is not for the hand: use qvpn up, qvpn unlock\n",
    )
    for path in (target, *target.rglob("*")):
        status = path.stat()
        assert (status.st_uid, status.st_gid, status.st_mode & 0o022) == (0, 0, 0), path
    first = (target / "qvpn-helper").read_text().splitlines()[0]
    assert first == f"#!{os.path.realpath(sys.executable)} -IBS"
    policy = install.POLICY.read_text()
    assert policy.count(f">{target}/qvpn-helper<") == 2
    assert install.PACKAGED not in policy


@pytest.mark.usefixtures("strong")
def test_every_module_is_compiled_so_that_nothing_is_written_later(target: Path) -> None:
    install.install()
    for module in target.rglob("*.py"):
        (compiled,) = (module.parent / "__pycache__").glob(f"{module.stem}.*.pyc")
        assert compiled.read_bytes()[4:8] == b"\x01\0\0\0"  # PEP 552: unchecked


@pytest.mark.usefixtures("strong")
def test_removing_ends_what_a_session_did_and_leaves_nothing(target: Path, tmp_path: Path) -> None:
    install.install()
    said = tmp_path / "said"
    (target / "qvpn-helper").write_text(f'#!/bin/sh\necho "$@" > {said}\n')
    assert install.main(["--remove"]) == 0
    assert said.read_text() == "unlock\n"
    assert not target.exists()
    assert not install.POLICY.exists()
    assert install.main(["--remove"]) == 0  # nothing there is nothing wrong


@pytest.mark.usefixtures("strong")
def test_a_helper_that_cannot_undo_is_kept(
    target: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    install.install()
    (target / "qvpn-helper").write_text("#!/bin/sh\necho 'nft is missing' >&2; exit 1\n")
    assert install.main(["--remove"]) == 1
    assert "(nft is missing)" in capsys.readouterr().err
    assert target.exists()


def test_the_packages_policy_is_neither_replaced_nor_removed(
    target: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    install.POLICY.parent.mkdir()
    install.POLICY.write_text(f"<annotate>{install.PACKAGED}</annotate>")
    assert install.main([]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("qvpn-install-helper: qvpn's package is installed")
    assert install.main(["--remove"]) == 0
    assert install.PACKAGED in install.POLICY.read_text()
    assert not target.exists()


@pytest.mark.usefixtures("strong")
def test_a_place_that_others_can_change_is_refused(
    target: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.chown(target.parent, 0, SOMEBODY)
    target.parent.chmod(0o2775)
    assert install.main([]) == 2
    assert f"chmod go-w {target.parent}\n" in capsys.readouterr().err
    assert not target.exists()


def test_an_interpreter_that_others_can_change_is_refused(
    target: Path,
    python: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    python.chmod(0o777)
    monkeypatch.setattr(install, "interpreter", lambda: iter((python,)))
    assert install.main([]) == 2
    assert str(python) in capsys.readouterr().err
    assert not target.exists()
