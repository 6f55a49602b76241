"""A PostgreSQL server of our own, on a Unix socket, for as long as the tests run.

Debian's binaries, an unprivileged user, a directory that goes with it; no TCP port. The server ends
with the process that started it, even if that is killed.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

#: Seconds that making and starting one may take on a busy machine.
PATIENCE = 60
_BINARIES = "usr/lib/postgresql/*/bin/initdb"


def binaries() -> Path | None:
    """Where the newest installed server's programs are."""
    found = sorted(Path("/").glob(_BINARIES), key=lambda path: float(path.parts[-3]))
    return found[-1].parent if found else None


def unavailable() -> str | None:
    """Why there can be no server here, or None."""
    if binaries() is None:
        return f"PostgreSQL is not installed: no /{_BINARIES} (apt install postgresql)"
    return None


@contextmanager
def server() -> Iterator[str]:
    """A running server. Yields a URL of its socket that lacks the database's name: ``{}``."""
    programs = binaries()
    assert programs is not None
    user = _user()
    directory = Path(tempfile.mkdtemp(prefix="qvpn-pg-"))
    try:
        if user is not None:
            os.chown(directory, user, -1)
        data = directory / "data"

        def run(program: str, *arguments: object) -> None:
            subprocess.run(
                [programs / program, *map(str, arguments)],
                user=user,
                cwd=directory,
                check=True,
                timeout=PATIENCE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            )

        run("initdb", "-D", data, "-U", "qvpn", "--auth=trust", "--no-sync", "--encoding=UTF8")
        options = f"-c listen_addresses= -k {directory} -c fsync=off -c shared_buffers=16MB"
        log = directory / "log"
        run("pg_ctl", "-D", data, "-w", "-t", PATIENCE, "-l", log, "-o", options, "start")
        # It stops the server at the end of its input, which is our end in any case.
        watcher = subprocess.Popen(
            ["sh", "-c", 'read _; exec "$0" -D "$1" -m immediate stop', programs / "pg_ctl", data],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            user=user,
            cwd=directory,
            start_new_session=True,
        )
        try:
            yield f"postgresql+psycopg://qvpn@/{{}}?host={directory}"
        finally:
            watcher.communicate(timeout=PATIENCE)
    finally:
        shutil.rmtree(directory)


def _user() -> int | None:
    """Whom the server runs as: it refuses root."""
    return pwd.getpwnam("nobody").pw_uid if os.geteuid() == 0 else None
