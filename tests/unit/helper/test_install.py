"""The helper's installation for developers: root runs nothing that somebody else can change."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="root is needed to give files away")

TOOL = Path(__file__).resolve().parents[3] / "tools" / "install_helper.py"
SOMEBODY = 65534


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("install_helper", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """An interpreter of root's, in a directory of its own."""
    path = tmp_path / "python" / "bin" / "python3"
    path.parent.mkdir(parents=True, mode=0o755)
    path.write_bytes(b"")
    path.chmod(0o755)
    return path


def test_what_is_roots_alone_is_strong(tool: ModuleType, python: Path) -> None:
    assert tool.weak_spot(python, set()) is None


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
    tool: ModuleType, python: Path, weaken: Callable[[Path], object], above: int
) -> None:
    weak = (python, *python.parents)[above]
    weaken(weak)
    assert tool.weak_spot(python, set()) == weak


def test_in_a_sticky_directory_what_is_roots_stays_roots(tool: ModuleType, python: Path) -> None:
    python.parent.chmod(0o1777)
    assert tool.weak_spot(python, set()) is None
    os.chown(python, SOMEBODY, 0)
    assert tool.weak_spot(python, set()) == python


def test_all_of_the_interpreter_is_looked_at(tool: ModuleType) -> None:
    parts = set(tool.interpreter())
    assert Path(os.path.realpath(os.__file__)) in parts
    assert Path(os.path.realpath(importlib.util.__file__)) in parts
    assert not any("site-packages" in part.parts for part in parts)
