"""URI templates of IP proxies (RFC 9484 sections 3 and 4.6): expand at clients, match at proxies.

Understands what RFC 9484 allows of RFC 6570: simple expansion `{target}` in the path and as a query
value, and the query forms `{?target,ipproto}` and `{&target,ipproto}`. The other operators are
forbidden there and refused here. Variables other than `target` and `ipproto` stay undefined.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from urllib.parse import quote, unquote_to_bytes

from qvpn_core.errors import UsageError
from qvpn_core.masque.address import IPNetwork
from qvpn_core.masque.domain import check_hostname

#: What a client uses that knows only a host and a port (RFC 9484 section 3).
DEFAULT_TEMPLATE = "/.well-known/masque/ip/{target}/{ipproto}/"

#: The value of either variable that limits nothing.
WILDCARD = "*"

_VARIABLES = ("target", "ipproto")
_ABSOLUTE = re.compile(r"https://((?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::[0-9]{1,5})?)(/.*)")
# Printable ASCII without "#", "{" and "}", and expressions without the operators + # . / ;
_TEMPLATE = re.compile(r"/(?:[!\"$-z|~]|\{[?&]?[A-Za-z0-9_]+(?:,[A-Za-z0-9_]+)*\})*")
_EXPRESSION = re.compile(r"\{([^{}]*)\}")
_QUERY_FORM = re.compile(r"\{[?&]([^{}]*)\}")
_QUERY_ITEM = re.compile(r"([^=&{}]+)(?:=(?:\{(\??)([^{},?&]+)\}|([^{}]*)))?")
# What expansion makes of a value: unreserved characters and escapes (RFC 6570 section 3.2.2), and
# "*", which clients send as it is (RFC 9484 section 4.4).
_VALUE = r"(?:[A-Za-z0-9._~*-]|%[0-9A-Fa-f]{2})+"


@dataclass(frozen=True, slots=True)
class Scope:
    """What a request is limited to: a prefix, a host name or "*"; a protocol or None for any."""

    target: str | IPNetwork = WILDCARD
    ipproto: int | None = None

    @property
    def unlimited(self) -> bool:
        """Whether this is a request for any host and any protocol."""
        return self.target == WILDCARD and self.ipproto is None


@dataclass(frozen=True, slots=True)
class _QueryItem:
    """`name=literal`, or `name=` and a variable, which a request may leave out if `optional`."""

    name: str
    literal: str | None = None
    variable: str | None = None
    optional: bool = False


@dataclass(frozen=True, slots=True)
class _Template:
    path: str
    pattern: re.Pattern[str]
    variables: frozenset[str]
    query: tuple[_QueryItem, ...]


def split_template(uri: str) -> tuple[str, str]:
    """An absolute template as authority (`host` or `host:port`) and path template.

    Raises UsageError when RFC 9484 section 3 does not allow it.
    """
    absolute = _ABSOLUTE.fullmatch(uri)
    if absolute is None:
        raise _invalid(uri, "write https://HOST[:PORT]/PATH")
    authority, path = absolute.groups()
    _compile(path)
    return authority, path


def expand(template: str, target: str | IPNetwork = WILDCARD, ipproto: str | int = WILDCARD) -> str:
    """The `:path` of a request for `target` and `ipproto` by a path template.

    Raises UsageError for a template or a value that RFC 9484 does not allow, and for a limit that
    the template has no variable for.
    """
    compiled = _compile(template)
    values = {"target": str(target), "ipproto": str(ipproto)}
    try:
        _parse_target(values["target"])
        _parse_ipproto(values["ipproto"])
    except ValueError as error:
        raise UsageError(f"not a scope for a tunnel: {error}") from error
    for name in _VARIABLES:
        if values[name] != WILDCARD and name not in compiled.variables:
            raise UsageError(f"the URI template {template} cannot limit a tunnel by {name}")
    # RFC 9484 shows the wildcard bare, where RFC 6570 would escape it.
    values = {name: quote(value, safe=WILDCARD) for name, value in values.items()}

    def simple(expression: re.Match[str]) -> str:
        names = expression[1].split(",")
        return ",".join(values[name] for name in names if name in values)

    path = _EXPRESSION.sub(simple, compiled.path)
    query = []
    for item in compiled.query:
        value = values[item.variable] if item.variable else item.literal
        query.append(item.name if value is None else f"{item.name}={value}")
    return f"{path}?{'&'.join(query)}" if query else path


def match(template: str, path: str) -> Scope | None:
    """The scope that the `:path` of a request asks for by a path template.

    None when `path` is not an expansion of `template` or a value is malformed (RFC 9484 section
    4.6). Raises UsageError for a template that is not allowed.
    """
    compiled = _compile(template)
    path, question_mark, query = path.partition("?")
    in_path = compiled.pattern.fullmatch(path)
    in_query = _match_query(compiled.query, query)
    if in_path is None or in_query is None or (question_mark and not query):
        return None
    values = in_path.groupdict() | in_query
    try:
        return Scope(
            _parse_target(_decode(values.get("target", WILDCARD))),
            _parse_ipproto(_decode(values.get("ipproto", WILDCARD))),
        )
    except ValueError:
        return None


@lru_cache(maxsize=64)
def _compile(template: str) -> _Template:
    if not _TEMPLATE.fullmatch(template):
        raise _invalid(
            template,
            "it needs a path in printable ASCII; RFC 9484 allows {a}, {?a} and {&a} and no others",
        )
    mentioned = [name for e in _EXPRESSION.findall(template) for name in e.lstrip("?&").split(",")]
    if any(mentioned.count(name) > 1 for name in _VARIABLES):
        raise _invalid(template, "name each variable once")

    mark = template.find("?")
    split = len(template) if mark < 0 else mark - (template[mark - 1] == "{")
    path, query = template[:split], template[split:].removeprefix("?")
    if "{&" in path:
        raise _invalid(template, "{&...} continues a query, begin one first")
    return _Template(
        path,
        re.compile(_path_pattern(path)),
        frozenset(mentioned).intersection(_VARIABLES),
        _query_items(template, query),
    )


def _path_pattern(path: str) -> str:
    pattern = []
    # split() puts what is between the braces at the odd places.
    for place, part in enumerate(_EXPRESSION.split(path)):
        if place % 2 == 0:
            pattern.append(re.escape(part))
        else:
            names = [name for name in part.split(",") if name in _VARIABLES]
            pattern.append(",".join(f"(?P<{name}>{_VALUE})" for name in names))
    return "".join(pattern)


def _query_items(template: str, query: str) -> tuple[_QueryItem, ...]:
    """`query` as pairs; `{?a,b}` and `{&a,b}` are first written out as `&a={?a}&b={?b}`."""
    written = _QUERY_FORM.sub(
        lambda form: "".join(f"&{name}={{?{name}}}" for name in form[1].split(",")), query
    )
    items = []
    for text in filter(None, written.split("&")):
        item = _QUERY_ITEM.fullmatch(text)
        if item is None:
            raise _invalid(template, f"{text!r} is not NAME=VALUE with at most one variable")
        name, optional, variable, literal = item.groups()
        if variable in _VARIABLES:
            items.append(_QueryItem(name, variable=variable, optional=bool(optional)))
        elif variable is None:
            items.append(_QueryItem(name, literal))
        elif not optional:
            items.append(_QueryItem(name, ""))
    if len({item.name for item in items}) != len(items):
        raise _invalid(template, "name each part of the query once")
    return tuple(items)


def _match_query(items: tuple[_QueryItem, ...], query: str) -> dict[str, str] | None:
    pairs: dict[str, str | None] = {}
    for text in query.split("&") if query else ():
        name, equals, value = text.partition("=")
        if name in pairs:
            return None
        pairs[name] = value if equals else None
    values = {}
    for item in items:
        if item.name not in pairs:
            if item.optional:
                continue
            return None
        given = pairs.pop(item.name)
        if item.variable is None:
            if given != item.literal:
                return None
        elif given is not None and re.fullmatch(_VALUE, given):
            values[item.variable] = given
        else:
            return None
    return None if pairs else values


def _decode(value: str) -> str:
    return unquote_to_bytes(value).decode("ascii")


def _parse_target(text: str) -> str | IPNetwork:
    """The grammar of RFC 9484 section 4.6, figure 6. Raises ValueError."""
    if text == WILDCARD:
        return text
    address, slash, length = text.partition("/")
    if slash and not re.fullmatch("[0-9]{1,3}", length):
        raise ValueError(f"{text!r} has no prefix length behind its slash")
    if re.fullmatch("[0-9.]+", address):
        return IPv4Network((IPv4Address(address), int(length) if slash else 32))
    # ipaddress takes zone identifiers, RFC 9484 does not.
    if re.fullmatch("[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*", address):
        return IPv6Network((IPv6Address(address), int(length) if slash else 128))
    if slash:
        raise ValueError(f"{text!r} is not an IP prefix")
    return check_hostname(text)


def _parse_ipproto(text: str) -> int | None:
    if text == WILDCARD:
        return None
    if not re.fullmatch("[0-9]{1,3}", text) or int(text) > 255:
        raise ValueError(f"{text!r} is not an IP protocol number")
    return int(text)


def _invalid(template: str, hint: str) -> UsageError:
    return UsageError(f"{template[:200]!r} is not a URI template for CONNECT-IP", hint)
