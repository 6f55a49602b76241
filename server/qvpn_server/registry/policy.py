"""What a device gets from its groups: pure functions from group policies and a configuration.

A device has the union of what its groups have; a group leaves open what it does not say, and the
gateway's configuration fills that in. It refuses to know devices.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from ipaddress import IPv4Network, IPv6Network, collapse_addresses, ip_network

from qvpn_core.errors import UsageError
from qvpn_server.config import DEFAULT_ROUTES, GatewayConfig, check_agreement
from qvpn_server.pool import IPAddress, IPNetwork, overlap
from qvpn_server.registry.records import DevicePolicy, Group, GroupPolicy
from qvpn_server.service_rules import ServiceRule

_ALL = tuple(map(ip_network, DEFAULT_ROUTES))


def device_policy(groups: Iterable[Group], config: GatewayConfig) -> DevicePolicy:
    """The union of `groups`, in the address families that the gateway has.

    A device without a group reaches nothing but the gateway itself.
    """
    filled = [(group.name, _filled(group.policy, config)) for group in groups]
    versions = {pool.version for pool in config.pools}

    def union(lists: Iterable[Sequence[IPNetwork]]) -> tuple[IPNetwork, ...]:
        return _collapsed(
            prefix for prefixes in lists for prefix in prefixes if prefix.version in versions
        )

    servers: dict[IPAddress, None] = {}  # in order, each once
    for _, policy in filled:
        servers |= dict.fromkeys(
            server for server in policy.dns or () if server.version in versions
        )
    return DevicePolicy(
        routes=union(policy.routes or () for _, policy in filled),
        destinations=union(policy.destinations or () for _, policy in filled),
        dns=tuple(servers),
        services=tuple(
            dict.fromkeys(rule for _, policy in filled for rule in policy.services or ())
        ),
        quotas=tuple(
            (name, policy.max_sessions)
            for name, policy in filled
            if policy.max_sessions is not None
        ),
    )


def check_group(policy: GroupPolicy, config: GatewayConfig) -> None:
    """Refuse what cannot work at this gateway, as `init` does. Raises UsageError."""
    filled = _filled(policy, config)
    for prefixes in (filled.routes or (), filled.destinations or ()):
        agreed = replace(config, routes=prefixes, dns=())
        check_agreement(agreed)
        for server in filled.dns or ():
            address = ip_network(server)
            if not any(overlap(address, prefix) for prefix in agreed.advertised):
                raise UsageError(
                    f"devices of the group could not reach its DNS server {server}",
                    f"add {address} to --route and --destination, or give another --dns",
                )
    check_agreement(replace(config, dns=filled.dns or (), routes=_ALL))


def _filled(policy: GroupPolicy, config: GatewayConfig) -> GroupPolicy:
    routes = config.routes if policy.routes is None else policy.routes
    destinations = routes if policy.destinations is None else policy.destinations
    services = policy.services
    if services is None:
        # Of either family: the gateway itself connects, which needs no pool.
        services = tuple(map(ServiceRule, destinations))
    return replace(
        policy,
        routes=routes,
        destinations=destinations,
        services=services,
        dns=config.dns if policy.dns is None else policy.dns,
    )


def _collapsed(prefixes: Iterable[IPNetwork]) -> tuple[IPNetwork, ...]:
    listed = list(prefixes)
    return (
        *collapse_addresses(prefix for prefix in listed if isinstance(prefix, IPv4Network)),
        *collapse_addresses(prefix for prefix in listed if isinstance(prefix, IPv6Network)),
    )
