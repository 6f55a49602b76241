"""What polkit says about a process, without asking anybody: pkcheck(1), which polkit brings."""

from __future__ import annotations

import shutil
import subprocess
from enum import Enum
from pathlib import Path
from typing import Final

from qvpn_core.net.nft import SYSTEM_PATH

SESSION: Final = "io.github.qvpn.session"
UNLOCK: Final = "io.github.qvpn.unlock"
_PATIENCE: Final = 5.0  # seconds


class Verdict(Enum):
    """Whether a process may do something now."""

    #: By a rule, or because a permission is kept.
    ALLOWED = 0
    FORBIDDEN = 1
    #: Once somebody has entered a password.
    TO_ASK = 2
    #: polkit does not answer, or the process is gone.
    UNKNOWN = -1


def check(action: str, pid: int, uid: int) -> Verdict:
    """What polkit says of an action of this process. Waits for it, within bounds."""
    pkcheck = shutil.which("pkcheck", path=SYSTEM_PATH)
    try:
        stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        if pkcheck is None:
            return Verdict.UNKNOWN
        done = subprocess.run(
            [pkcheck, "--action-id", action, "--process", f"{pid},{stat[19]},{uid}"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            timeout=_PATIENCE,
            check=False,
        )
        return Verdict(done.returncode)
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return Verdict.UNKNOWN
