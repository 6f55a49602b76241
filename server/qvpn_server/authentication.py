"""Who makes a request: a device, the holder of an invite, or nobody that we know.

Every request of a stranger costs the same work, whatever credential it carries or lacks: one
look-up and one signature for concealed authentication (RFC 9729), one look-up for a bearer token
(RFC 6750). What a caller may do is not decided here.
"""

from __future__ import annotations

from qvpn_core.auth.concealed import Origin, Verifier, credential_field
from qvpn_core.transport.interface import IncomingRequest
from qvpn_server.credentials import bearer_token, token_hash
from qvpn_server.lookups import LookUps
from qvpn_server.registry import Device, Invite, Registry

#: Looked up when there is no token, so that its absence takes no less time.
_NO_TOKEN = "0" * 64


class Authenticator:
    """Reads credentials against a registry. `lookups` are those of the same registry."""

    def __init__(self, registry: Registry, lookups: LookUps) -> None:
        self._registry = registry
        self._lookups = lookups
        # Not what is remembered: a forger with the key ID of a device would be answered sooner.
        self._verifier = Verifier(registry.public_key)

    def caller(self, incoming: IncomingRequest) -> Device | Invite | None:
        """The device or the invite that the request's credential proves, else None.

        An invite is returned also when it enrols nobody any more: its holder may know why. Raises
        RegistryUnavailable.
        """
        request = incoming.request
        field = request.header(credential_field(request.method, request.protocol))
        token = token_hash(bearer_token(field) or _NO_TOKEN)
        self._lookups.refresh()
        known = self._lookups.remembered(token)
        if known is not None:
            return known
        key_id = self._verifier.verify(
            field,
            incoming.export_keying_material,
            Origin.of(request.scheme, request.authority),
        )
        if key_id is None:
            return self._lookups.device_by_token(token)
        return self._lookups.device_by_key_id(key_id) or self._registry.invite_by_key_id(key_id)
