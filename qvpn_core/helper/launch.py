"""Starting the helper: through pkexec for an ordinary user, directly for root.

The helper's standard input is its only channel. How pkexec refuses is told apart by its exit status
and its words (pkexec(1)), which are not translated.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from qvpn_core.errors import QvpnError
from qvpn_core.helper import polkit
from qvpn_core.helper.errors import (
    AgentMissing,
    AuthorizationDenied,
    HelperFailed,
    HelperMissing,
    PolkitMissing,
)
from qvpn_core.net.nft import SYSTEM_PATH
from qvpn_core.program import module_command

#: Where an installation puts the helper: what polkit's actions name.
INSTALLED: Final = (
    Path("/usr/local/lib/qvpn/qvpn-helper"),
    Path("/usr/lib/qvpn/qvpn-helper"),
)
_DISMISSED: Final = 126
_REFUSED: Final = 127
_MAX_WORDS: Final = 4096


def spawn() -> tuple[subprocess.Popen[bytes], socket.socket]:
    """Start the helper for a session: the process and our end of its socket, which never blocks.

    Raises HelperMissing, PolkitMissing, HelperFailed.
    """
    argv, environment = command("session")
    ours, its = socket.socketpair(
        socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
    )
    with its:
        # From the first packet on each carries who has sent it.
        its.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        its.setblocking(True)
        try:
            process = subprocess.Popen(
                argv,
                stdin=its.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                cwd="/",
                env=environment,
            )
        except OSError as error:
            ours.close()
            raise HelperFailed(f"{argv[0]} cannot be run ({error.strerror})") from error
    return process, ours


def unlock() -> None:
    """Have the helper undo what a dead session left, and wait for it.

    Raises HelperMissing, PolkitMissing, AuthorizationDenied, HelperFailed.
    """
    argv, environment = command("unlock")
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            cwd="/",
            env=environment,
            check=False,
        )
    except OSError as error:
        raise HelperFailed(f"{argv[0]} cannot be run ({error.strerror})") from error
    if done.returncode == 0:
        return
    words = done.stderr.decode(errors="replace")[-_MAX_WORDS:]
    if done.returncode in (_DISMISSED, _REFUSED):
        raise refusal(done.returncode, words, "unlock")
    raise HelperFailed(_last_line(done.returncode, words))


def command(word: str) -> tuple[list[str], dict[str, str]]:
    """The command line and the environment of the helper, to do `word`.

    Raises HelperMissing, PolkitMissing.
    """
    if os.geteuid() == 0:
        root = str(Path(__file__).resolve().parents[2])
        environment = {"PATH": SYSTEM_PATH, "PYTHONPATH": root, "LC_ALL": "C.UTF-8"}
        return module_command("qvpn_core.helper", word), environment
    helper = next((path for path in helpers(Path(__file__)) if os.access(path, os.X_OK)), None)
    if helper is None:
        raise HelperMissing(
            "the helper of qvpn is not installed",
            "install qvpn's package, or run qvpn-install-helper as root",
        )
    pkexec = shutil.which("pkexec", path=SYSTEM_PATH)
    if pkexec is None:
        raise PolkitMissing(
            "pkexec is missing", "install polkit with pkexec, or be root and run it again"
        )
    return [pkexec, str(helper), word], _environment(os.environ)


def helpers(code: Path) -> list[Path]:
    """Where the helper of the installation that `code` belongs to may be, the likeliest first.

    A package has its own, whatever else somebody has installed beside it.
    """
    return sorted(INSTALLED, key=lambda path: not code.is_relative_to(path.parent))


def _environment(ours: Mapping[str, str]) -> dict[str, str]:
    """Without SHELL: pkexec refuses one that is not in /etc/shells, and needs none."""
    return {name: value for name, value in ours.items() if name != "SHELL"}


def words_of(process: subprocess.Popen[bytes]) -> str:
    """What a process that has ended wrote to its standard error, and close that."""
    stream, process.stderr = process.stderr, None
    if stream is None:
        return ""
    with stream:
        os.set_blocking(stream.fileno(), False)  # a child of it may still hold the other end
        return (stream.read(_MAX_WORDS) or b"").decode(errors="replace")


def refusal(status: int, words: str, word: str = "session") -> QvpnError:
    """Why the helper ended before it did `word`, from its exit status and what it wrote.

    May ask polkit, and wait for it.
    """
    if status == _DISMISSED:
        return _not_given()
    if status == _REFUSED:
        if "authentication agent" in words:
            return AgentMissing(
                "nobody can ask you for permission: no polkit agent runs here",
                "use a desktop or a terminal, or be root and run it again",
            )
        if "authority" in words or "checking for authorization" in words:
            return PolkitMissing("polkit does not answer", "does the system bus run here?")
        if "Not authorized" in words:
            # So it says for a wrong password too, and some agents have it say so for none.
            action = {"session": polkit.SESSION, "unlock": polkit.UNLOCK}[word]
            if polkit.check(action, os.getpid(), os.getuid()) is polkit.Verdict.TO_ASK:
                return _not_given()
            return AuthorizationDenied(
                "polkit does not allow you to change the network", "ask your administrator"
            )
    return HelperFailed(
        f"the helper did not start ({_last_line(status, words)})", "install qvpn again"
    )


def _not_given() -> AuthorizationDenied:
    return AuthorizationDenied(
        "the password was wrong or was not entered, so the network stays as it is", "try again"
    )


def _last_line(status: int, words: str) -> str:
    lines = [line for line in words.splitlines() if line.strip()]
    return lines[-1].removeprefix("qvpn-helper: ")[:200] if lines else f"status {status}"
