"""Devices and leases in the database, within a caller's transaction."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_address

from sqlalchemy import ColumnElement, Connection, select

from qvpn_core.errors import UsageError
from qvpn_server.pool import IPAddress, Pool
from qvpn_server.registry import groups as grouping
from qvpn_server.registry.records import Device
from qvpn_server.registry.schema import devices, leases, memberships


def standing(connection: Connection, which: ColumnElement[bool]) -> Device | None:
    """The one device that `which` selects, unless it is revoked."""
    return next(iter(load(connection, which & devices.c.revoked.is_(None))), None)


def named(connection: Connection, name: str) -> Device:
    """The device of that name, revoked or not. Raises UsageError."""
    found = load(connection, devices.c.name == name)
    if not found:
        raise UsageError(f"no device is named {name}", "see: qvpn-server list")
    return found[0]


def load(connection: Connection, which: ColumnElement[bool] | None = None) -> list[Device]:
    """The devices that `which` selects, by name, with their leases and groups."""
    query = select(devices).order_by(devices.c.name)
    selected = select(devices.c.id)
    if which is not None:
        query, selected = query.where(which), selected.where(which)
    rows = connection.execute(query).all()
    if not rows:
        return []
    addresses = addresses_of(connection, leases.c.device.in_(selected))
    belongs = grouping.of_devices(connection, selected)
    return [
        Device(
            row.id,
            row.name,
            row.created,
            row.revoked,
            addresses.get(row.id, ()),
            belongs.get(row.id, ()),
            row.public_key,
        )
        for row in rows
    ]


def addresses_of(
    connection: Connection, which: ColumnElement[bool]
) -> dict[int, tuple[IPAddress, ...]]:
    """The leases that `which` selects, by device, IPv4 first."""
    query = select(leases.c.device, leases.c.address).where(which)
    found: dict[int, tuple[IPAddress, ...]] = {}
    for device, packed in connection.execute(query.order_by(leases.c.family, leases.c.address)):
        found[device] = (*found.get(device, ()), ip_address(packed))
    return found


def free_name(connection: Connection, name: str, *, forget: bool = True) -> None:
    """Make sure that no device has `name`; a revoked one is forgotten. Raises UsageError."""
    row = connection.execute(
        select(devices.c.id, devices.c.revoked).where(devices.c.name == name)
    ).one_or_none()
    if row is None:
        return
    if row.revoked is None:
        raise UsageError(
            f"a device named {name} exists", "choose another name, or revoke that one first"
        )
    if forget:
        connection.execute(devices.delete().where(devices.c.id == row.id))


def insert(connection: Connection, members: Sequence[int], **values: object) -> Device:
    """A new device with these columns, in the groups with the numbers `members`."""
    number: int = connection.execute(
        devices.insert().values(values).returning(devices.c.id)
    ).scalar_one()
    if members:
        rows = [{"device": number, "group": group} for group in members]
        connection.execute(memberships.insert(), rows)
    (device,) = load(connection, devices.c.id == number)
    return device


def new_lease(connection: Connection, device: Device, pool: Pool, *, only: bool) -> IPAddress:
    """Lease the lowest free address of `pool`. Raises PoolExhausted.

    With `only` the device's other leases of that family are given up.
    """
    of_family = leases.c.family == pool.version
    if only:
        mine = leases.c.device == device.id
        connection.execute(leases.delete().where(mine, of_family))
    # Bytes compare as their numbers do.
    taken = connection.execute(
        select(leases.c.address)
        .where(
            of_family,
            leases.c.address >= pool.network.network_address.packed,
            leases.c.address <= pool.network.broadcast_address.packed,
        )
        .order_by(leases.c.address)
    )
    address = pool.next_free(ip_address(packed) for (packed,) in taken)
    taken.close()
    connection.execute(
        leases.insert().values(family=pool.version, address=address.packed, device=device.id)
    )
    return address
