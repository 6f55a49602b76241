"""Run nft(8): one script is one transaction, all of it or nothing."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from typing import Final

from qvpn_core.errors import NetworkSetupFailed, PermissionMissing

#: Not the caller's PATH: this runs as root, and sbin is missing from some.
SYSTEM_PATH: Final = "/usr/sbin:/usr/bin:/sbin:/bin"
_TIMEOUT: Final = 20.0


def delete_table(family: str, name: str) -> str:
    """Lines that delete a table whether or not it exists (nft before 1.0.7 has no destroy)."""
    return f"table {family} {name}\ndelete table {family} {name}\n"


def table(family: str, name: str, *parts: str) -> str:
    """A table of chains and sets."""
    return f"table {family} {name} {{\n" + "".join(parts) + "}\n"


def chain(name: str, rules: Sequence[str], hook: str = "") -> str:
    """A chain that accepts what no rule decides; without `hook` one to jump to."""
    head = f"    {hook}; policy accept;\n" if hook else ""
    return f"  chain {name} {{\n{head}" + "".join(f"    {rule}\n" for rule in rules) + "  }\n"


def tables() -> set[tuple[str, str]]:
    """The family and the name of each table there is. Raises as `run` does."""
    lines = map(str.split, run("list tables").splitlines())
    return {(line[1], line[2]) for line in lines if len(line) == 3}


def run(script: str) -> str:
    """Apply `script`; what it lists. Raises NetworkSetupFailed, PermissionMissing if not root."""
    nft = shutil.which("nft", path=SYSTEM_PATH)
    if nft is None:
        raise NetworkSetupFailed("nft is missing", "install the package nftables")
    try:
        done = subprocess.run(
            [nft, "-f", "-"],
            input=script,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT,
            check=False,
            env={"PATH": SYSTEM_PATH, "LC_ALL": "C"},
        )
    except subprocess.TimeoutExpired as error:
        raise NetworkSetupFailed("nft did not answer", "is another program holding it?") from error
    if done.returncode == 0:
        return done.stdout
    reason = next(iter(done.stderr.splitlines()), f"status {done.returncode}")
    if "Operation not permitted" in reason:
        raise PermissionMissing("only root may change the firewall", "run it with sudo")
    raise NetworkSetupFailed(f"nft refused our rules ({reason})", "does this kernel have nftables?")
