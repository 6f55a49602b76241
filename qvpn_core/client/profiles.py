"""Profiles: what a client stores about one gateway, one TOML file each.

`CONFIG/profiles/NAME.toml`, mode 0600 because it holds the credential, replaced atomically. Values
are checked when they come in, from a command line or from a file that someone edited; a profile in
memory is valid. It does no networking and does not look into `ca_file`.
"""

from __future__ import annotations

import dataclasses
import os
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from dataclasses import replace as changed
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Final, Literal
from urllib.parse import urlsplit

import msgspec

from qvpn_core.client import keys, paths
from qvpn_core.client.keys import KeyPlace
from qvpn_core.client.planner import RouteMode, RoutePolicy
from qvpn_core.client.proxy.options import ProxyOptions
from qvpn_core.client.states import KillSwitchMode
from qvpn_core.client.ticketfile import TicketFile
from qvpn_core.errors import PermissionMissing, QvpnError, UsageError
from qvpn_core.masque.uri_template import DEFAULT_TEMPLATE, expand, split_template
from qvpn_core.net.plan import Network
from qvpn_core.transport.interface import TransportName
from qvpn_core.transport.trust import Trust, parse_pin

DEFAULT_PORT = 443
PUBLIC_TRUST = Trust()
NO_PROXY = ProxyOptions()
ALL_ROUTES = RoutePolicy()
#: Among exclusions: the networks of the LAN, whatever they are.
LAN_WORD = "lan"
TransportChoice = Literal["auto", "quic", "tls"]
#: What is tried for a choice, first things first.
TRANSPORTS: Final[dict[TransportChoice, tuple[TransportName, ...]]] = {
    "auto": ("quic", "tls"),
    "quic": ("quic",),
    "tls": ("tls",),
}

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")  # b64token, RFC 6750 section 2.1
_HOST = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*\.?")
_SUFFIX = ".toml"
_MAX_FILE = 1 << 20  # bytes; a larger one is not ours


@dataclass(frozen=True, slots=True)
class Profile:
    """One gateway, how to trust it, how to be known to it, and what to send through it."""

    name: str
    host: str
    port: int
    #: The credential: a bearer token, or where the key of an enrolled device is.
    token: str | None = field(default=None, repr=False)
    key: KeyPlace | None = None
    #: The name that the gateway knows an enrolled device by.
    device: str | None = None
    trust: Trust = PUBLIC_TRUST
    #: The CONNECT-IP URI template (RFC 9484 section 3), absolute or only its path.
    template: str = DEFAULT_TEMPLATE
    policy: RoutePolicy = ALL_ROUTES
    #: The list that `policy` was made of, and what the names in it were; see `route_list.stored`.
    route_lines: tuple[str, ...] = ()
    lookups: tuple[str, ...] = ()
    kill_switch: KillSwitchMode = "off"
    #: Whether to use the name servers that the gateway offers.
    dns: bool = True
    transport: TransportChoice = "auto"
    #: What the app serves instead of a tunnel, if enabled.
    proxy: ProxyOptions = NO_PROXY

    @property
    def gateway(self) -> str:
        """HOST:PORT as an authority (RFC 3986 section 3.2), the port left out when it is 443."""
        return join_host_port(self.host, self.port)

    @property
    def resource(self) -> tuple[str, str]:
        """Authority and path of the request for everything that the gateway carries."""
        authority, path = _split(self.template)
        return authority or self.gateway, expand(path)


class _Gateway(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    host: str
    port: int = DEFAULT_PORT
    template: str = DEFAULT_TEMPLATE
    transport: TransportChoice = "auto"


class _Trust(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    pins: tuple[str, ...] = ()
    ca_file: str | None = None


class _Credential(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    token: str | None = None
    key: KeyPlace | None = None
    device: str | None = None


class _Routes(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    mode: RouteMode = "all"
    destinations: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()
    #: As a person wrote them, which the app shows and edits; without effect of their own.
    lines: tuple[str, ...] = ()
    lookups: tuple[str, ...] = ()
    kill_switch: KillSwitchMode = "off"


class _Dns(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    use: bool = True


class _Proxy(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    enabled: bool = NO_PROXY.enabled
    socks: str = NO_PROXY.socks
    http: str = NO_PROXY.http
    forwards: tuple[str, ...] = ()


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    gateway: _Gateway
    credential: _Credential
    trust: _Trust = _Trust()
    routes: _Routes = _Routes()
    dns: _Dns = _Dns()
    proxy: _Proxy = _Proxy()


def make_profile(
    name: str,
    gateway: str,
    token: str,
    *,
    pins: Iterable[str] = (),
    ca_file: str | None = None,
    template: str = DEFAULT_TEMPLATE,
) -> Profile:
    """Build a profile from what a person typed; `gateway` is HOST[:PORT]. Raises UsageError."""
    host, port = parse_gateway(gateway)
    return _checked(
        name,
        _File(
            gateway=_Gateway(host=host, port=port, template=template),
            credential=_Credential(token=token),
            trust=_Trust(pins=tuple(pins), ca_file=os.path.abspath(ca_file) if ca_file else None),
        ),
    )


def check_name(name: str) -> str:
    """A profile's name is a file's name: no separators, no leading dot. Raises UsageError."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} cannot name a profile",
            "use letters, digits, '.', '_' and '-', at most 63, starting with a letter or digit",
        )
    return name


def parse_gateway(text: str) -> tuple[str, int]:
    """Split HOST[:PORT], [IPV6]:PORT or a bare IPv6 address. Raises UsageError."""
    try:
        return str(ip_address(text)), DEFAULT_PORT
    except ValueError:
        pass
    try:
        parts = urlsplit(f"//{text}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not host or parts.netloc != text or "@" in text or text.endswith(":"):
        raise UsageError(f"{text!r} is not a gateway", "give HOST, HOST:PORT or [IPV6]:PORT")
    return host, DEFAULT_PORT if port is None else port


def join_host_port(host: str, port: int) -> str:
    """HOST:PORT as an authority, the port left out when it is 443."""
    host = f"[{host}]" if ":" in host else host
    return host if port == DEFAULT_PORT else f"{host}:{port}"


def parse_networks(texts: Iterable[str]) -> tuple[Network, ...]:
    """Read CIDR prefixes; a bare address is a host route. Raises UsageError."""
    networks: list[Network] = []
    for text in texts:
        try:
            networks.append(ip_network(text))
        except ValueError as error:
            hint = f"did you mean {_widened(text)}" if "host bits" in str(error) else ""
            if text == LAN_WORD:
                hint = "only --except knows it"
            raise UsageError(
                f"{text!r} is not a network", hint or "write it as 192.0.2.0/24 or 2001:db8::/32"
            ) from None
    return tuple(networks)


def load(name: str) -> Profile:
    """Read a profile. Raises UsageError (unknown, damaged) and PermissionMissing."""
    path = _path(name)
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_FILE + 1)
    except FileNotFoundError:
        raise UsageError(f"no profile {name!r} in {path.parent}", _known_profiles()) from None
    except PermissionError:
        raise PermissionMissing(
            f"profile {name!r} cannot be read", f"{path} belongs to another user"
        ) from None
    except OSError as error:
        raise UsageError(f"profile {name!r} cannot be read", f"{path}: {error.strerror}") from None
    try:
        if len(data) > _MAX_FILE:
            raise ValueError("the file is too large")
        file_ = msgspec.convert(tomllib.loads(data.decode()), _File)
    except (ValueError, msgspec.ValidationError) as error:
        raise UsageError(f"profile {name!r} is damaged", f"{path}: {error}") from None
    try:
        return _checked(name, file_)
    except UsageError as error:
        raise UsageError(f"profile {name!r} is damaged", f"{path}: {error}") from None


def save(profile: Profile, *, replace: bool = False) -> Path:
    """Write a profile, whole or not at all. Raises UsageError (exists) and QvpnError (disk)."""
    path = _path(profile.name)
    if not replace:
        check_free(profile.name)
    try:
        paths.make_private(path.parent)
        paths.write_private(path, _toml(_sections(profile)).encode())
    except OSError as error:
        raise unwritable(error, path) from error
    return path


def edit(name: str, change: Callable[[Profile], Profile]) -> Profile:
    """Store a change of a profile as it is now; returns it changed.

    The app and the command line may do so at once, and neither's change is lost. Raises UsageError
    (unknown, damaged) and QvpnError (disk); then the file is as it was.
    """
    try:
        with paths.exclusive(_directory()):
            after = change(load(name))
            save(after, replace=True)
            return after
    except OSError as error:
        raise unwritable(error) from error


def check_free(name: str) -> None:
    """Raises UsageError when there is a profile of this name."""
    if _path(name).exists():
        raise UsageError(f"profile {name!r} exists", f"remove it first: qvpn profile remove {name}")


def learn_pins(profile: Profile, pins: tuple[str, ...]) -> Profile:
    """Trust `pins` from now on, also in the file. Raises QvpnError when that cannot be written.

    What a person changed in the file meanwhile stays; a profile that was removed stays removed.
    """
    learned = changed(profile, trust=Trust(pins=pins))
    if _path(profile.name).exists():
        edit(
            profile.name,
            lambda stored: (
                changed(stored, trust=learned.trust) if stored.trust == profile.trust else stored
            ),
        )
    return learned


def remove(name: str) -> None:
    """Delete a profile and the device's key with it. Raises UsageError when there is none."""
    path = _path(name)
    place: KeyPlace | None = "file"  # of a profile that is too damaged to say
    with suppress(QvpnError):
        place = load(name).key
    try:
        path.unlink()
        if place is not None:
            keys.delete(name, place)
        TicketFile(name).forget()
    except FileNotFoundError:
        raise UsageError(f"no profile {name!r} in {path.parent}", _known_profiles()) from None
    except OSError as error:
        raise unwritable(error, path) from error


def rename(old: str, new: str) -> Profile:
    """Give a profile, and the device's key with it, another name.

    The new one is complete before the old one goes. Raises UsageError (unknown, taken, not a name),
    KeyUnavailable, QvpnError (disk).
    """
    profile = changed(load(old), name=check_name(new))
    check_free(new)
    if profile.key is not None:
        key = keys.load(old, profile.key)
        try:
            profile = changed(profile, key=keys.store(new, key))
        except OSError as error:
            raise unwritable(error) from error
    try:
        save(profile)
    except BaseException:
        if profile.key is not None:
            keys.delete(new, profile.key)
        raise
    remove(old)
    return profile


def exported(profile: Profile) -> str:
    """The profile's file without its credential: to show, to keep, to ask somebody about."""
    sections = _sections(profile)
    del sections["credential"]
    return _toml(sections)


def names() -> list[str]:
    """The stored profiles in alphabetical order, readable or not."""
    try:
        entries = os.listdir(_directory())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise PermissionMissing(
            "the profiles cannot be listed", f"{_directory()}: {error.strerror}"
        ) from error
    stems = (entry.removesuffix(_SUFFIX) for entry in entries if entry.endswith(_SUFFIX))
    return sorted(stem for stem in stems if _NAME.fullmatch(stem))


def route_policy(
    mode: RouteMode, destinations: Iterable[str] = (), excluded: Iterable[str] = ()
) -> RoutePolicy:
    """A route policy from what a person writes; in `excluded`, LAN_WORD is whatever LAN there is.

    The mode follows when there is something to exclude. Raises UsageError.
    """
    excluded = tuple(excluded)
    if mode == "all" and excluded:
        mode = "all-except"
    networks = parse_networks(text for text in excluded if text != LAN_WORD)
    return RoutePolicy(mode, parse_networks(destinations), networks, lan=LAN_WORD in excluded)


def excluded_words(policy: RoutePolicy) -> tuple[str, ...]:
    """The exclusions of a policy as `route_policy` reads them."""
    return (*((LAN_WORD,) if policy.lan else ()), *map(str, policy.excluded))


def _checked(name: str, file: _File) -> Profile:
    gateway, trust = file.gateway, file.trust
    if not (_HOST.fullmatch(gateway.host) or _is_address(gateway.host)):
        raise UsageError(f"{gateway.host!r} is not a host name or address")
    if not 0 < gateway.port < 65536:
        raise UsageError(f"port {gateway.port} does not exist", "ports are 1 to 65535")
    token, key = file.credential.token, file.credential.key
    if (token is None) == (key is None):
        raise UsageError("it needs a token or a key", "enrol this device again: qvpn enroll")
    if token is not None and not _TOKEN.fullmatch(token):
        raise UsageError(
            "the token has characters that no token has", "copy it again from qvpn-server token"
        )
    try:
        pins = tuple(parse_pin(pin) for pin in trust.pins)
    except ValueError:
        raise UsageError(
            "the pin is not one", "it looks like sha256/BASE64, as qvpn-server init prints it"
        ) from None
    if pins and trust.ca_file:
        raise UsageError("a pin and a CA file exclude each other", "keep one of them")
    expand(_split(gateway.template)[1])  # raises UsageError
    routes = file.routes
    proxy = ProxyOptions(file.proxy.enabled, file.proxy.socks, file.proxy.http, file.proxy.forwards)
    proxy.listeners()  # raises UsageError
    return Profile(
        name=check_name(name),
        host=gateway.host,
        port=gateway.port,
        token=token,
        key=key,
        device=file.credential.device,
        trust=Trust(pins=pins, ca_file=trust.ca_file),
        template=gateway.template,
        policy=route_policy(routes.mode, routes.destinations, routes.excluded),
        route_lines=routes.lines,
        lookups=routes.lookups,
        kill_switch=routes.kill_switch,
        dns=file.dns.use,
        transport=gateway.transport,
        proxy=proxy,
    )


def _to_file(profile: Profile) -> _File:
    policy = profile.policy
    return _File(
        gateway=_Gateway(
            host=profile.host,
            port=profile.port,
            template=profile.template,
            transport=profile.transport,
        ),
        credential=_Credential(profile.token, profile.key, profile.device),
        trust=_Trust(pins=profile.trust.pins, ca_file=profile.trust.ca_file),
        routes=_Routes(
            mode=policy.mode,
            destinations=tuple(map(str, policy.destinations)),
            excluded=excluded_words(policy),
            lines=profile.route_lines,
            lookups=profile.lookups,
            kill_switch=profile.kill_switch,
        ),
        dns=_Dns(use=profile.dns),
        proxy=_Proxy(**dataclasses.asdict(profile.proxy)),
    )


def _sections(profile: Profile) -> dict[str, dict[str, object]]:
    sections: dict[str, dict[str, object]] = msgspec.to_builtins(_to_file(profile))
    return sections


def _toml(sections: Mapping[str, Mapping[str, object]]) -> str:
    """A file as TOML. JSON's strings, numbers and arrays are also TOML's."""
    lines: list[str] = []
    for section, values in sections.items():
        lines += [f"[{section}]"]
        lines += [f"{key} = {msgspec.json.encode(value).decode()}" for key, value in values.items()]
        lines += [""]
    return "\n".join(lines)


def _split(template: str) -> tuple[str, str]:
    """Authority ("" for a template that is only a path) and path."""
    return ("", template) if template.startswith("/") else split_template(template)


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def _widened(text: str) -> str:
    return str(ip_network(text, strict=False))


def _directory() -> Path:
    return paths.config_dir() / "profiles"


def _path(name: str) -> Path:
    return _directory() / (check_name(name) + _SUFFIX)


def _known_profiles() -> str:
    known = names()
    return f"there is {', '.join(known)}" if known else "add one: qvpn profile add --help"


def unwritable(error: OSError, path: Path | None = None) -> QvpnError:
    """What to say when a profile, or what belongs to it, cannot be written."""
    path = path or _directory()
    if isinstance(error, PermissionError):
        return PermissionMissing(f"{path} cannot be written", "it belongs to another user")
    return QvpnError(f"{path} cannot be written", error.strerror or "the disk refuses")
