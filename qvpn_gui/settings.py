"""What the user has set for the app, and what the app remembers, each in a file of its own.

Settings are the user's: `CONFIG/app.toml`, declared once in `Settings`, safe to edit while the app
runs. The memory is the app's: `STATE/app.json`, which can be deleted at any time. What belongs to
one gateway is in its profile.
"""

from __future__ import annotations

import logging
import tomllib
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import msgspec

from qvpn_core.client import paths
from qvpn_core.client.planner import RouteMode, RoutePolicy
from qvpn_core.client.profiles import excluded_words, route_policy
from qvpn_core.errors import QvpnError

log = logging.getLogger("qvpn.app")

_MAX_FILE = 64 << 10  # bytes; a larger one is not ours
_RECENT = 4  # route policies a profile remembers

Language = Literal["", "en", "de", "zh_CN"]
LogLevel = Literal["warning", "info", "debug"]

_T = TypeVar("_T", bound=msgspec.Struct)


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=False):
    """The app's settings, with their defaults."""

    #: Connect this profile when the app starts; empty for none.
    connect_at_start: str = ""
    #: Tell of changes that the user did not cause.
    notifications: bool = True
    #: The language of the app; empty for the desktop's. From the next start on.
    language: Language = ""
    #: What is written to the log.
    log_level: LogLevel = "info"


class Policy(msgspec.Struct, frozen=True):
    """A route policy as text."""

    mode: RouteMode
    destinations: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()

    @classmethod
    def of(cls, policy: RoutePolicy) -> Policy:
        """The text of a policy."""
        return cls(policy.mode, tuple(map(str, policy.destinations)), excluded_words(policy))

    def parse(self) -> RoutePolicy:
        """The policy. Raises UsageError."""
        return route_policy(self.mode, self.destinations, self.excluded)


class Memory(msgspec.Struct, frozen=True):
    """What the app remembers from one start to the next."""

    #: The profile that was chosen last.
    profile: str = ""
    #: Route policies that were used with a profile, the latest first.
    recent: dict[str, tuple[Policy, ...]] = {}
    #: The profile that was connected when the desktop's session ended, for the next one.
    resume: str = ""

    def used(self, profile: str, policy: Policy) -> Memory:
        """Remember that `policy` was used with `profile`."""
        others = [known for known in self.recent.get(profile, ()) if known != policy]
        recent = {**self.recent, profile: (policy, *others)[:_RECENT]}
        return msgspec.structs.replace(self, recent=recent)


def load_settings() -> Settings:
    """The settings; the default of each that is missing or cannot be meant, which is logged."""
    settings, problems = examine_settings()
    for problem in problems:
        log.warning("%s", problem)
    return settings


def examine_settings() -> tuple[Settings, tuple[str, ...]]:
    """The settings, and what is wrong with their file, a line each."""
    problems: list[str] = []
    try:
        values = tomllib.loads(_read(settings_file()))
    except ValueError as error:
        problems.append(f"{settings_file()} is not TOML, defaults are used: {error}")
        values = {}
    good: dict[str, Any] = {}
    for field in msgspec.structs.fields(Settings):
        if field.name in values:
            try:
                good[field.name] = msgspec.convert(values[field.name], field.type)
            except msgspec.ValidationError:
                wanted = _wanted(field.type)
                problems.append(f"setting {field.name} is ignored: it has to be {wanted}")
    return Settings(**good), tuple(problems)


def _wanted(kind: Any) -> str:
    """What a setting can be, as one writes it."""
    if kind is bool:
        return "true or false"
    choices = get_args(kind)
    return " or ".join(f'"{choice}"' for choice in choices) if choices else "a text"


def edit_settings(**changes: Any) -> None:
    """Store a change of the settings as they are now, whoever else edits them. Raises QvpnError."""
    try:
        with paths.exclusive(settings_file().parent):
            save_settings(msgspec.structs.replace(load_settings(), **changes))
    except OSError as error:
        why = error.strerror or "the disk refuses"
        raise QvpnError(f"{settings_file()} cannot be written", why) from None


def save_settings(settings: Settings) -> None:
    """Write what differs from the file, whole or not at all. Raises QvpnError.

    Comments and keys that this version does not know stay. A file that is no TOML is kept beside
    the new one, as `app.toml.broken`.
    """
    path, text = settings_file(), _read(settings_file())
    before, _ = examine_settings()
    try:
        known = tomllib.loads(text)
    except ValueError:
        _write(path.with_name(path.name + ".broken"), text.encode())
        known, text = {}, ""
    lines = text.splitlines()
    for key, value in msgspec.to_builtins(settings).items():
        if key in known and getattr(before, key) == value:
            continue
        lines = _with_line(lines, key, f"{key} = {msgspec.json.encode(value).decode()}")
    # JSON's strings, numbers, booleans and arrays are also TOML's.
    _write(path, "".join(f"{line}\n" for line in lines).encode())


def _with_line(lines: list[str], key: str, line: str) -> list[str]:
    """The same file with another value of a key, which is above all tables."""
    end = next((at for at, one in enumerate(lines) if one.lstrip().startswith("[")), len(lines))
    for at in range(end):
        if lines[at].partition("=")[0].strip() == key:
            return [*lines[:at], line, *lines[at + 1 :]]
    return [*lines[:end], line, *lines[end:]]


def set_log_level(settings: Settings) -> None:
    """Log as much as is set."""
    logging.getLogger("qvpn").setLevel(getattr(logging, settings.log_level.upper()))


def load_memory() -> Memory:
    """What was remembered; nothing when the file is missing or damaged."""
    try:
        return msgspec.json.decode(_read(_memory_file()), type=Memory)
    except (ValueError, msgspec.MsgspecError):
        return Memory()


def save_memory(memory: Memory) -> None:
    """Remember, or log why not: nothing depends on it."""
    try:
        _write(_memory_file(), msgspec.json.encode(memory))
    except QvpnError as error:
        log.warning("the app will not remember: %s", error)


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(_MAX_FILE).decode()
    except OSError:
        return ""


def _write(path: Path, data: bytes) -> None:
    try:
        paths.make_private(path.parent)
        paths.write_private(path, data)
    except OSError as error:
        raise QvpnError(f"{path} cannot be written", error.strerror or "the disk refuses") from None


def settings_file() -> Path:
    """Where the settings are."""
    return paths.config_dir() / "app.toml"


def _memory_file() -> Path:
    return paths.state_dir() / "app.json"
