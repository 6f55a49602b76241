"""Invites in the database, within a caller's transaction."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_network

from sqlalchemy import ColumnElement, Connection, select

from qvpn_core.auth.device_key import key_id
from qvpn_core.errors import UsageError
from qvpn_server.pool import IPNetwork
from qvpn_server.registry import groups as grouping
from qvpn_server.registry.records import MAX_PREFIXES, Invite
from qvpn_server.registry.schema import groups, invite_groups, invites


def load(connection: Connection, which: ColumnElement[bool] | None = None) -> list[Invite]:
    """The invites that `which` selects, the newest first."""
    query = select(invites).order_by(invites.c.id.desc())
    rows = connection.execute(query if which is None else query.where(which)).all()
    names: dict[int, list[str]] = {}
    joined = select(invite_groups.c.invite, groups.c.name).join_from(invite_groups, groups)
    if len(rows) == 1:
        joined = joined.where(invite_groups.c.invite == rows[0].id)
    for number, name in connection.execute(joined.order_by(groups.c.name)) if rows else ():
        names.setdefault(number, []).append(name)
    return [
        Invite(
            row.id,
            row.name,
            row.public_key,
            row.created,
            row.expires,
            row.used,
            row.revoked,
            tuple(names.get(row.id, ())),
            tuple(map(ip_network, row.routes)),
        )
        for row in rows
    ]


def open_one(connection: Connection, name: str, now: int) -> Invite | None:
    """The open invite for a device called `name`."""
    found = load(connection, invites.c.name == name)
    return next((invite for invite in found if invite.state(now) == "open"), None)


def insert(
    connection: Connection,
    name: str,
    public_key: bytes,
    expires: int,
    now: int,
    members: Sequence[str],
    routes: Sequence[IPNetwork],
) -> Invite:
    """A new invite. Raises UsageError when there is an open one for `name`, or a bad group."""
    if len(routes) > MAX_PREFIXES:
        raise UsageError(f"{len(routes)} routes are too many", f"give at most {MAX_PREFIXES}")
    if open_one(connection, name, now) is not None:
        raise UsageError(
            f"there is an open invite for {name}", f"withdraw it with: qvpn-server uninvite {name}"
        )
    numbers = grouping.ids(connection, members)
    number: int = connection.execute(
        invites.insert()
        .values(
            name=name,
            key_id=key_id(public_key),
            public_key=public_key,
            created=now,
            expires=expires,
            routes=[str(route) for route in routes],
        )
        .returning(invites.c.id)
    ).scalar_one()
    if numbers:
        rows = [{"invite": number, "group": group} for group in numbers]
        connection.execute(invite_groups.insert(), rows)
    (invite,) = load(connection, invites.c.id == number)
    return invite
