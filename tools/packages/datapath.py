"""The native datapath in the packages: a wheel that `datapath/` makes, if there is one.

It is the only part that does not come from the lock, and qvpn works without it.
"""

from __future__ import annotations

import shutil
import zipfile
from importlib.metadata import Distribution
from pathlib import Path
from typing import Final

from packaging.tags import sys_tags
from packaging.utils import InvalidWheelFilename, parse_wheel_filename

from tools.packages.description import PackageError

DISTRIBUTION: Final = "qvpn-datapath"


def find(directory: Path) -> Path | None:
    """The wheel in `directory` that this machine's interpreter takes; None without one.

    Raises PackageError where there are several: it is not ours to choose.
    """
    ours = set(sys_tags())
    found = []
    for path in sorted(directory.glob("qvpn_datapath-*.whl")):
        try:
            name, _, _, tags = parse_wheel_filename(path.name)
        except InvalidWheelFilename as error:
            raise PackageError(f"{path}: {error}") from None
        if name == DISTRIBUTION and tags & ours:
            found.append(path)
    if len(found) > 1:
        raise PackageError(
            f"{' and '.join(path.name for path in found)} in {directory}: leave one of them"
        )
    return found[0] if found else None


def unpack(wheel: Path, directory: Path) -> Distribution:
    """The wheel as an installed distribution, in `directory`, which is made anew.

    Its files are checked against its own list when they are copied (`tree`).
    """
    shutil.rmtree(directory, ignore_errors=True)
    try:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(directory)
        (metadata,) = directory.glob("qvpn_datapath-*.dist-info")
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise PackageError(f"{wheel} is no wheel of {DISTRIBUTION} ({error})") from None
    return Distribution.at(metadata)
