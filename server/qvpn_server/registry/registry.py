"""The registry's operations: devices, their keys and leases, invites, groups, the audit.

Every method is one transaction, short enough for the event loop; commands and gateways may use the
same database at once. Every change by an administrator leaves a line in the audit, in the same
transaction. Times are UNIX seconds and passed in. It refuses to hold what could be stolen: of
tokens it has hashes, of keys the public halves.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from sqlalchemy import func, select, union_all

from qvpn_core.auth.device_key import key_id
from qvpn_core.errors import ProtocolViolation, UsageError
from qvpn_server.config import EVERYONE, GatewayConfig
from qvpn_server.pool import IPAddress, IPNetwork, Pool
from qvpn_server.registry import devices as enrolled
from qvpn_server.registry import groups as grouping
from qvpn_server.registry import invites as inviting
from qvpn_server.registry.database import Database
from qvpn_server.registry.groups import CLI, record
from qvpn_server.registry.policy import device_policy
from qvpn_server.registry.records import (
    AuditEntry,
    Device,
    DevicePolicy,
    Group,
    GroupPolicy,
    Invite,
    InviteExpired,
    InviteRevoked,
    InviteUnknown,
    InviteUsed,
    NameTaken,
    check_name,
)
from qvpn_server.registry.schema import audit, devices, groups, invites, leases, memberships


class Registry:
    """Open with :meth:`open`; a context manager. Every method raises RegistryUnavailable.

    `actor` is who does it, for the audit.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    @classmethod
    def open(cls, where: Path | str) -> Self:
        """Open the SQLite file or PostgreSQL URL, creating or migrating what is there.

        Raises UsageError for a URL that is none of ours.
        """
        return cls(Database.open(where))

    def close(self) -> None:
        """Close the database. Idempotent."""
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    @property
    def shared(self) -> bool:
        """Whether other gateways may use it at the same time."""
        return self._database.shared

    # Who is it?

    def public_key(self, key_id: bytes) -> bytes | None:
        """The key enrolled under this key ID (RFC 9729): a device's or an invite's.

        One look-up in constant effort, for :class:`qvpn_core.auth.concealed.Verifier`. A revoked
        device has none. An invite keeps its key, whatever its state, to be refused with a reason.
        """
        of_device = select(devices.c.public_key).where(
            devices.c.key_id == key_id, devices.c.revoked.is_(None)
        )
        of_invite = select(invites.c.public_key).where(invites.c.key_id == key_id)
        with self._database.transaction() as connection:
            return connection.execute(union_all(of_device, of_invite)).scalar()

    def device_by_key_id(self, key_id: bytes) -> Device | None:
        """The device whose key has this ID, unless it is unknown or revoked."""
        with self._database.transaction() as connection:
            return enrolled.standing(connection, devices.c.key_id == key_id)

    def device_by_token(self, token_hash: bytes) -> Device | None:
        """The device that holds the token with this hash, unless it is unknown or revoked."""
        with self._database.transaction() as connection:
            kept = connection.execute(
                select(devices.c.token_hash).where(devices.c.token_hash == token_hash)
            ).scalar()
            # The index compared a hash of what the caller sent, which tells him nothing he can
            # steer; the comparison that decides is constant-time all the same.
            if kept is None or not hmac.compare_digest(kept, token_hash):
                return None
            return enrolled.standing(connection, devices.c.token_hash == token_hash)

    def policy_of(self, device: Device, config: GatewayConfig) -> DevicePolicy:
        """What `device` gets at the gateway that has `config`: the union of its groups."""
        with self._database.transaction() as connection:
            found = grouping.load(connection, groups.c.name.in_(device.groups))
        return device_policy(found, config)

    # Devices

    def add_device(
        self,
        name: str,
        token_hash: bytes,
        now: int,
        *,
        groups: Sequence[str] = (EVERYONE,),
        actor: str = CLI,
    ) -> Device:
        """Create a device that has a bearer token.

        The name of a revoked one may be used again, which forgets the old one. Raises UsageError
        for a bad name, one in use, or an unknown group.
        """
        check_name(name)
        with self._database.transaction(write=True) as connection:
            enrolled.free_name(connection, name)
            members = grouping.ids(connection, groups)
            added = enrolled.insert(
                connection, members, name=name, created=now, token_hash=token_hash
            )
            record(connection, now, actor, "token", name, _in_groups(groups))
            return added

    def devices(self, ids: Iterable[int] | None = None) -> list[Device]:
        """All devices, or those with `ids`, by name; the revoked ones too."""
        with self._database.transaction() as connection:
            return enrolled.load(connection, None if ids is None else devices.c.id.in_(list(ids)))

    def revoke(self, name: str, now: int, *, actor: str = CLI) -> Device:
        """Bar a device for good and free its leases. Raises UsageError for an unknown name.

        Revoking a revoked device changes nothing.
        """
        with self._database.transaction(write=True) as connection:
            device = enrolled.named(connection, name)
            if device.revoked is None:
                mine = devices.c.id == device.id
                connection.execute(devices.update().where(mine).values(revoked=now))
                connection.execute(leases.delete().where(leases.c.device == device.id))
                record(connection, now, actor, "revoke", name)
                device = replace(device, revoked=now, addresses=())
            return device

    def rename(self, old: str, new: str, now: int, *, actor: str = CLI) -> Device:
        """Give a device another name. Raises UsageError for an unknown or unusable one."""
        check_name(new)
        with self._database.transaction(write=True) as connection:
            device = enrolled.named(connection, old)
            if new != old:
                enrolled.free_name(connection, new)
                mine = devices.c.id == device.id
                connection.execute(devices.update().where(mine).values(name=new))
                record(connection, now, actor, "rename", old, f"to {new}")
            return replace(device, name=new)

    def lease(self, device: Device, pools: Iterable[Pool]) -> tuple[IPAddress, ...]:
        """The addresses of `device`, one per pool, the same ones every time.

        In a shared registry a device has leases at other gateways as well. Otherwise a lease that
        no pool offers (after a change of pools) is replaced. Raises PoolExhausted, and leases
        nothing then.
        """
        with self._database.transaction(write=True) as connection:
            held = enrolled.addresses_of(connection, leases.c.device == device.id).get(
                device.id, ()
            )
            result = []
            for pool in pools:
                address = next((lease for lease in held if pool.offers(lease)), None)
                if address is None:
                    address = enrolled.new_lease(connection, device, pool, only=not self.shared)
                result.append(address)
            return tuple(result)

    # Invites

    def create_invite(
        self,
        name: str,
        public_key: bytes,
        expires: int,
        now: int,
        *,
        groups: Sequence[str] = (EVERYONE,),
        routes: Sequence[IPNetwork] = (),
        actor: str = CLI,
    ) -> Invite:
        """Keep an invite for a device that will be called `name`, until `expires`.

        `public_key` is that of :attr:`qvpn_core.auth.invite.Invite.key`. Raises UsageError for a
        bad or taken name, for one that has an open invite already, and for an unknown group.
        """
        check_name(name)
        with self._database.transaction(write=True) as connection:
            enrolled.free_name(connection, name, forget=False)
            created = inviting.insert(connection, name, public_key, expires, now, groups, routes)
            until = datetime.fromtimestamp(expires, UTC)
            detail = f"until {until:%Y-%m-%dT%H:%M:%SZ}, {_in_groups(groups)}"
            record(connection, now, actor, "invite", name, detail)
            return created

    def invites(self) -> list[Invite]:
        """All invites, the newest first, whatever has become of them."""
        with self._database.transaction() as connection:
            return inviting.load(connection)

    def invite_by_key_id(self, key_id: bytes) -> Invite | None:
        """The invite whose key has this ID, in whatever state."""
        with self._database.transaction() as connection:
            return next(iter(inviting.load(connection, invites.c.key_id == key_id)), None)

    def revoke_invite(self, name: str, now: int, *, actor: str = CLI) -> None:
        """Withdraw the open invite for `name`. Raises UsageError if there is none."""
        with self._database.transaction(write=True) as connection:
            invite = inviting.open_one(connection, name, now)
            if invite is None:
                raise UsageError(f"there is no open invite for {name}", "see: qvpn-server invites")
            mine = invites.c.id == invite.id
            connection.execute(invites.update().where(mine).values(revoked=now))
            record(connection, now, actor, "uninvite", name)

    def redeem_invite(self, invite_key_id: bytes, public_key: bytes, now: int) -> Device:
        """Enrol the device with `public_key` (Ed25519, possession proven) by an invite's key ID.

        Of two devices racing for one invite one wins. The winner may ask again, as after an answer
        that was lost, and gets the same. Raises InviteUsed, InviteExpired, InviteRevoked or
        NameTaken, which say why; InviteUnknown; ProtocolViolation for a key that is enrolled
        already.
        """
        device_key_id = key_id(public_key)
        with self._database.transaction(write=True) as connection:
            row = connection.execute(
                select(invites.c.device).where(invites.c.key_id == invite_key_id)
            ).one_or_none()
            if row is None:
                raise InviteUnknown("no invite has that key", "ask for a new one")
            holder = next(iter(enrolled.load(connection, devices.c.key_id == device_key_id)), None)
            if holder is not None and holder.id == row.device and holder.revoked is None:
                return holder
            (invite,) = inviting.load(connection, invites.c.key_id == invite_key_id)
            _check_open(invite, now)
            if holder is not None:
                raise ProtocolViolation("the device's key is enrolled already", "make a new key")
            try:
                enrolled.free_name(connection, invite.name)
            except UsageError as error:
                raise NameTaken(error.what, "ask for an invite with another name") from None
            device = enrolled.insert(
                connection,
                grouping.ids(connection, invite.groups),
                name=invite.name,
                created=now,
                key_id=device_key_id,
                public_key=public_key,
            )
            mine = invites.c.id == invite.id
            connection.execute(invites.update().where(mine).values(used=now, device=device.id))
            record(connection, now, f"invite {invite.name}", "enrol", invite.name)
            return device

    # Groups

    def groups(self) -> list[Group]:
        """All groups by name."""
        with self._database.transaction() as connection:
            return grouping.load(connection)

    def add_group(self, name: str, policy: GroupPolicy, now: int, *, actor: str = CLI) -> None:
        """Create a group. Raises UsageError for a bad name or one in use."""
        with self._database.transaction(write=True) as connection:
            grouping.add(connection, name, policy)
            record(connection, now, actor, "group add", name, grouping.words(policy))

    def set_group(
        self,
        name: str,
        changed: Callable[[GroupPolicy], GroupPolicy],
        now: int,
        *,
        actor: str = CLI,
    ) -> None:
        """Give a group the policy that `changed` makes of its present one. Raises UsageError."""
        with self._database.transaction(write=True) as connection:
            policy = grouping.change(connection, name, changed)
            record(connection, now, actor, "group set", name, grouping.words(policy))

    def remove_group(self, name: str, now: int, *, actor: str = CLI) -> None:
        """Remove a group; its devices keep their others. Raises UsageError."""
        with self._database.transaction(write=True) as connection:
            grouping.remove(connection, name)
            record(connection, now, actor, "group remove", name)

    def join(self, group: str, device: str, now: int, *, actor: str = CLI) -> None:
        """Put a device into a group; no harm if it is. Raises UsageError for unknown names."""
        with self._database.transaction(write=True) as connection:
            found = enrolled.named(connection, device)
            (number,) = grouping.ids(connection, [group])
            if group not in found.groups:
                grouping.check_count(len(found.groups) + 1)
                row = {"device": found.id, "group": number}
                connection.execute(memberships.insert().values(row))
                record(connection, now, actor, "group join", device, group)

    def leave(self, group: str, device: str, now: int, *, actor: str = CLI) -> None:
        """Take a device out of a group; no harm if it is not in. Raises UsageError."""
        with self._database.transaction(write=True) as connection:
            found = enrolled.named(connection, device)
            (number,) = grouping.ids(connection, [group])
            if group in found.groups:
                mine = (memberships.c.device == found.id, memberships.c.group == number)
                connection.execute(memberships.delete().where(*mine))
                record(connection, now, actor, "group leave", device, group)

    # The audit

    def audit(self) -> list[AuditEntry]:
        """Every administrative act, the oldest first."""
        with self._database.transaction() as connection:
            return [AuditEntry(*row) for row in connection.execute(select(audit).order_by("id"))]

    def revision(self) -> int:
        """A number that grows with every administrative act, also at other gateways."""
        with self._database.transaction() as connection:
            return connection.execute(select(func.max(audit.c.id))).scalar() or 0


def _check_open(invite: Invite, now: int) -> None:
    match invite.state(now):
        case "used":
            raise InviteUsed("the invite was used before", "ask for a new one")
        case "revoked":
            raise InviteRevoked("the invite was revoked", "ask for a new one")
        case "expired":
            raise InviteExpired("the invite has expired", "ask for a new one")


def _in_groups(names: Sequence[str]) -> str:
    return f"groups {' '.join(names)}" if names else "no group"
