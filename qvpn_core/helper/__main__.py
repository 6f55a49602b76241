"""``qvpn-helper``: run as root by qvpn through pkexec, and by a unit at boot.

``session`` serves the socket that is its standard input, ``unlock`` undoes what a dead session
left, ``boot`` restores a lasting kill switch. There are no other words and no options.
"""

from __future__ import annotations

import os
import sys

from qvpn_core.errors import PermissionMissing, QvpnError, UsageError
from qvpn_core.net.nft import SYSTEM_PATH


def main() -> int:
    """Returns the exit status: 0 done, 1 it failed, 2 it cannot be meant."""
    started_for = os.environ.get("PKEXEC_UID")
    rested = "QVPN_RESTED" in os.environ  # as `process.RESTED`, which takes time to import
    os.environ.clear()
    os.environ.update(PATH=SYSTEM_PATH, LC_ALL="C.UTF-8")
    os.umask(0o022)
    os.chdir("/")
    try:
        _run(sys.argv[1:], started_for, rested)
    except QvpnError as error:
        print(f"qvpn-helper: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    return 0


def _run(words: list[str], started_for: str | None, rested: bool) -> None:
    if words not in (["session"], ["unlock"], ["boot"]):
        raise UsageError("qvpn-helper is not for the hand", "use qvpn up, qvpn unlock")
    if os.geteuid() != 0:
        raise PermissionMissing("qvpn-helper runs as root", "use qvpn up, which asks for it")
    if words == ["session"]:
        from qvpn_core.helper import process

        process.serve(started_for, rested=rested)
        return
    from qvpn_core.helper import release

    if words == ["unlock"]:
        release.unlock(int(started_for or 0))
    elif started_for is not None:
        raise PermissionMissing("booting is not done by hand", "")
    else:
        release.boot()


if __name__ == "__main__":
    sys.exit(main())
