"""A small authoritative DNS responder, without I/O: one query in, one response out (RFC 1035).

It knows the names of the plan, ``whoami.test`` (the asker's address, also as TXT) and ``big.test``
(a TXT answer that needs TCP without EDNS). Any other name does not exist. No recursion, no EDNS, no
name compression beyond pointing at the question.
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

A: Final = 1
TXT: Final = 16
AAAA: Final = 28
#: The largest response over UDP in bytes (RFC 1035 section 4.2.1).
UDP_LIMIT: Final = 512
BIG_TEXT: Final = b"x" * 200

_TTL: Final = 5
_FLAGS: Final = 0x8400  # a response, authoritative
_TRUNCATED: Final = 0x0200
_NXDOMAIN: Final = 3
_FORMERR: Final = 1


@dataclass(frozen=True, slots=True)
class Question:
    """What was asked: the name in lower case without its last dot, and the type's number."""

    name: str
    kind: int


def parse(query: bytes) -> Question | None:
    """The one question of a query, or None when this is not a query with one question."""
    if len(query) < 12 or query[2] & 0x80 or query[4:6] != b"\0\1":
        return None
    labels, at = [], 12
    while at < len(query) and query[at]:
        length = query[at]
        if length > 63 or at + 1 + length > len(query):
            return None
        labels.append(query[at + 1 : at + 1 + length].decode("latin-1").lower())
        at += 1 + length
    if at + 5 > len(query):
        return None
    return Question(".".join(labels), int.from_bytes(query[at + 1 : at + 3], "big"))


def answer(
    query: bytes, asker: str, names: Mapping[str, tuple[str, str]], *, limit: int | None = UDP_LIMIT
) -> bytes | None:
    """The response to `query` from the address `asker`; None when it deserves none.

    `names` maps a name to its IPv4 and IPv6 address. A response over `limit` bytes is truncated;
    None is no limit.
    """
    if len(query) < 12 or query[2] & 0x80:
        return None
    question = parse(query)
    if question is None:
        return query[:2] + struct.pack("!HHHHH", _FLAGS | _FORMERR, 0, 0, 0, 0)
    end = 12 + len(question.name) + 2 + 4 if question.name else 17
    records = _records(question, asker, names)
    code = _NXDOMAIN if records is None else 0
    recursion_desired = (query[2] & 1) << 8
    body = b"".join(
        struct.pack("!HHHIH", 0xC00C, question.kind, 1, _TTL, len(data)) + data
        for data in records or ()
    )
    flags = _FLAGS | recursion_desired | code
    if limit is not None and end + len(body) > limit:
        flags, body, records = flags | _TRUNCATED, b"", ()
    counts = struct.pack("!HHHHH", flags, 1, len(records or ()), 0, 0)
    return query[:2] + counts + query[12:end] + body


def _records(
    question: Question, asker: str, names: Mapping[str, tuple[str, str]]
) -> tuple[bytes, ...] | None:
    """The data of each answer; empty for a name without that type; None for no such name."""
    if question.name == "big.test":
        text = bytes([len(BIG_TEXT)]) + BIG_TEXT
        return (text,) * 10 if question.kind == TXT else ()
    if question.name == "whoami.test":
        if question.kind == TXT:
            return (bytes([len(asker)]) + asker.encode(),)
        addresses: tuple[str, ...] = (asker,)
    elif question.name in names:
        addresses = names[question.name]
    else:
        return None
    version = {A: 4, AAAA: 6}.get(question.kind)
    parsed = [ipaddress.ip_address(address) for address in addresses]
    return tuple(address.packed for address in parsed if address.version == version)
