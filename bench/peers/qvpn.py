"""qvpn itself, by its command line only: what is measured is what a user starts."""

from __future__ import annotations

import json
import secrets
import shutil
import sys
import time
from pathlib import Path
from typing import ClassVar

from bench.lab import GATEWAY_OUTER, TARGET, execute
from bench.peers.base import Peer
from qvpn_core.transport.interface import TransportName

_PORT = 443
_PROFILE = "bench"
#: Seconds without a change after which path-MTU discovery is over, and how long to wait for that.
_STABLE = 1.0
_DISCOVERY = 10.0


def installed(program: str) -> str | None:
    """A program of this project: beside the running Python, else on PATH."""
    beside = Path(sys.executable).with_name(program)
    return str(beside) if beside.exists() else shutil.which(program)


class Qvpn(Peer):
    """A gateway and a client with one bearer token, split to the measured host."""

    name = "qvpn"
    transport: ClassVar[str] = "quic"
    #: For `QVPN_DATAPATH` (docs/datapath.md): the best that there is, unless it says otherwise.
    datapath: ClassVar[str] = ""

    @property
    def _state(self) -> Path:
        return self.lab.directory / "gateway"

    @classmethod
    def missing(cls) -> str | None:
        absent = [name for name in ("qvpn", "qvpn-server") if installed(name) is None]
        return f"{' and '.join(absent)} not installed (pip install -e .)" if absent else None

    @classmethod
    def version(cls) -> str:
        from importlib.metadata import version

        return version("qvpn")

    def start_gateway(self) -> None:
        state = str(self._state)
        self._server(
            "init",
            *("--state", state, "--host", GATEWAY_OUTER, "--listen", f"{GATEWAY_OUTER}:{_PORT}"),
            *("--pool4", "10.99.3.0/24"),
        )
        device = self._new_token(_PROFILE)
        self._gateway = self.lab.spawn(
            self.lab.gateway,
            "qvpn-server",
            [installed("qvpn-server") or "", "run", "--state", state],
            env=self.environment(),
        )
        self._gateway.wait_for("listening on")
        token = self.lab.directory / "token"
        token.touch(mode=0o600)
        token.write_text(device["token"])
        execute(
            [
                *(installed("qvpn") or "", "profile", "add", _PROFILE),
                *("--gateway", f"{GATEWAY_OUTER}:{_PORT}"),
                *("--token-file", str(token), "--pin", device["pin"]),
            ],
            env=self.environment(),
        )

    def choose_transport(self, transport: TransportName) -> None:
        """What the profile's commands use that have no option for it."""
        (profile,) = (self.lab.directory / "config").rglob(f"{_PROFILE}.toml")
        text = profile.read_text()
        profile.write_text(text.replace("[gateway]\n", f'[gateway]\ntransport = "{transport}"\n'))

    def start_client(self) -> None:
        self._client = self.lab.spawn(
            self.lab.client,
            "qvpn",
            [
                *(installed("qvpn") or "", "up", _PROFILE, "--only", f"{TARGET}/32"),
                *("--foreground", "--transport", self.transport),
            ],
            env=self.environment(),
        )

    def settle(self) -> None:
        # Its MTU follows the path's: what is set before discovery ends would be overwritten.
        device = self.lab.client.device_towards(TARGET)
        deadline = time.monotonic() + _DISCOVERY
        mtu, since = self.lab.client.mtu(device), time.monotonic()
        while (now := time.monotonic()) < min(deadline, since + _STABLE):
            time.sleep(0.05)
            if (latest := self.lab.client.mtu(device)) != mtu:
                mtu, since = latest, now
        super().settle()

    def hold_idle_sessions(self, count: int) -> bool:
        group = secrets.token_hex(4)
        tokens = [self._new_token(f"idle-{group}-{number}") for number in range(count)]
        setup = self.lab.directory / f"idle-{group}.json"
        setup.touch(mode=0o600)
        setup.write_text(
            json.dumps(
                {
                    "host": GATEWAY_OUTER,
                    "port": _PORT,
                    "pin": tokens[0]["pin"],
                    "tokens": [one["token"] for one in tokens],
                }
            )
        )
        holder = self.lab.spawn(
            self.lab.client, "idle", [sys.executable, "-m", "bench.idle", str(setup)]
        )
        holder.wait_for("open", timeout=10.0 + count)
        return True

    def _new_token(self, name: str) -> dict[str, str]:
        device: dict[str, str] = json.loads(
            self._server("token", "--state", str(self._state), "--json", name)
        )
        return device

    def _server(self, *arguments: str) -> str:
        return execute([installed("qvpn-server") or "", *arguments])

    def environment(self) -> dict[str, str]:
        """What makes both ends use the lab's directory and the datapath that is meant."""
        directories = {
            f"QVPN_{kind}_DIR": str(self.lab.directory / kind.lower())
            for kind in ("CONFIG", "STATE", "RUNTIME")
        }
        return {**directories, "QVPN_DATAPATH": self.datapath}


class QvpnPython(Qvpn):
    """The same with the reference datapath at both ends, as without the Rust extension."""

    name = "qvpn-python"
    datapath = "aioquic"

    def hold_idle_sessions(self, count: int) -> bool:
        return False  # what a session costs is measured with the native one


class QvpnTls(Qvpn):
    """The same over TLS on TCP, as where UDP is blocked."""

    name = "qvpn-tls"
    transport = "tls"

    def hold_idle_sessions(self, count: int) -> bool:
        return False  # what a session costs is measured on QUIC
