"""OpenVPN 2.6, trusting by certificate fingerprint."""

from __future__ import annotations

import datetime
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from bench.lab import GATEWAY_OUTER, TARGET
from bench.peers.base import Peer


def make_certificate(name: str, folder: Path) -> tuple[Path, Path, str]:
    """A self-signed P-256 certificate: (certificate, key, SHA-256 fingerprint as AA:BB:..)."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    cert_file, key_file = folder / f"{name}.crt", folder / f"{name}.key"
    cert_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    key_file.touch(mode=0o600)
    key_file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return cert_file, key_file, certificate.fingerprint(hashes.SHA256()).hex(":").upper()


class OpenVpn(Peer):
    """OpenVPN 2.6 over UDP with AES-128-GCM, in user space (no DCO)."""

    name = "openvpn"
    protocol: ClassVar[str] = "udp4"

    @classmethod
    def missing(cls) -> str | None:
        if shutil.which("openvpn") is None:
            return "openvpn is not on PATH"
        if (number := re.match(r"(\d+)\.(\d+)", cls.version())) is None:
            return "openvpn does not say its version"
        if (int(number[1]), int(number[2])) < (2, 6):
            return f"openvpn {cls.version()} is too old: 2.6 has peer fingerprints"
        return None

    @classmethod
    def version(cls) -> str:
        # It exits with 1 after printing its version.
        output = subprocess.run(["openvpn", "--version"], capture_output=True, text=True)
        found = re.match(r"OpenVPN (\S+)", output.stdout)
        return found[1] if found else ""

    def start_gateway(self) -> None:
        folder = self.lab.directory
        self._server = make_certificate("server", folder)
        self._device = make_certificate("client", folder)
        self._gateway = self.lab.spawn(
            self.lab.gateway,
            "openvpn-gateway",
            [
                *self._common(self._server, self._device),
                *("--proto", self._protocol("server")),
                *("--server", "10.99.2.0", "255.255.255.0", "--topology", "subnet"),
                *("--dh", "none", "--local", GATEWAY_OUTER),
                *("--push", f"route {TARGET} 255.255.255.255"),
            ],
        )
        self._gateway.wait_for("Initialization Sequence Completed")

    def start_client(self) -> None:
        self._client = self.lab.spawn(
            self.lab.client,
            "openvpn-client",
            [
                *self._common(self._device, self._server),
                *("--proto", self._protocol("client"), "--client", "--nobind"),
                *("--remote", GATEWAY_OUTER),
            ],
        )

    def _protocol(self, end: str) -> str:
        return self.protocol if self.protocol == "udp4" else f"tcp4-{end}"

    def _common(self, own: tuple[Path, Path, str], other: tuple[Path, Path, str]) -> Sequence[str]:
        return [
            *("openvpn", "--dev", "tun", "--port", "1194"),
            *("--cert", str(own[0]), "--key", str(own[1]), "--peer-fingerprint", other[2]),
            *("--data-ciphers", "AES-128-GCM", "--disable-dco"),
            *("--tun-mtu", str(self.mtu), "--mssfix", "0", "--verb", "3"),
        ]


class OpenVpnTcp(OpenVpn):
    """The same over TCP: its fallback beside ours."""

    name = "openvpn-tcp"
    protocol = "tcp4"
