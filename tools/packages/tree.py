"""The private tree of a package: an interpreter, its library, the locked packages, and our code.

Everything is copied out of the virtual environment that `make venv` installed from the lock; each
file of a dependency must still have the hash that its wheel gave for it. The tree runs wherever it
is put, needs no PYTHONHOME, and finds modules in one directory only, lib/pythonX.Y: an interpreter
started with ``-I`` reads nothing of a user's. It refuses to bring what nothing imports (`UNUSED`).
"""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from importlib.metadata import Distribution
from pathlib import Path
from typing import Final

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tools.packages import elf, qt
from tools.packages.description import PackageError

VERSION: Final = f"python{sys.version_info.major}.{sys.version_info.minor}"
#: Of the standard library: what no part of qvpn and of its dependencies imports.
UNUSED: Final = frozenset(
    [
        "test",
        "idlelib",
        "tkinter",
        "turtledemo",
        "turtle.py",
        "lib2to3",
        "ensurepip",
        "distutils",
        "pydoc_data",
        "venv",
        "curses",
        "dbm",
        "site-packages",
        "dist-packages",
        "__pycache__",
        # What Debian puts beside it.
        "sitecustomize.py",
        "EXTERNALLY-MANAGED",
        "_distutils_system_mod.py",
        "__phello__",
        "antigravity.py",
        "cgi.py",
        "cgitb.py",
    ]
)
_UNUSED_EXTENSIONS: Final = (
    "_tkinter",
    "_curses",
    "_test",
    "_ctypes_test",
    "_xxtestfuzz",
    "_xxsubinterpreters",
    "xxlimited",
    "nis",
    "readline",
    "ossaudiodev",
    "audioop",
    "_bz2",  # its library has another name on each distribution
    "_crypt",
    "spwd",
    "_dbm",
    "_gdbm",
    "_uuid",
    "_lsprof",
)
#: Below it: what only other systems need.
_UNUSED_DIRECTORIES: Final = ("__pycache__", "tests", "test", "macholib")
#: Of dependencies: their own tests, what is for compilers, and for other programs.
_UNUSED_PARTS: Final = frozenset(("tests", "test", "testing", "include", "__pycache__"))
_UNUSED_SUFFIXES: Final = (".pyc", ".pyi", ".c", ".h", ".pyx", ".pxd", ".pth")


def closure(requirements: Iterable[str]) -> list[Distribution]:
    """The installed distributions that `requirements` need, transitively, by name."""
    found: dict[str, Distribution] = {}
    waiting = [Requirement(text) for text in requirements]
    seen: set[tuple[str, str]] = set()
    while waiting:
        wanted = waiting.pop()
        name = canonicalize_name(wanted.name)
        key = (name, ",".join(sorted(wanted.extras)))
        if key in seen:
            continue
        seen.add(key)
        distribution = found[name] = _installed(name)
        for text in distribution.requires or ():
            needed = Requirement(text)
            extras = ("", *wanted.extras)
            if needed.marker is None or any(needed.marker.evaluate({"extra": e}) for e in extras):
                waiting.append(needed)
    return [found[name] for name in sorted(found)]


def _installed(name: str) -> Distribution:
    try:
        return Distribution.from_name(name)
    except ModuleNotFoundError:
        raise PackageError(f"{name} is not installed: make venv") from None


def make(target: Path, distributions: Iterable[Distribution], ours: Iterable[Path]) -> None:
    """Write the tree to `target`, which must not exist. `ours` are the directories of our modules.

    Raises PackageError for a dependency that is not as it was installed.
    """
    library = target / "lib" / VERSION
    _interpreter(target)
    _standard_library(library)
    elf.strip(target)
    for distribution in distributions:
        only = None
        if canonicalize_name(distribution.metadata["Name"]) in qt.DISTRIBUTIONS:
            only = qt.kept(Path(str(distribution.locate_file(""))))
        _dependency(library, distribution, only)
    for package in ours:
        _copy_modules(package, library / package.name)


def _interpreter(target: Path) -> None:
    program = target / "bin" / VERSION
    program.parent.mkdir(parents=True)
    shutil.copy(os.path.realpath(sys.executable), program)
    shared = sysconfig.get_config_var("INSTSONAME") or ""
    # Debian's program has all of it inside, and its library is in a package of its own.
    if shared and shared in elf.needed(program):
        origin = Path(sysconfig.get_config_var("LIBDIR")) / shared
        if not origin.is_file():
            raise PackageError(f"{origin} is missing: this interpreter cannot be packaged")
        (target / "lib").mkdir(exist_ok=True)
        shutil.copy(origin, target / "lib" / shared)


def _standard_library(library: Path) -> None:
    origin = Path(sysconfig.get_path("stdlib"))

    def unused(directory: str, names: list[str]) -> set[str]:
        top = Path(directory) == origin
        drop = {name for name in names if name in _UNUSED_DIRECTORIES}
        if top:
            drop |= UNUSED & set(names)
            drop |= {name for name in names if name.startswith(("config-", "LICENSE"))}
        if Path(directory).name == "lib-dynload":
            drop |= {name for name in names if name.startswith(_UNUSED_EXTENSIONS)}
        return drop

    shutil.copytree(origin, library, ignore=unused, symlinks=False)
    dynamic = Path(sysconfig.get_config_var("DESTSHARED"))
    if dynamic.parent != origin:
        shutil.copytree(dynamic, library / "lib-dynload", ignore=unused, dirs_exist_ok=True)


def _dependency(library: Path, distribution: Distribution, only: frozenset[Path] | None) -> None:
    for file in distribution.files or ():
        part = Path(str(file))
        if only is not None and part not in only and not part.parts[0].endswith(".dist-info"):
            continue
        if part.is_absolute() or ".." in part.parts:
            continue  # programs and manual pages of it
        if file.hash is None or part.suffix in _UNUSED_SUFFIXES:
            continue
        if _UNUSED_PARTS & set(part.parts[:-1]):
            continue
        if part.parts[0].endswith(".dist-info") and part.name not in (
            "METADATA",
            "entry_points.txt",
        ):
            continue
        data = Path(str(distribution.locate_file(file))).read_bytes()
        digest = hashlib.new(file.hash.mode, data)
        # As the format wants it, and as some builders write it.
        encoded = base64.urlsafe_b64encode(digest.digest()).rstrip(b"=").decode()
        if file.hash.value not in (encoded, digest.hexdigest()):
            raise PackageError(f"{part} was changed since it was installed: make clean venv")
        path = library / part
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def _copy_modules(package: Path, target: Path) -> None:
    shutil.copytree(package, target, ignore=shutil.ignore_patterns("__pycache__", "*.pyc", "*.ts"))


#: Runs in the tree; $1: where that will be installed.
_COMPILE: Final = """
import os, py_compile, sys

sources = []
for directory, below, files in os.walk("lib"):
    sources += [os.path.join(directory, name) for name in files if name.endswith(".py")]
for source in sorted(sources):
    py_compile.compile(
        source,
        dfile=os.path.join(sys.argv[1], source),
        doraise=True,
        invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
    )
"""


def compile_modules(target: Path, installed: Path) -> None:
    """Compile every module, as if `target` were `installed`, the same bytes each time.

    The compiled files are valid for their sources unchecked, since both come from one package and
    clocks do not matter then (PEP 552). What marshal writes depends on which strings the process
    has seen before: thus one of its own, which has seen nothing of this build's directories.
    """
    done = subprocess.run(
        [sys.executable, "-S", "-P", "-c", _COMPILE, str(installed)],
        cwd=target,
        env={"PYTHONHASHSEED": "0", "LC_ALL": "C.UTF-8"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise PackageError(f"a module cannot be compiled: {done.stderr.strip()}")


def licences(distribution: Distribution) -> Iterator[tuple[str, bytes]]:
    """Name and text of each licence file that the distribution brings.

    The name has directories where the files of several parts would have one (PEP 639).
    """
    for file in distribution.files or ():
        part = Path(str(file))
        if not part.parts[0].endswith(".dist-info") or ".." in part.parts:
            continue
        name = part.name
        if part.parts[1] == "licenses":
            name = str(Path(*part.parts[2:]))
        elif not name.upper().startswith(("LICENSE", "LICENCE", "COPYING", "NOTICE", "AUTHORS")):
            continue
        yield name, Path(str(distribution.locate_file(file))).read_bytes()
