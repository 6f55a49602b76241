"""The packages, built from this checkout once for all tests, and systems to install them in."""

from __future__ import annotations

import fcntl
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.packaging.system import DIST, PROJECT

WORK = PROJECT / "build/packages"
SOURCES = (
    "qvpn_core",
    "qvpn_gui",
    "server/qvpn_server",
    "packaging",
    "resources",
    "tools/packages",
    "docs",
)


@dataclass(frozen=True)
class Built:
    """The package files of this checkout; `newer` are the same as a release later."""

    client: Path
    server: Path
    client_rpm: Path
    server_rpm: Path
    newer_client: Path
    newer_server: Path

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
    done = WORK / "tested"
    changed = max(
        path.stat().st_mtime
        for source in SOURCES
        for path in [PROJECT / "pyproject.toml", *(PROJECT / source).rglob("*")]
        if path.is_file() and path.suffix != ".pyc"
    )
    if not done.exists() or done.stat().st_mtime < changed:
        subprocess.run(
            [sys.executable, "-m", "tools.packages.build", "deb", "rpm"], cwd=PROJECT, check=True
        )
        for name in ("qvpn", "qvpn-server"):
            config = json.loads((WORK / name / "nfpm.json").read_text()) | {"release": "2"}
            newer = WORK / name / "newer.json"
            newer.write_text(json.dumps(config))
            nfpm = str(Path(sys.executable).with_name("nfpm"))
            target = str(WORK / f"newer-{name}.deb")
            subprocess.run(
                [nfpm, "package", "-f", str(newer), "-p", "deb", "-t", target],
                check=True, stdout=subprocess.DEVNULL,
            )  # fmt: skip
        done.touch()
    for path in DIST.glob("*.deb"):
        shutil.copyfile(path, WORK / path.name)
    return Built(
        client=_one(WORK, "qvpn_*.deb"),
        server=_one(WORK, "qvpn-server_*.deb"),
        client_rpm=_one(DIST, "qvpn-[0-9]*.rpm"),
        server_rpm=_one(DIST, "qvpn-server-[0-9]*.rpm"),
        newer_client=WORK / "newer-qvpn.deb",
        newer_server=WORK / "newer-qvpn-server.deb",
    )


def _one(directory: Path, pattern: str) -> Path:
    (found,) = directory.glob(pattern)
    return found
