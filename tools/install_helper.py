"""Install this checkout's helper, so that pkexec can start it: for development, as root.

    sudo .venv/bin/python tools/install_helper.py            installs, or replaces
    sudo .venv/bin/python tools/install_helper.py --remove   removes

What root will run is copied to /usr/local/lib/qvpn, where no user can write; a change in the
checkout is not in it until the next call. Only the interpreter stays where it is, and one that
others than root can change is refused: polkit starts the helper for a user without a password when
it is to unlock. It writes there and polkit's description, nothing else.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import stat
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
TARGET = Path("/usr/local/lib/qvpn")
HELPER = TARGET / "qvpn-helper"
POLICY = Path("/usr/share/polkit-1/actions/io.github.qvpn.policy")
#: All that the helper imports, of ours and of others.
OURS = (
    "__init__.py",
    "errors.py",
    "program.py",
    "helper",
    "net",
    "masque/__init__.py",
    "masque/domain.py",
)
THEIRS = ("msgspec", "pyroute2", "jeepney", "pytun")

SCRIPT = """\
#!{python} -IS
import sys

sys.path.insert(0, "{library}")

from qvpn_core.helper.__main__ import main

sys.exit(main())
"""


def install() -> None:
    """Copy everything beside what is there, then swap."""
    new = TARGET.with_name("qvpn.new")
    shutil.rmtree(new, ignore_errors=True)
    library = new / "lib"
    library.mkdir(parents=True)
    for name in OURS:
        copy(CHECKOUT / "qvpn_core" / name, library / "qvpn_core" / name)
    for name in THEIRS:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            continue  # pytun has no wheel for every machine
        origin = Path(spec.origin)
        source = origin.parent if origin.name == "__init__.py" else origin
        copy(source, library / source.name)
    script = new / HELPER.name
    # Not the virtual environment's python: that is where the checkout's owner can write.
    python = os.path.realpath(sys.executable)
    script.write_text(SCRIPT.format(python=python, library=TARGET / "lib"))
    script.chmod(0o755)
    shutil.rmtree(TARGET, ignore_errors=True)
    new.rename(TARGET)
    text = (CHECKOUT / "resources" / POLICY.name).read_text()
    POLICY.parent.mkdir(parents=True, exist_ok=True)
    POLICY.write_text(text.replace("/usr/lib/qvpn/qvpn-helper", str(HELPER)))
    POLICY.chmod(0o644)


def copy(source: Path, target: Path) -> None:
    """A file, or a directory without what Python compiled."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy(source, target)


def interpreter() -> Iterator[Path]:
    """Every file that Python itself is made of, but nothing that it imports from elsewhere."""
    yield Path(os.path.realpath(sys.executable))
    if sysconfig.get_config_var("Py_ENABLE_SHARED"):
        library = sysconfig.get_config_var("LIBDIR"), sysconfig.get_config_var("INSTSONAME")
        yield Path(os.path.realpath(os.path.join(*library)))
    for directory, below, files in os.walk(os.path.realpath(sysconfig.get_path("stdlib"))):
        below[:] = [name for name in below if not name.endswith("-packages")]
        real = (Path(os.path.realpath(os.path.join(directory, name))) for name in files)
        yield from (path for path in real if path.exists())


def weak_spot(path: Path, seen: set[Path]) -> Path | None:
    """What somebody else than root can change on the way to `path`, or None; `seen` are strong."""
    for each in (path, *path.parents):
        if each in seen:
            break
        status = each.stat()
        shared = stat.S_IWOTH | (stat.S_IWGRP if status.st_gid != 0 else 0)
        sticky = stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX
        if status.st_uid != 0 or (status.st_mode & shared and not sticky):
            return each
        seen.add(each)
    return None


def remove() -> None:
    """Undo `install`."""
    shutil.rmtree(TARGET, ignore_errors=True)
    POLICY.unlink(missing_ok=True)


def main() -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(description="Install this checkout's helper for pkexec.")
    parser.add_argument("--remove", action="store_true", help="remove it again")
    arguments = parser.parse_args()
    if os.geteuid() != 0:
        print("the helper is installed by root: run it with sudo", file=sys.stderr)
        return 1
    os.umask(0o022)
    if arguments.remove:
        remove()
    else:
        seen: set[Path] = set()
        weak = next((spot for part in interpreter() if (spot := weak_spot(part, seen))), None)
        if weak is not None:
            print(
                f"others than root can change {weak}, which root would run: "
                "make the virtual environment with the system's python3",
                file=sys.stderr,
            )
            return 1
        install()
        print(f"installed {HELPER} and {POLICY}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
