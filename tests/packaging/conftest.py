"""The packages, built from this checkout once for all tests, and systems to install them in.

The native datapath of `make datapath` is inside, where there is one; else the one of dist/.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.packaging.system import PROJECT
from tools.packages import datapath

WORK = PROJECT / "build/packages"
#: Where they are written to: what is in dist/ is somebody's, and stays.
OUTPUT = WORK / "dist"
SOURCES = (
    "qvpn_core",
    "qvpn_gui",
    "server/qvpn_server",
    "packaging",
    "resources",
    "tools/packages",
)
#: Single files, and what is below those and in no package.
FILES = ("pyproject.toml", "CHANGELOG.md", "docs/user-guide.md", "docs/administrator-guide.md")
ELSEWHERE = PROJECT / "packaging/oci"


@dataclass(frozen=True)
class Built:
    """The package files of this checkout; `newer` are the same as a release later."""

    client: Path
    server: Path
    client_rpm: Path
    server_rpm: Path
    newer_client: Path
    newer_server: Path
    newer_client_rpm: Path
    newer_server_rpm: Path
    #: The wheel of the native datapath that is inside; None without.
    native: Path | None

    def epoch(self) -> int:
        """The time that they have for all that is in them: a commit may have come since."""
        return int((WORK / "qvpn/root/usr/lib/qvpn").stat().st_mtime)

    def root(self, name: str) -> Path:
        """What a package installs, as it was staged."""
        return WORK / name / "root"


@pytest.fixture(scope="session")
def built() -> Built:
    """Builds what is missing or older than its sources."""
    if missing := [tool for tool in ("strip", "dpkg-deb") if shutil.which(tool) is None]:
        pytest.skip(f"packages are built on Debian: missing {', '.join(missing)}")
    if not Path(sys.executable).with_name("nfpm").exists():
        pytest.skip("nfpm is not installed: make venv")
    WORK.mkdir(parents=True, exist_ok=True)
    with (WORK / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return _build()


def _build() -> Built:
    native = datapath.find(PROJECT / "build/datapath") or datapath.find(PROJECT / "dist")
    inside = hashlib.sha256(native.read_bytes()).hexdigest() if native else "none"
    done = WORK / "tested"
    changed = max(
        path.stat().st_mtime
        for source in SOURCES
        for path in [
            *(PROJECT / name for name in FILES),
            Path(__file__),
            *(PROJECT / source).rglob("*"),
        ]
        if path.is_file() and path.suffix != ".pyc" and not path.is_relative_to(ELSEWHERE)
    )
    if not done.exists() or done.stat().st_mtime < changed or done.read_text() != inside:
        shutil.rmtree(OUTPUT, ignore_errors=True)
        subprocess.run(
            [
                *(sys.executable, "-m", "tools.packages.build", "deb", "rpm"),
                *("--output", str(OUTPUT)),
                *(("--datapath", str(native)) if native else ("--no-datapath",)),
            ],
            cwd=PROJECT,
            check=True,
            stdin=subprocess.DEVNULL,
            timeout=800,
        )
        for deb in OUTPUT.glob("*.deb"):
            _write_newer(deb, WORK / f"newer-{deb.name.partition('_')[0]}.deb")
        for name in ("qvpn", "qvpn-server"):
            _write_newer_rpm(name, WORK / f"newer-{name}.rpm")
        for path in (*OUTPUT.glob("*.deb"), *OUTPUT.glob("*.rpm")):
            shutil.copyfile(path, WORK / path.name)
        done.write_text(inside)
    return Built(
        client=_one(WORK, "qvpn_*.deb"),
        server=_one(WORK, "qvpn-server_*.deb"),
        client_rpm=_one(WORK, "qvpn-[0-9]*.rpm"),
        server_rpm=_one(WORK, "qvpn-server-[0-9]*.rpm"),
        newer_client=WORK / "newer-qvpn.deb",
        newer_server=WORK / "newer-qvpn-server.deb",
        newer_client_rpm=WORK / "newer-qvpn.rpm",
        newer_server_rpm=WORK / "newer-qvpn-server.rpm",
        native=native,
    )


def _write_newer(deb: Path, target: Path) -> None:
    """The same package as the next release: the archive in it is taken as it is (deb(5))."""
    shutil.copyfile(deb, target)
    with tempfile.TemporaryDirectory() as directory:
        shell = (
            "ar x $1 control.tar.gz && mkdir c && tar -xzf control.tar.gz -C c && "
            "sed -i '/^Version:/s/-1$/-2/' c/control && tar -czf control.tar.gz -C c . && "
            "ar r $1 control.tar.gz"
        )
        command = ["sh", "-euc", shell, "sh", str(target)]
        subprocess.run(
            command,
            cwd=directory,
            check=True,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=60,
        )


def _write_newer_rpm(name: str, target: Path) -> None:
    """The same package as the next release, of what was staged for this one."""
    description = json.loads((WORK / name / "nfpm.json").read_text()) | {"release": "2"}
    description["rpm"]["compression"] = "gzip:1"  # quick
    file = WORK / name / "newer.json"
    file.write_text(json.dumps(description))
    nfpm = Path(sys.executable).with_name("nfpm")
    subprocess.run(
        [str(nfpm), "package", "--config", str(file), "--packager", "rpm", "--target", str(target)],
        check=True,
        capture_output=True,
        stdin=subprocess.DEVNULL,
        timeout=200,
    )


def _one(directory: Path, pattern: str) -> Path:
    (found,) = directory.glob(pattern)
    return found
