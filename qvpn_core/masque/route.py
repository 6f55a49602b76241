"""ROUTE_ADVERTISEMENT (RFC 9484 section 4.7.3): ranges, their order, and ranges as prefixes.

A `RouteAdvertisement` that exists obeys the RFC's order and overlaps nowhere, whether it was made
here or received. Installing routes is not done here.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, summarize_address_range
from itertools import islice, pairwise
from typing import Self

from qvpn_core.masque.address import IPAddress, IPNetwork, read_address
from qvpn_core.masque.capsule import (
    CapsuleError,
    CapsuleType,
    ValueReader,
    encode_capsule,
    malformed,
)

#: The most prefixes that `ranges_to_prefixes` makes: one IPv6 range can need 254, so a hostile
#: advertisement of legal size could otherwise fill a routing table with half a million.
MAX_PREFIXES = 16_384


@dataclass(frozen=True, slots=True)
class IPAddressRange:
    """Addresses from `start` to `end`, both included; `protocol` 0 allows every protocol."""

    start: IPAddress
    end: IPAddress
    protocol: int = 0

    def __post_init__(self) -> None:
        if self.start.version != self.end.version:
            raise ValueError(f"{self.start} and {self.end} are of different IP versions")
        if int(self.start) > int(self.end):
            raise ValueError(f"{self.start} is above {self.end}")
        if not 0 <= self.protocol <= 255:
            raise ValueError(f"IP protocol {self.protocol}")

    @property
    def version(self) -> int:
        """The IP version: 4 or 6."""
        return self.start.version


@dataclass(frozen=True, slots=True)
class RouteAdvertisement:
    """The full list of what the sender routes; it replaces earlier ones."""

    ranges: tuple[IPAddressRange, ...] = ()

    def __post_init__(self) -> None:
        for a, b in pairwise(self.ranges):
            if (a.version, a.protocol, int(a.end)) >= (b.version, b.protocol, int(b.start)):
                raise ValueError(f"{a.start}-{a.end} must not precede {b.start}-{b.end}")
        for version in (4, 6):
            _check_overlap([r for r in self.ranges if r.version == version])

    @classmethod
    def parse(cls, value: bytes) -> Self:
        """Raises CapsuleError when a field is malformed, or ranges are out of order or overlap."""
        reader = ValueReader(value)
        ranges = []
        with malformed(CapsuleType.ROUTE_ADVERTISEMENT):
            while reader:
                version = reader.uint8()
                start, end = read_address(reader, version), read_address(reader, version)
                ranges.append(IPAddressRange(start, end, reader.uint8()))
            return cls(tuple(ranges))

    def encode(self) -> bytes:
        """The whole capsule."""
        return encode_capsule(
            CapsuleType.ROUTE_ADVERTISEMENT,
            b"".join(
                bytes((r.version,)) + r.start.packed + r.end.packed + bytes((r.protocol,))
                for r in self.ranges
            ),
        )


def _check_overlap(ranges: list[IPAddressRange]) -> None:
    """A range for all protocols must not overlap one for a single protocol.

    `ranges` are of one version and in order, so those for all protocols come first and are sorted.
    """
    everything = [r for r in ranges if r.protocol == 0]
    starts = [int(r.start) for r in everything]
    for specific in ranges[len(everything) :]:
        below = bisect_right(starts, int(specific.end)) - 1
        if below >= 0 and int(everything[below].end) >= int(specific.start):
            raise ValueError(
                f"{specific.start}-{specific.end} for protocol {specific.protocol} overlaps a"
                " range for all protocols"
            )


def _merge(spans: Iterable[tuple[int, int, int]]) -> Iterator[tuple[IPAddress, IPAddress]]:
    """(IP version, first, last) in any order as the fewest spans, sorted."""
    merged: list[tuple[int, int, int]] = []
    for version, start, end in sorted(spans):
        if merged and merged[-1][0] == version and start <= merged[-1][2] + 1:
            merged[-1] = (version, merged[-1][1], max(end, merged[-1][2]))
        else:
            merged.append((version, start, end))
    for version, start, end in merged:
        address = IPv4Address if version == 4 else IPv6Address
        yield address(start), address(end)


def prefixes_to_ranges(
    prefixes: Iterable[IPNetwork], protocol: int = 0
) -> tuple[IPAddressRange, ...]:
    """`prefixes` in any order as the fewest ranges, in the order of a ROUTE_ADVERTISEMENT."""
    spans = ((p.version, int(p.network_address), int(p.broadcast_address)) for p in prefixes)
    return tuple(IPAddressRange(start, end, protocol) for start, end in _merge(spans))


def ranges_to_prefixes(ranges: Iterable[IPAddressRange]) -> tuple[IPNetwork, ...]:
    """The fewest prefixes that cover exactly `ranges`, IPv4 first, sorted.

    Protocols are not told apart: a routing table chooses by destination only.
    Raises CapsuleError above `MAX_PREFIXES`.
    """
    spans = ((r.version, int(r.start), int(r.end)) for r in ranges)
    prefixes = (p for start, end in _merge(spans) for p in summarize_address_range(start, end))
    bounded = tuple(islice(prefixes, MAX_PREFIXES + 1))
    if len(bounded) > MAX_PREFIXES:
        raise CapsuleError(f"the advertised routes need more than {MAX_PREFIXES} prefixes")
    return bounded
