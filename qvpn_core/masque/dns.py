"""DNS_ASSIGN (draft-ietf-masque-connect-ip-dns-06 section 3): which nameservers know which names.

Values and their coding. Service parameters are kept as bytes by key (RFC 9460 section 2.2); only
those that decide whether a nameserver can be asked in the clear are looked into. Whether to believe
the peer, and how to configure a resolver, is decided elsewhere. PREF64 is not spoken.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address
from itertools import pairwise
from typing import Self

from qvpn_core.masque.address import IPAddress
from qvpn_core.masque.capsule import CapsuleType, ValueReader, encode_capsule, malformed
from qvpn_core.masque.domain import check_domain
from qvpn_core.masque.varint import encode_varint


class SvcParamKey(IntEnum):
    """Service parameter keys that the draft has rules for (RFC 9460 section 14.3.2)."""

    ALPN = 1
    NO_DEFAULT_ALPN = 2
    PORT = 3
    IPV4HINT = 4
    IPV6HINT = 6


#: The port of a nameserver that names none (RFC 1035 section 4.2).
DNS_PORT = 53


@dataclass(frozen=True, slots=True)
class Nameserver:
    """One nameserver: its addresses, the name it proves by certificate, its service parameters.

    `priority` is 1 to 65535, the lowest first. `service_parameters` are (key, value) by rising key.
    """

    priority: int = 1
    ipv4: tuple[IPv4Address, ...] = ()
    ipv6: tuple[IPv6Address, ...] = ()
    authentication_domain: str = ""
    service_parameters: tuple[tuple[int, bytes], ...] = ()

    def __post_init__(self) -> None:
        if not 0 < self.priority <= 0xFFFF:
            raise ValueError(f"service priority {self.priority}")
        check_domain(self.authentication_domain)
        keys = [key for key, _ in self.service_parameters]
        if any(a >= b for a, b in pairwise(keys)):
            raise ValueError("service parameters are not in rising order")
        if any(key > 0xFFFF or len(value) > 0xFFFF for key, value in self.service_parameters):
            raise ValueError("a service parameter is too long")
        if SvcParamKey.IPV4HINT in keys or SvcParamKey.IPV6HINT in keys:
            raise ValueError("an address hint among the service parameters")
        if not self.authentication_domain:
            if SvcParamKey.ALPN in keys or SvcParamKey.NO_DEFAULT_ALPN in keys:
                raise ValueError("an encrypted nameserver without a name to authenticate")
            # The draft asks for an address whenever no-default-alpn is absent, yet its own
            # example in section 3.6.1 has a named DoH server with neither: names are enough.
            if not self.addresses:
                raise ValueError("a nameserver with neither address nor name")
        port = self._parameter(SvcParamKey.PORT)
        if port is not None and len(port) != 2:
            raise ValueError("a port that is not two bytes long")

    @property
    def addresses(self) -> tuple[IPAddress, ...]:
        """All addresses, IPv4 first."""
        return (*self.ipv4, *self.ipv6)

    @property
    def port(self) -> int:
        """The port for unencrypted DNS."""
        port = self._parameter(SvcParamKey.PORT)
        return DNS_PORT if port is None else int.from_bytes(port, "big")

    @property
    def unencrypted(self) -> bool:
        """Whether it can be asked by plain DNS."""
        return bool(self.addresses) and self._parameter(SvcParamKey.NO_DEFAULT_ALPN) is None

    def _parameter(self, wanted: SvcParamKey) -> bytes | None:
        return next((value for key, value in self.service_parameters if key == wanted), None)


@dataclass(frozen=True, slots=True)
class DnsConfiguration:
    """Nameservers and the domains, with all below them, that they answer for."""

    nameservers: tuple[Nameserver, ...] = ()
    internal_domains: tuple[str, ...] = ()
    search_domains: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in (*self.internal_domains, *self.search_domains):
            check_domain(name)

    @property
    def answers_everything(self) -> bool:
        """Whether the root is among the internal domains: these nameservers resolve all names."""
        return any(name in ("", ".") for name in self.internal_domains)


@dataclass(frozen=True, slots=True)
class DnsAssign:
    """The full DNS configuration that the sender offers; it replaces earlier ones."""

    configurations: tuple[DnsConfiguration, ...] = ()

    @classmethod
    def plain(
        cls,
        servers: Iterable[IPAddress],
        internal_domains: Iterable[str] = ("",),
        search_domains: Iterable[str] = (),
    ) -> Self:
        """Plain DNS at each of `servers`, the first preferred, for all names unless told less.

        Raises ValueError for what is not a domain name.
        """
        nameservers = tuple(
            Nameserver(priority, ipv4=(server,))
            if isinstance(server, IPv4Address)
            else Nameserver(priority, ipv6=(server,))
            for priority, server in enumerate(servers, 1)
        )
        return cls((DnsConfiguration(nameservers, tuple(internal_domains), tuple(search_domains)),))

    @classmethod
    def parse(cls, value: bytes) -> Self:
        """Raises CapsuleError when a field is malformed."""
        reader = ValueReader(value)
        configurations = []
        with malformed(CapsuleType.DNS_ASSIGN):
            while reader:
                configurations.append(
                    DnsConfiguration(
                        tuple(_read_nameserver(reader) for _ in range(reader.varint())),
                        tuple(_read_domain(reader) for _ in range(reader.varint())),
                        tuple(_read_domain(reader) for _ in range(reader.varint())),
                    )
                )
        return cls(tuple(configurations))

    def encode(self) -> bytes:
        """The whole capsule."""
        return encode_capsule(
            CapsuleType.DNS_ASSIGN,
            b"".join(
                _encode_list(map(_encode_nameserver, configuration.nameservers))
                + _encode_list(map(_encode_domain, configuration.internal_domains))
                + _encode_list(map(_encode_domain, configuration.search_domains))
                for configuration in self.configurations
            ),
        )


def _read_nameserver(reader: ValueReader) -> Nameserver:
    return Nameserver(
        reader.uint16(),
        tuple(IPv4Address(reader.take(4)) for _ in range(reader.varint())),
        tuple(IPv6Address(reader.take(16)) for _ in range(reader.varint())),
        _read_domain(reader),
        _read_service_parameters(ValueReader(reader.take(reader.varint()))),
    )


def _read_domain(reader: ValueReader) -> str:
    return reader.take(reader.varint()).decode("ascii")


def _read_service_parameters(reader: ValueReader) -> tuple[tuple[int, bytes], ...]:
    parameters = []
    while reader:
        parameters.append((reader.uint16(), reader.take(reader.uint16())))
    return tuple(parameters)


def _encode_list(items: Iterable[bytes]) -> bytes:
    encoded = list(items)
    return encode_varint(len(encoded)) + b"".join(encoded)


def _encode_domain(name: str) -> bytes:
    return encode_varint(len(name)) + name.encode("ascii")


def _encode_nameserver(nameserver: Nameserver) -> bytes:
    parameters = b"".join(
        key.to_bytes(2, "big") + len(value).to_bytes(2, "big") + value
        for key, value in nameserver.service_parameters
    )
    return (
        nameserver.priority.to_bytes(2, "big")
        + _encode_list(address.packed for address in nameserver.ipv4)
        + _encode_list(address.packed for address in nameserver.ipv6)
        + _encode_domain(nameserver.authentication_domain)
        + encode_varint(len(parameters))
        + parameters
    )
