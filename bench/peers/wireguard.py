"""wireguard-go: WireGuard in user space, the tunnel that ratios refer to."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

from bench.lab import GATEWAY_OUTER, TARGET, Namespace, Process, execute
from bench.peers.base import Peer


def _wireguard_version(binary: str) -> str:
    """The version a wireguard-go binary says it has; comparable as text, "" when it says none."""
    try:
        output = subprocess.run([binary, "--version"], capture_output=True, text=True, timeout=5.0)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    found = re.search(r"wireguard-go v?(\S+)", output.stdout)
    return found[1] if found else ""


class WireGuardGo(Peer):
    """The user-space WireGuard; of several on PATH the newest."""

    name = "wireguard-go"

    @staticmethod
    def binary() -> str | None:
        """The path of the newest wireguard-go on PATH."""
        folders = os.environ.get("PATH", os.defpath).split(os.pathsep)
        found = [path for folder in folders if (path := shutil.which("wireguard-go", path=folder))]
        return max(found, key=_wireguard_version, default=None)

    @classmethod
    def missing(cls) -> str | None:
        if cls.binary() is None:
            return "wireguard-go is not on PATH"
        if shutil.which("wg") is None:
            return "wg is not on PATH (package wireguard-tools)"
        return None

    @classmethod
    def version(cls) -> str:
        return _wireguard_version(cls.binary() or "") or "unknown"

    def start_gateway(self) -> None:
        self._keys = {end: execute(["wg", "genkey"]).strip() for end in ("client", "gateway")}
        self._gateway = self._start(
            self.lab.gateway, "gateway", "10.99.1.1", "client", "10.99.1.2/32", ""
        )
        self.lab.gateway.ip(f"route add 10.99.1.2/32 dev {self._device('gateway')}")

    def start_client(self) -> None:
        self._client = self._start(
            self.lab.client,
            "client",
            "10.99.1.2",
            "gateway",
            f"{TARGET}/32",
            f"Endpoint = {GATEWAY_OUTER}:51820\n",
        )
        self.lab.client.ip(f"route add {TARGET}/32 dev {self._device('client')}")

    def _device(self, end: str) -> str:
        # Control sockets are named after the device in one directory, across namespaces.
        return f"wg{self.lab.tag.replace('-', '_')}{end[0]}"[-15:]

    def _start(
        self,
        where: Namespace,
        end: str,
        address: str,
        other: str,
        allowed: str,
        endpoint: str,
    ) -> Process:
        device = self._device(end)
        process = self.lab.spawn(
            where,
            f"wireguard-go-{end}",
            [self.binary() or "", "-f", device],
            env={"WG_PROCESS_FOREGROUND": "1"},
        )
        control = Path("/var/run/wireguard", f"{device}.sock")
        process.wait_until(control.exists)
        other_key = execute(["wg", "pubkey"], stdin=self._keys[other]).strip()
        where.run(
            "wg",
            "setconf",
            device,
            "/dev/stdin",
            stdin=f"[Interface]\nPrivateKey = {self._keys[end]}\nListenPort = 51820\n"
            f"[Peer]\nPublicKey = {other_key}\nAllowedIPs = {allowed}\n{endpoint}",
        )
        where.ip(
            f"addr add {address}/32 dev {device}",
            f"link set {device} mtu {self.mtu} up",
        )
        return process
