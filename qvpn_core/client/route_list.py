"""The list of destinations that a person keeps, and the route policy that it means. Pure.

A line is a network, an address, a host name or ``lan``, perhaps with a ``#`` comment; ``!`` before
it makes an exception, which goes the other way. Lines have no order: the most specific one that
covers a destination decides. The planner knows only networks, of which exclusions always win, so
`compile_policy` cuts out of an exclusion what a more specific line sends the other way. It looks up
no names; callers do, with :mod:`qvpn_core.client.lookup`, and pass what they found.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import collapse_addresses, ip_address, ip_network
from typing import Final, Literal

from qvpn_core.client.planner import MAX_ROUTES, RouteMode, RoutePolicy
from qvpn_core.client.profiles import LAN_WORD, Profile
from qvpn_core.errors import UsageError
from qvpn_core.net.plan import Network

#: Lines of a list; a person reads fewer, a script that writes more should advertise routes.
MAX_LINES: Final = 2048
#: Characters of a line. The longest host name has 253 (RFC 1035 section 2.3.4).
MAX_LINE: Final = 400

#: Which line: what is private by its number (RFC 1918 section 3, RFC 4193 section 3.1).
PRIVATE: Final = ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7")

#: A name as programs look it up: letters, digits, hyphens (RFC 1123 section 2.1), and at least one
#: letter in its last label, for what looks like an address is one that was mistyped.
_NAME: Final = re.compile(
    r"(?=.{1,253}\.?\Z)(?:(?!-)[a-z0-9_-]{1,63}(?<!-)\.)*(?!-)(?=[a-z0-9-]*[a-z])[a-z0-9-]{1,63}(?<!-)\.?",
    re.IGNORECASE,
)

#: What is known of names: the addresses that each had, none for one that was not found.
Lookups = Mapping[str, tuple[Network, ...]]


@dataclass(frozen=True, slots=True)
class Entry:
    """A line. Without `text` it is a comment of its own."""

    #: Normal form: a network with its length, an address without, a name in small letters, ``lan``.
    text: str
    #: Goes the other way than the lines without: out of the tunnel under ``only``, else into it.
    exception: bool = False
    comment: str = ""

    @property
    def line(self) -> str:
        """The entry as `parse_line` reads it."""
        mark = f"{'!' if self.exception else ''}{self.text}"
        if not self.comment:
            return mark
        return f"{mark}  # {self.comment}" if mark else f"# {self.comment}"

    @property
    def is_name(self) -> bool:
        """Whether its addresses must be looked up."""
        return bool(self.text) and self.text != LAN_WORD and not _is_network(self.text)

    def networks(self, lookups: Lookups) -> tuple[Network, ...]:
        """What the line covers, as far as it is known."""
        if not self.text or self.text == LAN_WORD:
            return ()
        return lookups.get(self.text, ()) if self.is_name else (ip_network(self.text),)


@dataclass(frozen=True, slots=True)
class RouteList:
    """A mode and its lines. Under ``all`` lines are kept but mean nothing."""

    mode: RouteMode = "all"
    entries: tuple[Entry, ...] = ()


#: What is odd about a line: it says the same as another; it is within another that says it already;
#: the same destination goes both ways; it is an exception from nothing; a name has no address;
#: ``lan`` is no destination, only an exclusion; the gateway does not carry it.
Oddity = Literal[
    "repeated", "within", "both-ways", "no-effect", "not-found", "lan-in-tunnel", "not-carried"
]
#: Those that keep a list from being used.
FATAL: Final[frozenset[Oddity]] = frozenset({"both-ways", "lan-in-tunnel"})


@dataclass(frozen=True, slots=True)
class Finding:
    """Something odd about the entry at `row`; `other` is the text of the line it is about."""

    row: int
    oddity: Oddity
    other: str = ""


def parse_destination(text: str) -> str:
    """The normal form of a network, an address, a host name or ``lan``. Raises UsageError."""
    text = text.strip()
    if not text:
        raise UsageError("there is no destination", "write a network, an address or a name")
    if text.lower() == LAN_WORD:
        return LAN_WORD
    if "%" in text:
        raise UsageError(f"{text[:80]} names a link", "write the address without it")
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    try:
        return str(ip_address(bare)) if "/" not in bare else str(ip_network(bare))
    except ValueError as error:
        if "host bits" in str(error):
            meant = ip_network(bare, strict=False)
            raise UsageError(f"{text} is inside a network", f"did you mean {meant}") from None
    if len(text) <= MAX_LINE and _NAME.fullmatch(text):
        return text.lower().rstrip(".")
    if "/" in text and "://" in text:
        raise UsageError(f"{text[:80]} is a link", "take only the name in it")
    raise UsageError(
        f"{text[:80]!r} is no destination", "write it as 192.0.2.0/24, 2001:db8::1 or www.example"
    )


def parse_line(line: str) -> Entry | None:
    """A line of a file; None for an empty one. Raises UsageError."""
    mark, _, comment = line.partition("#")
    mark, comment = mark.strip(), " ".join(comment.split())[:MAX_LINE]
    if not mark:
        return Entry("", comment=comment) if comment else None
    exception = mark.startswith("!")
    return Entry(parse_destination(mark.removeprefix("!")), exception, comment)


def parse_lines(text: str) -> tuple[tuple[Entry, ...], tuple[tuple[int, UsageError], ...]]:
    """The entries of a file, and what is wrong with which line (counted from 1).

    Raises UsageError when there are too many lines.
    """
    lines = text.splitlines()
    if len(lines) > MAX_LINES:
        raise UsageError(f"the list has {len(lines)} lines, more than {MAX_LINES}", "join networks")
    entries: list[Entry] = []
    wrong: list[tuple[int, UsageError]] = []
    for number, line in enumerate(lines, 1):
        try:
            if (entry := parse_line(line.removeprefix("\ufeff"))) is not None:
                entries.append(entry)
        except UsageError as error:
            wrong.append((number, error))
    return tuple(entries), tuple(wrong)


def format_lines(entries: Iterable[Entry]) -> str:
    """The entries as a file that `parse_lines` reads."""
    return "".join(f"{entry.line}\n" for entry in entries)


def compile_policy(routes: RouteList, lookups: Lookups) -> RoutePolicy:
    """The policy that the planner is given. Raises UsageError when the list cannot be meant."""
    if routes.mode == "all":
        return RoutePolicy("all")
    fatal = next((it for it in findings(routes, lookups) if it.oddity in FATAL), None)
    if fatal is not None:
        raise UsageError(
            f"{routes.entries[fatal.row].text} cannot be meant as it is listed", "remove the line"
        )
    tunnel, direct = _ways(routes, lookups)
    lan = any(entry.text == LAN_WORD for entry in routes.entries)
    if routes.mode == "only" and not tunnel:
        raise UsageError("nothing would use the tunnel", "add a destination, or choose everything")
    inside = _within(direct)
    cut = [network for network in tunnel if inside(network) is not None]
    excluded = tuple(_cut_out(direct, cut))
    if len(excluded) + len(tunnel) > MAX_ROUTES:
        raise UsageError(f"the list would need more than {MAX_ROUTES} routes", "join networks")
    if routes.mode == "only":
        return RoutePolicy("only", tunnel, excluded, lan=lan)
    return RoutePolicy("all-except" if excluded or lan else "all", (), excluded, lan=lan)


def list_of(policy: RoutePolicy) -> RouteList:
    """The list that means a policy, for a policy that nobody kept a list of."""
    only = policy.mode == "only"
    entries = [Entry(_short(network)) for network in policy.destinations]
    if policy.lan:
        entries.append(Entry(LAN_WORD, exception=only))
    entries += [Entry(_short(network), exception=only) for network in policy.excluded]
    return RouteList(policy.mode, tuple(entries))


def stored(profile: Profile) -> tuple[RouteList, Lookups]:
    """A profile's list and what its names were.

    A list that does not mean the profile's policy, which somebody may have edited, is not its list.
    """
    lookups: dict[str, tuple[Network, ...]] = {}
    try:
        for line in profile.lookups:
            name, *networks = line.split()
            lookups[name] = tuple(map(ip_network, networks))
        entries, wrong = parse_lines("\n".join(profile.route_lines))
        # Lines are kept under ``all`` too, for the day on which they are wanted again.
        kept = RouteList(profile.policy.mode, entries)
        if profile.route_lines and not wrong:
            if same(compile_policy(kept, lookups), profile.policy):
                return kept, lookups
    except (ValueError, UsageError):
        pass  # damaged by an editor
    return list_of(profile.policy), {}


def stored_lookups(routes: RouteList, lookups: Lookups) -> tuple[str, ...]:
    """What `stored` reads back: a line for each name of the list."""
    return tuple(
        " ".join((name, *map(str, lookups.get(name, ())))) for name in sorted(names(routes))
    )


def with_lan(routes: RouteList, reach: bool) -> RouteList:
    """The same list with the local network kept out of the tunnel, or with no word about it."""
    # Lines that mean nothing under ``all`` must not begin to mean something.
    rest = () if routes.mode == "all" else tuple(it for it in routes.entries if it.text != LAN_WORD)
    if not reach:
        return RouteList(routes.mode, rest)
    if routes.mode == "only":
        return RouteList("only", (*rest, Entry(LAN_WORD, exception=True)))
    return RouteList("all-except", (Entry(LAN_WORD), *rest))


def same(one: RoutePolicy, other: RoutePolicy) -> bool:
    """Whether two policies mean the same, in whatever order and pieces."""
    return _meaning(one) == _meaning(other)


def names(routes: RouteList) -> set[str]:
    """The host names in a list."""
    return {entry.text for entry in routes.entries if entry.is_name}


def findings(
    routes: RouteList, lookups: Lookups, offer: Sequence[Network] | None = None
) -> tuple[Finding, ...]:
    """What is odd, by row; `offer` is what the gateway carries, None when that is not known."""
    if routes.mode == "all":
        return ()
    return tuple(_findings(routes, lookups, offer))


def decisive(routes: RouteList, lookups: Lookups, network: Network) -> Entry | None:
    """The most specific line that covers all of `network`, None when none does."""
    if routes.mode == "all":
        return None
    covering = [
        (it.prefixlen, entry)
        for entry in routes.entries
        for it in entry.networks(lookups)
        if it.version == network.version and network.subnet_of(it)  # type: ignore[arg-type]
    ]
    return max(covering, key=lambda pair: pair[0], default=(0, None))[1]


def _findings(
    routes: RouteList, lookups: Lookups, offer: Sequence[Network] | None
) -> Iterator[Finding]:
    only = routes.mode == "only"
    first: dict[Network | str, Entry] = {}
    ways: dict[Network, bool] = {}
    owners: dict[Network, str] = {}
    for entry in routes.entries:
        for network in entry.networks(lookups):
            ways.setdefault(network, entry.exception)
            owners.setdefault(network, entry.text)
    wider = _within(ways)
    carried = _within(collapse(offer)) if offer is not None else None
    for row, entry in enumerate(routes.entries):
        networks = entry.networks(lookups)
        if entry.text == LAN_WORD and entry.exception != only:
            yield Finding(row, "lan-in-tunnel")
        keys: tuple[Network | str, ...] = networks if not entry.is_name else ()
        for key in keys or ((entry.text,) if entry.text else ()):
            before = first.setdefault(key, entry)
            if before is not entry:
                both = before.exception is not entry.exception
                yield Finding(row, "both-ways" if both else "repeated", before.text)
                break
        else:
            if entry.is_name and entry.text in lookups and not networks:
                yield Finding(row, "not-found")
            if not networks:
                continue
            around = [wider(it) for it in networks]
            if entry.is_name and any(ways[it] is not entry.exception for it in networks):
                clash = next(it for it in networks if ways[it] is not entry.exception)
                yield Finding(row, "both-ways", owners[clash])
            elif all(it is not None and ways[it] is entry.exception for it in around):
                yield Finding(row, "within", owners[around[0]] if around[0] else "")
            elif entry.exception and all(it is None for it in around):
                yield Finding(row, "no-effect")
            elif entry.exception != only and carried is not None:
                if not all(carried(it) or it in offer for it in networks):  # type: ignore[operator]
                    yield Finding(row, "not-carried")


def _ways(routes: RouteList, lookups: Lookups) -> tuple[tuple[Network, ...], tuple[Network, ...]]:
    """The networks that the lines send into the tunnel, and those that they keep out."""
    only = routes.mode == "only"
    into, out = dict[Network, None](), dict[Network, None]()
    for entry in routes.entries:
        chosen = into if entry.exception != only else out
        chosen.update(dict.fromkeys(entry.networks(lookups)))
    return tuple(into), tuple(out)


def _cut_out(direct: Iterable[Network], cut: Iterable[Network]) -> Iterator[Network]:
    """Each of `direct` without those of `cut` that lie in it."""
    cut = tuple(cut)
    for network in direct:
        parts = [network]
        for hole in cut:
            if hole.version != network.version or not hole.subnet_of(network):  # type: ignore[arg-type]
                continue
            parts = [rest for part in parts for rest in _without(part, hole)]
            if len(parts) > MAX_ROUTES:
                raise UsageError(f"the list would need more than {MAX_ROUTES} routes", "simplify")
        yield from parts


def _without(part: Network, hole: Network) -> Iterable[Network]:
    """Two networks of one version are nested or disjoint."""
    if part.subnet_of(hole):  # type: ignore[arg-type]
        return ()
    return part.address_exclude(hole) if hole.subnet_of(part) else (part,)  # type: ignore[arg-type]


def _within(networks: Iterable[Network]) -> Callable[[Network], Network | None]:
    """What finds the narrowest of `networks` that is wider than a network and covers it."""
    known = set(networks)
    lengths = sorted({it.prefixlen for it in known}, reverse=True)

    def wider(network: Network) -> Network | None:
        for length in lengths:
            if length < network.prefixlen:
                around: Network = network.supernet(new_prefix=length)
                if around in known:
                    return around
        return None

    return wider


def collapse(networks: Iterable[Network]) -> tuple[Network, ...]:
    """The same addresses in the fewest prefixes, IPv4 first."""
    networks = tuple(networks)
    return tuple(
        network
        for version in (4, 6)
        for network in collapse_addresses(it for it in networks if it.version == version)  # type: ignore[type-var]
    )


def _meaning(policy: RoutePolicy) -> tuple[object, ...]:
    return (
        policy.mode == "only",
        collapse(policy.destinations),
        collapse(policy.excluded),
        policy.lan,
    )


def _short(network: Network) -> str:
    """An address without its length, as people write it."""
    if network.prefixlen == network.max_prefixlen:
        return str(network.network_address)
    return str(network)


def _is_network(text: str) -> bool:
    try:
        ip_network(text)
    except ValueError:
        return False
    return True
