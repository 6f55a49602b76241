"""A part that was not installed is told in one line, by the commands as a wheel installs them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from qvpn_core.errors import UsageError
from qvpn_core.parts import require

#: Runs a module as a command in a Python in which some modules are not installed.
WITHOUT = """
import importlib.machinery, runpy, sys

missing = sys.argv.pop(1).split(",")
ordinary = importlib.machinery.PathFinder.find_spec
def find_spec(name, path=None, target=None):
    return None if name in missing else ordinary(name, path, target)
importlib.machinery.PathFinder.find_spec = staticmethod(find_spec)
sys.argv = sys.argv[1:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


def test_what_is_there_is_enough() -> None:
    require("server", "a gateway", "json", "asyncio")


def test_all_that_is_missing_is_named_with_what_brings_it() -> None:
    with pytest.raises(
        UsageError, match=r"^nowhere_a, nowhere_b is missing .* a gateway: .*\[ex\]"
    ):
        require("ex", "a gateway", "json", "nowhere_a", "nowhere_b")


@pytest.mark.parametrize(
    ("module", "missing", "extra"),
    [("qvpn_gui", "PySide6", "gui"), ("qvpn_server", "sqlalchemy", "server")],
)
def test_a_command_without_its_part_says_so_in_one_line(
    module: str, missing: str, extra: str, tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, missing, module, *(["list"] if extra == "server" else [])],
        env={"QVPN_RUNTIME_DIR": str(tmp_path), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=60,
    )
    assert done.returncode in (1, 2)
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"{module.replace('_', '-')}: {missing} is missing")
    assert f"whl[{extra}]'" in line
    assert done.stdout == ""
