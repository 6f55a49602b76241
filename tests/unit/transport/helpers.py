"""What tests of transports share: certificates, a handler that records, a loop that finds leaks.

It refuses to hide failures: a callback that raised, a task that nobody awaited or a descriptor that
stayed open fails the test that caused it.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import ipaddress
import os
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ParamSpec

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from qvpn_core.errors import QvpnError
from qvpn_core.transport.interface import (
    HttpTunnel,
    IncomingRequest,
    Request,
    TunnelHandler,
)
from qvpn_core.transport.trust import spki_pin

P = ParamSpec("P")
DAY = timedelta(days=1)

CONNECT_IP = Request(
    method="CONNECT",
    scheme="https",
    authority="localhost",
    path="/.well-known/masque/ip/*/*/",
    protocol="connect-ip",
)


# Certificates


@dataclass(frozen=True, slots=True)
class Identity:
    """A certificate with its key, as PEM files and as objects."""

    certificate_file: Path
    key_file: Path
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def pin(self) -> str:
        """The pin of its public key."""
        return spki_pin(self.certificate)


def make_identity(
    directory: Path,
    name: str = "gateway",
    *,
    hosts: tuple[str, ...] = ("localhost", "127.0.0.1", "::1"),
    issuer: Identity | None = None,
    authority: bool = False,
    not_before: timedelta = -DAY,
    not_after: timedelta = DAY,
) -> Identity:
    """A certificate for `hosts`, self-signed without `issuer`; its times are relative to now."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + not_before)
        .not_valid_after(now + not_after)
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
    )
    if hosts:
        builder = builder.add_extension(
            x509.SubjectAlternativeName([_general_name(host) for host in hosts]), critical=False
        )
    certificate = builder.sign(issuer.key if issuer else key, SHA256())
    certificate_file = directory / f"{name}.pem"
    key_file = directory / f"{name}.key"
    certificate_file.write_bytes(certificate.public_bytes(Encoding.PEM))
    key_file.write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
    )
    return Identity(certificate_file, key_file, certificate, key)


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


# Recording


class Changes:
    """Lets a test wait for a condition over what callbacks recorded."""

    def __init__(self) -> None:
        self._changed = asyncio.Event()

    def note(self) -> None:
        """Something was recorded."""
        self._changed.set()

    async def until(self, condition: Callable[[], object], seconds: float = 10.0) -> None:
        """Wait until `condition()` is true; it is asked after each change."""
        async with asyncio.timeout(seconds):
            while not condition():
                self._changed.clear()
                await self._changed.wait()


class RecordingHandler:
    """A TunnelHandler that remembers all it is told."""

    def __init__(self) -> None:
        self.changes = Changes()
        self.data = b""
        self.ends = 0
        self.received: list[bytes] = []
        self.too_big: list[tuple[bytes, int]] = []
        self.mtus: list[int] = []
        self.closings: list[QvpnError | None] = []

    def capsule_data(self, data: bytes) -> None:
        self.data += data
        self.changes.note()

    def capsule_end(self) -> None:
        self.ends += 1
        self.changes.note()

    def packets(self, packets: list[bytes]) -> None:
        assert packets, "an empty list is never delivered"
        self.received += packets
        self.changes.note()

    def packet_too_big(self, packet: bytes, mtu: int) -> None:
        self.too_big.append((packet, mtu))
        self.changes.note()

    def mtu_changed(self, mtu: int) -> None:
        self.mtus.append(mtu)
        self.changes.note()

    def closed(self, error: QvpnError | None) -> None:
        self.closings.append(error)
        self.changes.note()

    async def until(self, condition: Callable[[], object], seconds: float = 10.0) -> None:
        """Wait until `condition()` is true."""
        await self.changes.until(condition, seconds)

    async def packets_arrived(self, count: int) -> None:
        """Wait until `count` packets have arrived in all."""
        await self.changes.until(lambda: len(self.received) >= count)


class AcceptingServer:
    """A gateway's `on_request` that accepts everything and remembers it."""

    def __init__(self) -> None:
        self.changes = Changes()
        self.requests: list[IncomingRequest] = []
        self.tunnels: list[HttpTunnel] = []
        self.handlers: list[RecordingHandler] = []

    def __call__(self, request: IncomingRequest) -> None:
        handler = self.make_handler()
        self.requests.append(request)
        self.handlers.append(handler)
        self.tunnels.append(request.accept(handler))
        self.changes.note()

    def make_handler(self) -> RecordingHandler:
        """The handler of the next tunnel."""
        return RecordingHandler()


def check_handler(handler: RecordingHandler) -> TunnelHandler:
    """Proof to mypy that a RecordingHandler is a TunnelHandler."""
    return handler


# Running


def open_descriptors() -> set[str]:
    """What this process has open, as descriptor and target."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            found.add(f"{name} {os.readlink(f'/proc/self/fd/{name}')}")
        except FileNotFoundError:
            pass  # the descriptor of this very listing
    return found


def in_loop(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Run an async test in a fresh loop that must be clean and empty afterwards."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        before = open_descriptors()
        asyncio.run(_run_clean(test(*args, **kwargs)))
        gc.collect()
        leaked = open_descriptors() - before
        assert not leaked, f"descriptors left open: {leaked}"

    return run


async def _run_clean(body: Coroutine[Any, Any, None]) -> None:
    loop = asyncio.get_running_loop()
    raised: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _loop, context: raised.append(context))
    await body
    await settle()
    gc.collect()  # a task or future whose exception nobody looked at reports itself now
    await settle()
    others = asyncio.all_tasks() - {asyncio.current_task()}
    assert not others, f"tasks left running: {others}"
    assert not raised, f"exceptions in callbacks: {raised}"


async def settle(rounds: int = 5) -> None:
    """Let callbacks run that are due now."""
    for _ in range(rounds):
        await asyncio.sleep(0)
