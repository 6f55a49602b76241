"""The gateway and the client in a world, driven by their commands as a person would drive them.

The only module of the test world that knows qvpn. Every call is bounded in time; what was started
ends with its namespace.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from tests.world import plan
from tests.world.namespaces import Namespace

BIN: Final = Path(sys.executable).parent
GATEWAY_PORT: Final = 443
#: Seconds that a start or an end may take on a busy machine.
PATIENCE: Final = 20.0


class CommandFailed(AssertionError):
    """A command that had to succeed did not; the text is what it wrote to stderr."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """What `qvpn-server token --json` prints."""

    name: str
    token: str
    gateway: str
    pin: str


class VpnGateway:
    """`qvpn-server` in a namespace, with a state directory of its own."""

    def __init__(self, host: Namespace, state: Path, *, address: str = plan.GATEWAY4) -> None:
        self.host = host
        self.state = state
        self.address = address
        self.process: subprocess.Popen[Any] | None = None
        self.log = state.with_name(state.name + ".log")

    def command(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run `qvpn-server` with these words and ``--state``."""
        argv = [str(BIN / "qvpn-server"), *words, "--state", str(self.state)]
        return _checked(self.host.run(argv, check=False, timeout=PATIENCE), check)

    def init(self, *options: str) -> None:
        """Create the gateway's state; it listens on both of its addresses."""
        self.command(
            "init", "--host", self.address, "--dns", plan.COMPANY_DNS.v4, plan.COMPANY_DNS.v6,
            *options,
        )  # fmt: skip

    def start(self) -> None:
        """Run the gateway and wait until it listens."""
        with self.log.open("ab") as log:
            self.process = self.host.popen(
                [str(BIN / "qvpn-server"), "run", "--state", str(self.state)],
                stdout=subprocess.PIPE,
                stderr=log,
            )
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], PATIENCE)
        line = self.process.stdout.readline() if ready else b""
        if b"listening" not in line:
            raise CommandFailed(f"the gateway did not start: {line!r} {self.log.read_text()}")

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End the gateway with a signal and return its exit status."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(PATIENCE)

    def token(self, name: str) -> Credentials:
        """Create a device."""
        printed = json.loads(self.command("token", name, "--json").stdout)
        return Credentials(**printed)

    def status(self) -> dict[str, Any]:
        """What `status --json` prints."""
        status: dict[str, Any] = json.loads(self.command("status", "--json").stdout)
        return status


class VpnClient:
    """`qvpn` in a namespace, with directories of its own."""

    def __init__(self, host: Namespace, directory: Path) -> None:
        self.host = host
        self.directory = directory
        # A unix socket's path is short (108 bytes): not below a test's deep directory.
        self._runtime = tempfile.TemporaryDirectory(prefix="qvpn-run-")
        self.environment = os.environ | {
            "QVPN_CONFIG_DIR": str(directory / "config"),
            "QVPN_STATE_DIR": str(directory / "state"),
            "QVPN_RUNTIME_DIR": self._runtime.name,
        }

    def close(self) -> None:
        """Disconnect if need be and forget everything."""
        self.command("down", check=False)
        self._runtime.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def command(
        self, *words: str, check: bool = True, timeout: float = PATIENCE
    ) -> subprocess.CompletedProcess[str]:
        """Run `qvpn` with these words."""
        argv = [str(BIN / "qvpn"), *words]
        done = self.host.run(argv, check=False, timeout=timeout, env=self.environment)
        return _checked(done, check)

    def add_profile(self, credentials: Credentials, name: str = "home") -> None:
        """Store a profile for a gateway."""
        self.command(
            "profile", "add", name, "--gateway", credentials.gateway,
            "--token", credentials.token, "--pin", credentials.pin,
        )  # fmt: skip

    def up(self, *options: str, name: str = "home") -> None:
        """Connect in the background; returns when connected."""
        self.command("up", name, *options)

    def foreground(self, *options: str, name: str = "home") -> subprocess.Popen[Any]:
        """Connect in a process of one's own and wait until it is connected."""
        process = self.host.popen(
            [str(BIN / "qvpn"), "up", name, "--foreground", *options],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=self.environment,
        )
        self.wait_for("connected")
        return process

    def down(self) -> None:
        """Disconnect."""
        self.command("down")

    def status(self) -> dict[str, Any]:
        """What `status --json` prints."""
        status: dict[str, Any] = json.loads(self.command("status", "--json").stdout)
        return status

    def wait_for(self, state: str, timeout: float = PATIENCE) -> dict[str, Any]:
        """Poll until the client is in `state`; raises CommandFailed when it never is."""
        end = time.monotonic() + timeout
        while (status := self.status())["state"] != state:
            if time.monotonic() > end:
                raise CommandFailed(f"not {state} within {timeout} seconds: {status}")
            time.sleep(0.05)
        return status


def _checked(
    done: subprocess.CompletedProcess[str], check: bool
) -> subprocess.CompletedProcess[str]:
    if check and done.returncode:
        raise CommandFailed(f"{' '.join(done.args)}: {done.stderr.strip() or done.stdout.strip()}")
    return done
