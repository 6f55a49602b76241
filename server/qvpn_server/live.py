"""Live sessions and the registry: who may begin one, and how changes reach those that run.

A change of the registry, by this gateway's administrator or at another gateway that shares it, is
followed at once: revoked devices are cut off, renamed ones keep their session, and changed policies
hold for the next packet. It refuses to decide anything itself: the registry does.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress

from qvpn_core.errors import QvpnError
from qvpn_server.config import GatewayConfig
from qvpn_server.destinations import DestinationCache
from qvpn_server.registry import Device, DevicePolicy, Group, Registry
from qvpn_server.registry.policy import device_policy
from qvpn_server.services import Services
from qvpn_server.sessions import Session, SessionTable

log = logging.getLogger(__name__)

#: Seconds between two looks at a registry that other gateways change as well.
WATCH_INTERVAL = 0.5


class LivePolicies:
    """Keeps the sessions of one gateway as its registry wants them."""

    def __init__(
        self,
        config: GatewayConfig,
        registry: Registry,
        sessions: SessionTable,
        services: Services,
    ) -> None:
        self._config = config
        self._registry = registry
        self._sessions = sessions
        self._services = services
        #: Sessions with equal policies share a table.
        self.destinations = DestinationCache(config)
        #: Told a session that may send elsewhere from now on.
        self.on_change: Callable[[Session], None] = lambda session: None

    def no_room(self, device: Device, policy: DevicePolicy) -> str | None:
        """Why `device` cannot have a session now; None when it can.

        A session that it has already is replaced, and so does not count.
        """
        others = [session for session in self._sessions if session.id != device.id]
        if len(others) >= self._config.max_sessions:
            return f"all {self._config.max_sessions} sessions are in use"
        for group, quota in policy.quotas:
            if sum(group in session.groups for session in others) >= quota:
                return f"all {quota} sessions of the group {group} are in use"
        return None

    def follow(self) -> None:
        """Bring all that is live in line with the registry. Raises RegistryUnavailable."""
        live = list(self._sessions)
        users = self._services.devices
        standing = {
            device.id: device
            for device in self._registry.devices([*(session.id for session in live), *users])
            if device.revoked is None
        }
        groups = {group.name: group for group in self._registry.groups()}
        for session in live:
            device = standing.get(session.id)
            if device is None:
                log.info("%s: revoked", session.device)
                session.tunnel.close()
                continue
            if session.device != device.name:
                log.info("%s: renamed to %s", session.device, device.name)
                session.device = device.name
            policy, before = self._policy(device, groups), session.policy
            session.groups = device.groups
            if policy != before:
                log.info("%s: its groups changed", session.device)
                session.policy = policy
                session.destinations = self.destinations.of(policy)
                self.on_change(session)
                session.tell(before)
        for number in users:
            device = standing.get(number)
            now = None if device is None else (device, self._policy(device, groups))
            self._services.update(number, now)

    def _policy(self, device: Device, groups: Mapping[str, Group]) -> DevicePolicy:
        found = [groups[name] for name in device.groups if name in groups]
        return device_policy(found, self._config)

    @asynccontextmanager
    async def following_others(self) -> AsyncIterator[None]:
        """While inside, follow what other gateways and administrators change, if any can."""
        if not self._registry.shared:
            yield
            return
        watch = asyncio.create_task(self._watch())
        try:
            yield
        finally:
            watch.cancel()
            with suppress(asyncio.CancelledError):
                await watch

    async def _watch(self) -> None:
        seen: int | None = None
        failed = False
        while True:
            try:
                # In a thread: a database that hangs must not stop packets twice a second.
                revision = await asyncio.to_thread(self._registry.revision)
                if revision != seen:
                    self.follow()
                seen, failed = revision, False
            except QvpnError as error:
                if not failed:
                    log.error("%s", error)
                failed = True
            await asyncio.sleep(WATCH_INTERVAL)
