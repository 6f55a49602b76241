"""``qvpn-install-helper``: put the helper where pkexec may start it, for who has no package.

    sudo …/bin/qvpn-install-helper            installs, or replaces
    sudo …/bin/qvpn-install-helper --remove   ends what it holds, and removes it

What root will run is copied to /usr/local/lib/qvpn, where no user can write, and compiled there; a
change of this installation is not in it until the next call. Only the interpreter stays where it
is, and one that others than root can change is refused: polkit starts the helper for a user without
a password when it is to unlock. It writes there and polkit's description, nothing else.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import py_compile
import shutil
import stat
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NoReturn

from qvpn_core.errors import PermissionMissing, QvpnError, UsageError
from qvpn_core.helper.errors import HelperFailed
from qvpn_core.net.nft import SYSTEM_PATH

TARGET: Final = Path("/usr/local/lib/qvpn")
HELPER: Final = TARGET / "qvpn-helper"
POLICY: Final = Path("/usr/share/polkit-1/actions/io.github.qvpn.policy")
#: What polkit's actions name in the package.
PACKAGED: Final = "/usr/lib/qvpn/qvpn-helper"
_CORE: Final = Path(__file__).resolve().parents[1]
#: All that the helper imports, of ours and of others.
OURS: Final = (
    "__init__.py",
    "errors.py",
    "program.py",
    "helper",
    "net",
    "masque/__init__.py",
    "masque/domain.py",
)
THEIRS: Final = ("msgspec", "pyroute2", "jeepney", "pytun")
#: -I, -S: no variable, no directory but this one; -B: it writes nothing there.
SCRIPT: Final = """\
#!{python} -IBS
import sys

sys.path.insert(0, "{library}")

from qvpn_core.helper.__main__ import main

sys.exit(main())
"""


def install() -> None:
    """Copy everything beside what is there, then swap. Raises UsageError."""
    if POLICY.exists() and not is_ours(POLICY):
        raise UsageError(
            "qvpn's package is installed and has its helper",
            f"this one is not needed; without the package, remove {POLICY} first",
        )
    seen: set[Path] = set()
    weak = next((spot for part in interpreter() if (spot := weak_spot(part, seen))), None)
    if weak is not None:
        raise UsageError(
            f"others than root can change {weak}, which root would run",
            "install qvpn with the system's python3",
        )
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    weak = weak_spot(TARGET.parent, set())
    if weak is not None:  # as some Debians have it: writable for the group staff
        raise UsageError(
            f"others than root can change {weak}, where the helper is to be",
            f"take that away: chown root:root {weak} && chmod go-w {weak}",
        )
    new = TARGET.with_name("qvpn.new")
    shutil.rmtree(new, ignore_errors=True)
    library = new / "lib"
    for name in OURS:
        copy(_CORE / name, library / "qvpn_core" / name)
    for name in THEIRS:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            continue  # pytun has no wheel for every machine
        origin = Path(spec.origin)
        source = origin.parent if origin.name == "__init__.py" else origin
        copy(source, library / source.name)
    for module in library.rglob("*.py"):
        py_compile.compile(
            str(module),
            dfile=str(TARGET / module.relative_to(new)),
            doraise=True,
            invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
        )
    script = new / HELPER.name
    # Not the virtual environment's python: that is where its owner can write.
    python = os.path.realpath(sys.executable)
    script.write_text(SCRIPT.format(python=python, library=TARGET / "lib"))
    script.chmod(0o755)
    shutil.rmtree(TARGET, ignore_errors=True)
    new.rename(TARGET)
    text = Path(__file__).with_name(POLICY.name).read_text()
    POLICY.parent.mkdir(parents=True, exist_ok=True)
    POLICY.write_text(text.replace(PACKAGED, str(HELPER)))
    POLICY.chmod(0o644)


def is_ours(policy: Path) -> bool:
    """Whether a description for polkit is one that `install` wrote."""
    return f">{HELPER}<" in policy.read_text()


def copy(source: Path, target: Path) -> None:
    """A file, or a directory without what Python compiled; only root can write the copy."""
    if source.is_dir():
        for name in sorted(os.listdir(source)):
            if name != "__pycache__":
                copy(source / name, target / name)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(source.read_bytes())
    target.chmod(0o644)


def interpreter() -> Iterator[Path]:
    """Every file that Python itself is made of, but nothing that it imports from elsewhere."""
    yield Path(os.path.realpath(sys.executable))
    if sysconfig.get_config_var("Py_ENABLE_SHARED"):
        library = sysconfig.get_config_var("LIBDIR"), sysconfig.get_config_var("INSTSONAME")
        path = Path(os.path.realpath(os.path.join(*library)))
        if path.exists():  # Debian's program needs none, and has it in a package of its own
            yield path
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
    """Undo `install`: first what its sessions did, then its files. Raises HelperFailed."""
    if HELPER.exists():
        done = subprocess.run(
            [str(HELPER), "unlock"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            cwd="/",
            env={"PATH": SYSTEM_PATH, "LC_ALL": "C.UTF-8"},
        )
        if done.returncode != 0:
            words = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
            raise HelperFailed(
                f"what a session left could not be undone ({words[-1]})",
                f"mend that and run it again, or delete {TARGET} and {POLICY} yourself",
            )
    shutil.rmtree(TARGET, ignore_errors=True)
    if POLICY.exists() and is_ours(POLICY):
        POLICY.unlink()


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(message, f"see {self.prog} --help")


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0 done, 1 it failed, 2 it cannot be meant."""
    parser = _Parser(
        prog="qvpn-install-helper",
        description="Install this qvpn's helper where pkexec may start it; its package has one.",
        allow_abbrev=False,
    )
    parser.add_argument("--remove", action="store_true", help="end its sessions and remove it")
    try:
        arguments = parser.parse_args(argv)
        if os.geteuid() != 0:
            raise PermissionMissing("the helper is installed by root", "run it with sudo")
        os.umask(0o022)
        if arguments.remove:
            remove()
        else:
            install()
            print(f"installed {HELPER} and {POLICY}")
            if shutil.which("pkexec", path=SYSTEM_PATH) is None:
                print("pkexec is missing: install polkit with pkexec, which starts it")
    except QvpnError as error:
        print(f"qvpn-install-helper: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
