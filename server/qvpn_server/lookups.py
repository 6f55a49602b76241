"""What the registry says of those who make requests, remembered while the registry stays as it is.

A device that opens one stream after the other would cost a handful of transactions for each. Here
they cost one, which asks for the registry's revision: every administrative act changes that, at
this gateway, at another one or by a command, so a revocation or a new rule holds for the very next
request. Only what was found is remembered, and used only after a credential was proven: whoever has
none cannot measure it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Final, TypeVar

from qvpn_server.config import GatewayConfig
from qvpn_server.registry import Device, DevicePolicy, Registry

#: Answers of one kind that are remembered; then all are forgotten.
MAX_REMEMBERED: Final = 4096

_K = TypeVar("_K", bound=Hashable)
_V = TypeVar("_V")


class LookUps:
    """A registry's look-ups for requests. Every method raises RegistryUnavailable."""

    def __init__(self, registry: Registry, config: GatewayConfig) -> None:
        self._registry = registry
        self._config = config
        self._revision: int | None = None
        self._by_key: dict[bytes, Device] = {}
        self._by_token: dict[bytes, Device] = {}
        self._policies: dict[int, DevicePolicy] = {}

    def refresh(self) -> None:
        """Before the look-ups of a request: forget everything if anything has changed since."""
        revision = self._registry.revision()
        if revision != self._revision:
            self._revision = revision
            for memory in (self._by_key, self._by_token, self._policies):
                memory.clear()

    def remembered(self, token_hash: bytes) -> Device | None:
        """The device with that token, if it has used it of late."""
        return self._by_token.get(token_hash)

    def device_by_key_id(self, key_id: bytes) -> Device | None:
        """See `Registry.device_by_key_id`. Its leases may be those of before."""
        return _remember(self._by_key, key_id, self._registry.device_by_key_id)

    def device_by_token(self, token_hash: bytes) -> Device | None:
        """See `Registry.device_by_token`. Its leases may be those of before."""
        return _remember(self._by_token, token_hash, self._registry.device_by_token)

    def policy_of(self, device: Device) -> DevicePolicy:
        """What `device` gets at this gateway: see `Registry.policy_of`."""
        found = _remember(
            self._policies, device.id, lambda _id: self._registry.policy_of(device, self._config)
        )
        assert found is not None
        return found


def _remember(memory: dict[_K, _V], key: _K, look_up: Callable[[_K], _V | None]) -> _V | None:
    found = memory.get(key)
    if found is None and (found := look_up(key)) is not None:
        if len(memory) >= MAX_REMEMBERED:
            memory.clear()
        memory[key] = found
    return found
