"""Groups, memberships and the audit's lines in the database, within a caller's transaction."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from ipaddress import ip_address, ip_network
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, func, select

from qvpn_core.errors import UsageError
from qvpn_server.config import EVERYONE
from qvpn_server.registry.records import (
    MAX_DNS,
    MAX_GROUPS,
    MAX_PREFIXES,
    MAX_SERVICES,
    Group,
    GroupPolicy,
    check_name,
)
from qvpn_server.registry.schema import audit, devices, groups, memberships
from qvpn_server.service_rules import parse_rule

#: Who acts when no gateway runs that could say.
CLI = "cli"


def load(connection: Connection, which: ColumnElement[bool] | None = None) -> list[Group]:
    """The groups that `which` selects, by name."""
    query = select(groups).order_by(groups.c.name)
    rows = connection.execute(query if which is None else query.where(which)).all()
    counted: dict[int, int] = dict(
        connection.execute(
            select(memberships.c.group, func.count())
            .join_from(memberships, devices)
            .where(devices.c.revoked.is_(None))
            .group_by(memberships.c.group)
        )
        .tuples()
        .all()
        if which is None
        else ()
    )
    return [
        Group(
            row.id,
            row.name,
            GroupPolicy(
                routes=_parsed(ip_network, row.routes),
                destinations=_parsed(ip_network, row.destinations),
                dns=_parsed(ip_address, row.dns),
                services=_parsed(parse_rule, row.services),
                max_sessions=row.max_sessions,
            ),
            counted.get(row.id, 0),
        )
        for row in rows
    ]


def of_devices(connection: Connection, chosen: Select[tuple[int]]) -> dict[int, tuple[str, ...]]:
    """The names of the groups of the devices whose numbers `chosen` selects."""
    query = (
        select(memberships.c.device, groups.c.name)
        .join_from(memberships, groups)
        .where(memberships.c.device.in_(chosen))
        .order_by(groups.c.name)
    )
    found: dict[int, tuple[str, ...]] = {}
    for number, name in connection.execute(query):
        found[number] = (*found.get(number, ()), name)
    return found


def ids(connection: Connection, names: Sequence[str]) -> list[int]:
    """The groups' numbers. Raises UsageError for an unknown one and for too many."""
    check_count(len(names))
    known: dict[str, int] = dict(
        connection.execute(select(groups.c.name, groups.c.id).where(groups.c.name.in_(names)))
        .tuples()
        .all()
    )
    for name in names:
        if name not in known:
            raise UsageError(f"no group is named {name}", "see: qvpn-server group list")
    return sorted(set(known.values()))


def check_count(count: int) -> None:
    """Refuse more groups than a device may belong to. Raises UsageError."""
    if count > MAX_GROUPS:
        raise UsageError(f"{count} groups are too many", f"a device can be in {MAX_GROUPS}")


def add(connection: Connection, name: str, policy: GroupPolicy) -> None:
    """Create a group. Raises UsageError."""
    check_name(name, "group")
    _check(policy)
    if connection.execute(select(groups.c.id).where(groups.c.name == name)).scalar() is not None:
        raise UsageError(f"a group named {name} exists", f"see: qvpn-server group set {name}")
    connection.execute(groups.insert().values(name=name, **_columns(policy)))


def change(
    connection: Connection, name: str, changed: Callable[[GroupPolicy], GroupPolicy]
) -> GroupPolicy:
    """Change a group's policy. Returns the new one; raises UsageError."""
    (number,) = ids(connection, [name])
    (group,) = load(connection, groups.c.id == number)
    policy = changed(group.policy)
    _check(policy)
    connection.execute(groups.update().where(groups.c.id == number).values(_columns(policy)))
    return policy


def remove(connection: Connection, name: str) -> None:
    """Remove a group and its memberships. Raises UsageError, also for the default one."""
    if name == EVERYONE:
        raise UsageError(
            f"{EVERYONE} is what new devices join", "change it, or let devices leave it"
        )
    (number,) = ids(connection, [name])
    connection.execute(groups.delete().where(groups.c.id == number))


def record(
    connection: Connection, now: int, actor: str, action: str, subject: str, detail: str = ""
) -> None:
    """One line of the audit."""
    values = {"at": now, "actor": actor, "action": action, "subject": subject, "detail": detail}
    connection.execute(audit.insert().values(values))


def words(policy: GroupPolicy) -> str:
    """A policy for the audit."""
    parts = []
    for key, value in _columns(policy).items():
        shown = " ".join(value) or "none" if isinstance(value, list) else value
        parts.append(f"{key} {'default' if shown is None else shown}")
    return ", ".join(parts)


def _columns(policy: GroupPolicy) -> dict[str, Any]:
    def texts(values: Iterable[object] | None) -> list[str] | None:
        return None if values is None else [str(value) for value in values]

    return {
        "routes": texts(policy.routes),
        "destinations": texts(policy.destinations),
        "dns": texts(policy.dns),
        "services": texts(policy.services),
        "max_sessions": policy.max_sessions,
    }


def _parsed(parse: Any, texts: list[str] | None) -> Any:
    return None if texts is None else tuple(map(parse, texts))


def _check(policy: GroupPolicy) -> None:
    bounds = ((policy.routes, MAX_PREFIXES), (policy.destinations, MAX_PREFIXES))
    lists = (*bounds, (policy.dns, MAX_DNS), (policy.services, MAX_SERVICES))
    for values, bound in lists:
        if values is not None and len(values) > bound:
            raise UsageError(f"{len(values)} entries are too many", f"give at most {bound}")
    if policy.max_sessions is not None and not 1 <= policy.max_sessions <= 1 << 20:
        raise UsageError(f"{policy.max_sessions} sessions make no quota", "give 1 or more")
