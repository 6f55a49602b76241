"""The tunnel's device, as resolvers know it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Link:
    """A network device by its name and its index (if_nametoindex(3))."""

    interface: str
    index: int
