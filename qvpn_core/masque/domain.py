"""Domain names as they may appear in capsules and URIs: ASCII, of bounded length, safe to pass on.

Names that reach us from a peer end up in resolver configuration, so anything that is not letters,
digits, hyphens and underscores between dots is refused. Internationalised names are A-labels here.
"""

from __future__ import annotations

import re

_LABEL = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)")

#: The longest name in presentation format without its last dot (RFC 1035 section 2.3.4).
_MAX_LENGTH = 253


def check_domain(name: str) -> str:
    """`name` itself; the root is the empty string or a single dot.

    Raises ValueError when it is not a domain name in presentation format.
    """
    bare = name.removesuffix(".")
    if not bare:
        return name
    if len(bare) > _MAX_LENGTH or not all(map(_LABEL.fullmatch, bare.split("."))):
        raise ValueError(f"{name[:64]!r} is not a domain name")
    return name


def check_hostname(name: str) -> str:
    """`name` itself. Raises ValueError for the root and for what a resolver may take as an address.

    A last label of digits only makes resolvers try the old forms of IPv4 addresses (RFC 3986
    section 7.4), so that "127.1" would reach this machine.
    """
    bare = check_domain(name).removesuffix(".")
    last = bare.rpartition(".")[2]
    if not bare or re.fullmatch(r"[0-9]+|0[xX][0-9A-Fa-f]*", last):
        raise ValueError(f"{name!r} is not a host name")
    return name
