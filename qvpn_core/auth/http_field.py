"""Credentials in HTTP fields (RFC 9110 section 11.4): a scheme and its parameters.

Knows the grammar and no scheme; strict and linear, for fields that anyone may send. The other form,
a scheme with one token68, is not read here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

#: A longer field is no credential, in characters.
MAX_FIELD = 1024

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]++"  # noqa: S105  # a token of RFC 9110 section 5.6.2
# Empty list elements are allowed, in front as between (RFC 9110 section 5.6.1.2).
_START = re.compile(rf"({_TOKEN})(?: ++(?:,[ \t]*+)*+|$)")
_PARAMETER = re.compile(
    rf"({_TOKEN})[ \t]*+=[ \t]*+(?:({_TOKEN})|\"((?:[\t !#-\[\]-~]|\\[\t -~])*+)\")"
)
_SEPARATOR = re.compile(r"[ \t]*+(?:,[ \t]*+)++|[ \t]*+$")
_ESCAPED = re.compile(r"\\(.)")


@dataclass(frozen=True, slots=True)
class Credentials:
    """A scheme as sent, and its parameters under their names in lower case."""

    scheme: str
    #: Values that were tokens.
    parameters: dict[str, str]
    #: Values that were quoted strings, without quotes and escapes.
    quoted: dict[str, str]


def parse_credentials(field: str) -> Credentials | None:
    """Read a field's value; None when it is malformed, too long or names a parameter twice."""
    if len(field) > MAX_FIELD:
        return None
    start = _START.match(field)
    if start is None:
        return None
    parameters: dict[str, str] = {}
    quoted: dict[str, str] = {}
    position = start.end()
    while position < len(field):
        parameter = _PARAMETER.match(field, position)
        separator = _SEPARATOR.match(field, parameter.end()) if parameter else None
        if parameter is None or separator is None:
            return None
        name, value, string = parameter.groups()
        name = name.lower()
        if name in parameters or name in quoted:
            return None
        if value is not None:
            parameters[name] = value
        else:
            quoted[name] = _ESCAPED.sub(r"\1", string)
        position = separator.end()
    return Credentials(start[1], parameters, quoted)


def quote(text: str) -> str:
    """`text` as a quoted string (RFC 9110 section 5.6.4). Raises ValueError unless it is ASCII."""
    if not (text.isascii() and text.isprintable()):
        raise ValueError(f"{text!r} is not printable ASCII")
    return '"' + re.sub(r'(["\\])', r"\\\1", text) + '"'
