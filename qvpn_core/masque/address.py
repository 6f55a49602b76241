"""ADDRESS_ASSIGN and ADDRESS_REQUEST (RFC 9484 sections 4.7.1 and 4.7.2): values and their coding.

Values check themselves when they are made, so what exists can be sent. What to assign, and whether
a request ID was used before, is for `qvpn_core.masque.connect_ip`.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Self

from qvpn_core.masque.capsule import CapsuleType, ValueReader, encode_capsule, malformed
from qvpn_core.masque.varint import MAX_VARINT, encode_varint

IPAddress = IPv4Address | IPv6Address
IPNetwork = IPv4Network | IPv6Network

#: "No address was assigned" and "any address", by IP version (RFC 9484 section 4.7.2).
NO_ADDRESS: dict[int, IPNetwork] = {4: IPv4Network("0.0.0.0/32"), 6: IPv6Network("::/128")}


def read_address(reader: ValueReader, version: int) -> IPAddress:
    """The next address of IP `version`. Raises ValueError when it is neither 4 nor 6."""
    if version == 4:
        return IPv4Address(reader.take(4))
    if version == 6:
        return IPv6Address(reader.take(16))
    raise ValueError(f"IP version {version}")


def _read_entry(reader: ValueReader) -> tuple[int, IPNetwork]:
    """Request ID, IP version, address, prefix length: the same in both capsules."""
    request_id = reader.varint()
    address = read_address(reader, reader.uint8())
    prefix_length = reader.uint8()
    if prefix_length > address.max_prefixlen:
        raise ValueError(f"prefix length {prefix_length} for an IPv{address.version} address")
    if int(address) & ((1 << (address.max_prefixlen - prefix_length)) - 1):
        raise ValueError(f"{address}/{prefix_length} has bits set behind its prefix")
    if isinstance(address, IPv4Address):
        return request_id, IPv4Network((address, prefix_length))
    return request_id, IPv6Network((address, prefix_length))


def _encode_entry(request_id: int, prefix: IPNetwork) -> bytes:
    return (
        encode_varint(request_id)
        + bytes((prefix.version,))
        + prefix.network_address.packed
        + bytes((prefix.prefixlen,))
    )


@dataclass(frozen=True, slots=True)
class AssignedAddress:
    """A prefix that the receiver may use as source; request ID 0 when nobody asked for it."""

    request_id: int
    prefix: IPNetwork

    def __post_init__(self) -> None:
        if not 0 <= self.request_id <= MAX_VARINT:
            raise ValueError(f"request ID {self.request_id}")

    @property
    def refused(self) -> bool:
        """Whether this says that the request got no address."""
        return self.prefix == NO_ADDRESS[self.prefix.version]


@dataclass(frozen=True, slots=True)
class RequestedAddress:
    """A wish for a prefix; an all-zero address means any address with that prefix length."""

    request_id: int
    prefix: IPNetwork

    def __post_init__(self) -> None:
        if not 0 < self.request_id <= MAX_VARINT:
            raise ValueError(f"request ID {self.request_id}")

    def refusal(self) -> AssignedAddress:
        """The answer that assigns nothing."""
        return AssignedAddress(self.request_id, NO_ADDRESS[self.prefix.version])


@dataclass(frozen=True, slots=True)
class AddressAssign:
    """The full list of what the sender assigns to the receiver; it replaces earlier ones."""

    addresses: tuple[AssignedAddress, ...] = ()

    @classmethod
    def parse(cls, value: bytes) -> Self:
        """Raises CapsuleError when a field is malformed."""
        reader = ValueReader(value)
        addresses = []
        with malformed(CapsuleType.ADDRESS_ASSIGN):
            while reader:
                addresses.append(AssignedAddress(*_read_entry(reader)))
        return cls(tuple(addresses))

    def encode(self) -> bytes:
        """The whole capsule."""
        return encode_capsule(
            CapsuleType.ADDRESS_ASSIGN,
            b"".join(_encode_entry(entry.request_id, entry.prefix) for entry in self.addresses),
        )


@dataclass(frozen=True, slots=True)
class AddressRequest:
    """One or more wishes, each with a request ID of its own."""

    addresses: tuple[RequestedAddress, ...]

    def __post_init__(self) -> None:
        if not self.addresses:
            raise ValueError("it asks for no address")
        if len({entry.request_id for entry in self.addresses}) != len(self.addresses):
            raise ValueError("a request ID occurs twice")

    @classmethod
    def parse(cls, value: bytes) -> Self:
        """Raises CapsuleError when a field is malformed or nothing is requested."""
        reader = ValueReader(value)
        addresses = []
        with malformed(CapsuleType.ADDRESS_REQUEST):
            while reader:
                addresses.append(RequestedAddress(*_read_entry(reader)))
            return cls(tuple(addresses))

    def encode(self) -> bytes:
        """The whole capsule."""
        return encode_capsule(
            CapsuleType.ADDRESS_REQUEST,
            b"".join(_encode_entry(entry.request_id, entry.prefix) for entry in self.addresses),
        )
