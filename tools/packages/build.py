"""Turn `description` into files: stage a root directory, then have nfpm write .deb and .rpm.

Two builds of one commit with one set of tools give the same bytes: every time is SOURCE_DATE_EPOCH
(the commit's, unless set), every list is sorted, and compiled modules hold no time.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import importlib
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import Distribution
from pathlib import Path
from typing import Any, Final

from tools.packages import commands, completions, datapath, elf, icons, manual, sbom, tree
from tools.packages.description import HOMEPAGE, MAINTAINER, PROJECT, Package, PackageError, version

#: As Debian and rpm call the machines that we build on.
MACHINES: Final = {"x86_64": ("amd64", "x86_64"), "aarch64": ("arm64", "aarch64")}


def stage(package: Package, root: Path, epoch: int, wheel: Path | None = None) -> set[str]:
    """Write everything that `package` installs below `root`; the system libraries that it needs.

    `wheel` is the native datapath's, if it is to be inside.
    """
    shutil.rmtree(root, ignore_errors=True)
    distributions = tree.closure(package.requirements)
    if wheel is not None:
        distributions.append(datapath.unpack(wheel, root.with_name("datapath")))
    private = root / package.tree
    ours = (_module_directory(name) for name in package.modules)
    tree.make(private, distributions, ours)
    if wheel is not None:  # it is ours, and not as others have published it
        elf.strip(private / "lib" / tree.VERSION / "qvpn_datapath")
    libraries = elf.bind(private)
    tree.compile_modules(private, Path("/") / package.tree)
    for program in package.programs:
        path = root / program.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            f"#!/{package.tree}/bin/{tree.VERSION} {program.flags}\n"
            "import sys\n\n"
            f"from {program.module} import {program.function}\n\n"
            f"sys.exit({program.function}())\n"
        )
        path.chmod(0o755)
    for file in package.files:
        target = root / file.target
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(PROJECT / file.source, target)
        target.chmod(file.mode)
    if package.icon:
        icons.write(PROJECT / package.icon, root / "usr/share/icons/hicolor")
    for link, aim in package.links:
        (root / link).parent.mkdir(parents=True, exist_ok=True)
        (root / link).symlink_to(aim)
    _documentation(package, root, epoch, distributions, libraries)
    _generated(package, root, epoch)
    _settle(root, epoch)
    return libraries


def _module_directory(name: str) -> Path:
    places = [PROJECT / name, PROJECT / "server" / name]
    return next(place for place in places if place.is_dir())


def _documentation(
    package: Package,
    root: Path,
    epoch: int,
    distributions: Iterable[Distribution],
    libraries: set[str],
) -> None:
    docs = root / "usr/share/doc" / package.name
    docs.mkdir(parents=True)
    for name in package.docs:
        shutil.copyfile(PROJECT / name, docs / Path(name).name)
    contained = sbom.write_licences(docs / "licenses", distributions)
    licence = Path(os.__file__).with_name("LICENSE.txt")
    if not licence.is_file():  # Debian's python has it elsewhere
        licence = Path(f"/usr/share/doc/{tree.VERSION}/copyright")
    (docs / "licenses/python").mkdir()
    shutil.copyfile(licence, docs / "licenses/python/LICENSE.txt")
    (docs / "copyright").write_text(
        f"{package.name} {version()}: {HOMEPAGE}\n\n"
        "Copyright 2026 The qvpn authors\n"
        'License: Apache-2.0; on Debian systems its text is in "/usr/share/common-licenses/'
        'Apache-2.0".\n\n'
        f"{contained}\nTheir texts are in /usr/share/doc/{package.name}/licenses.\n"
    )
    bill = sbom.document(package.name, version(), epoch, distributions, libraries)
    (docs / "sbom.cdx.json").write_text(bill)
    date = datetime.fromtimestamp(epoch, UTC).strftime("%a, %d %b %Y %H:%M:%S +0000")
    _gzip(
        docs / "changelog.Debian.gz",
        f"{package.name} ({version()}-1) stable; urgency=medium\n\n"
        "  * See changelog.gz.\n\n"
        f" -- {MAINTAINER}  {date}\n",
    )
    _gzip(docs / "changelog.gz", (PROJECT / "CHANGELOG.md").read_text())
    overrides = PROJECT / "packaging" / f"{package.name}.lintian-overrides"
    target = root / "usr/share/lintian/overrides" / package.name
    target.parent.mkdir(parents=True)
    shutil.copyfile(overrides, target)


def _generated(package: Package, root: Path, epoch: int) -> None:
    """Manual pages and completions."""
    for program in package.programs:
        name = Path(program.path).name
        if not program.parser:
            continue
        parser = getattr(importlib.import_module(program.module), program.parser)()
        command = commands.read(parser)
        files = (PROJECT / "packaging/man" / f"{name}.files").read_text()
        page = manual.page(
            command,
            version=version(),
            epoch=epoch,
            files=files,
            see_also=f"/usr/share/doc/{package.name}",
        )
        manuals = root / "usr/share/man/man1"
        manuals.mkdir(parents=True, exist_ok=True)
        _gzip(manuals / f"{name}.1.gz", page)
        for directory, file, text in (
            ("bash-completion/completions", name, completions.bash(command)),
            ("zsh/vendor-completions", f"_{name}", completions.zsh(command)),
            ("fish/vendor_completions.d", f"{name}.fish", completions.fish(command)),
        ):
            target = root / "usr/share" / directory / file
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text)


def _gzip(path: Path, text: str) -> None:
    path.write_bytes(gzip.compress(text.encode(), 9, mtime=0))


def _settle(root: Path, epoch: int) -> None:
    """Modes that nobody but root can write with, and one time for all."""
    for path in sorted(root.rglob("*"), reverse=True):
        if path.is_symlink():
            continue
        executable = path.is_dir() or (path.stat().st_mode & 0o100 and path.suffix != ".py")
        if path.suffix == ".so" or ".so." in path.name:
            executable = False
        path.chmod(0o755 if executable else 0o644)
        os.utime(path, (epoch, epoch))


def configuration(package: Package, root: Path, libraries: set[str], epoch: int) -> dict[str, Any]:
    """What nfpm is told, for all formats."""
    deb, _ = _machine()
    debian = [*package.deb_depends, *elf.debian_depends(libraries)]
    return {
        "name": package.name,
        "arch": deb,
        "platform": "linux",
        "version": version(),
        "release": "1",
        "section": package.section,
        "priority": "optional",
        "maintainer": MAINTAINER,
        "vendor": "qvpn",
        "homepage": HOMEPAGE,
        "license": "Apache-2.0",
        "description": f"{package.summary}\n{package.description}",
        "mtime": datetime.fromtimestamp(epoch, UTC).isoformat(),
        "umask": 0o022,
        "disable_globbing": True,
        "contents": _contents(root),
        "scripts": {
            phase: str(PROJECT / "packaging/scripts" / name)
            for phase, name in package.scripts.items()
        },
        "deb": {"compression": "xz"},
        "rpm": {"compression": "zstd", "summary": package.summary, "buildhost": "localhost"},
        "overrides": {
            "deb": {"depends": debian, "recommends": list(package.deb_recommends)},
            "rpm": {"depends": [*package.rpm_depends, *elf.rpm_depends(libraries)]},
        },
    }


def _contents(root: Path) -> list[dict[str, Any]]:
    """Every file, and the directories that are ours alone."""
    contents: list[dict[str, Any]] = []
    for path in sorted(root.rglob("*")):
        target = "/" + str(path.relative_to(root))
        # Debian's own notes mean nothing to rpm.
        only: dict[str, Any] = (
            {"packager": "deb"} if "lintian" in target or "changelog.Debian" in target else {}
        )
        if "zsh/vendor-completions" in target and path.is_file():
            # Debian's directory for packages; elsewhere it is zsh's own.
            there = target.replace("vendor-completions", "site-functions")
            mode = {"file_info": {"mode": 0o644}}
            contents.append({"src": str(path), "dst": there, "packager": "rpm"} | mode)
            only = {"packager": "deb"}
        if path.is_symlink():
            contents.append({"src": os.readlink(path), "dst": target, "type": "symlink"} | only)
        elif path.is_dir():
            if "/qvpn" in target and "lintian" not in target:
                contents.append({"dst": target, "type": "dir", "file_info": {"mode": 0o755}})
        else:
            mode = path.stat().st_mode & 0o777
            contents.append({"src": str(path), "dst": target, "file_info": {"mode": mode}} | only)
    return contents


def _machine() -> tuple[str, str]:
    try:
        return MACHINES[platform.machine()]
    except KeyError:
        raise PackageError(f"packages are not made for {platform.machine()}") from None


def write(
    package: Package,
    kinds: Iterable[str],
    work: Path,
    output: Path,
    epoch: int,
    wheel: Path | None = None,
) -> list[Callable[[], Path]]:
    """Stage one package and write its bill into `output`, with the native datapath of `wheel`.

    Returns what is left to do: a function for each format, which takes most of the time and may run
    beside others.
    """
    root = work / package.name / "root"
    libraries = stage(package, root, epoch, wheel)
    config = work / package.name / "nfpm.json"
    config.write_text(json.dumps(configuration(package, root, libraries, epoch), indent=1))
    bill = root / "usr/share/doc" / package.name / "sbom.cdx.json"
    shutil.copyfile(bill, output / f"{package.name}-{version()}.cdx.json")
    deb, rpm = _machine()
    names = {
        "deb": f"{package.name}_{version()}-1_{deb}.deb",
        "rpm": f"{package.name}-{version()}-1.{rpm}.rpm",
    }
    return [partial(_archive, kind, config, output / names[kind], epoch) for kind in kinds]


def _archive(kind: str, config: Path, target: Path, epoch: int) -> Path:
    done = subprocess.run(
        [
            str(Path(sys.executable).with_name("nfpm")),
            *("package", "--config", str(config), "--packager", kind, "--target", str(target)),
        ],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"SOURCE_DATE_EPOCH": str(epoch)},
    )
    if done.returncode:
        raise PackageError(f"nfpm: {done.stderr.strip() or done.stdout.strip()}")
    return target


def write_checksums(output: Path) -> None:
    """SHA256SUMS of everything in `output`, as sha256sum -c reads it."""
    lines = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n"
        for path in sorted(output.iterdir())
        if path.is_file() and path.name != "SHA256SUMS"
    ]
    (output / "SHA256SUMS").write_text("".join(lines))


def source_date() -> int:
    """SOURCE_DATE_EPOCH, or the time of the commit. Raises PackageError without either."""
    if given := os.environ.get("SOURCE_DATE_EPOCH", ""):
        if not given.isdecimal():
            raise PackageError("SOURCE_DATE_EPOCH is no number of seconds")
        return int(given)
    done = subprocess.run(
        ["git", "log", "-1", "--format=%ct"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise PackageError("this is no git checkout: set SOURCE_DATE_EPOCH")
    return int(done.stdout)


def main() -> int:
    """``python -m tools.packages.build deb rpm``. Returns the exit status."""
    from tools.packages.description import PACKAGES

    parser = argparse.ArgumentParser(description="Build the packages of qvpn.")
    parser.add_argument("kinds", nargs="+", choices=("deb", "rpm"))
    parser.add_argument("--only", choices=[package.name for package in PACKAGES])
    parser.add_argument("--output", type=Path, default=PROJECT / "dist")
    parser.add_argument("--work", type=Path, default=PROJECT / "build/packages")
    parser.add_argument(
        "--datapath",
        metavar="WHEEL",
        type=Path,
        help="the native datapath to put in (default: the one in the output's directory, if any)",
    )
    parser.add_argument("--no-datapath", action="store_true", help="without a native datapath")
    options = parser.parse_args()
    os.umask(0o022)
    options.output.mkdir(parents=True, exist_ok=True)
    # What argparse prints must not depend on who builds, and where.
    os.environ.update(COLUMNS="100", LC_ALL="C.UTF-8", TZ="UTC")
    try:
        epoch = source_date()
        wheel = None if options.no_datapath else options.datapath or datapath.find(options.output)
        print(f"the native datapath is {wheel.name if wheel else 'not inside'}")
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            archives = [
                pool.submit(archive)
                for package in PACKAGES
                if options.only in (None, package.name)
                for archive in write(
                    package, options.kinds, options.work, options.output, epoch, wheel
                )
            ]
            for path in (archive.result() for archive in archives):
                print(f"{path}  {path.stat().st_size / 1e6:.1f} MB")
        write_checksums(options.output)
    except PackageError as error:
        print(f"packages: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
