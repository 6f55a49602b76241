"""A report to send to somebody who helps: what was found, the log, versions; nobody's names.

Addresses, host names, names of users and devices, links and everything that may be a key are
replaced, the same thing by the same pseudonym, so that a reader can follow it. What is not known to
be harmless is replaced too. It sends nothing anywhere.
"""

from __future__ import annotations

import getpass
import os
import platform
import re
import socket
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from ipaddress import ip_address
from pathlib import Path
from typing import Final

import msgspec

from qvpn_core.client import paths, profiles
from qvpn_core.client.doctor import Finding
from qvpn_core.client.status import Status
from qvpn_core.errors import QvpnError, UsageError

#: Bytes of each log that are taken, from its end.
_LOG_BYTES: Final = 128 << 10
_LOGS: Final = ("app.log", "agent.log")
_PACKAGES: Final = ("qvpn", "aioquic", "PySide6-Essentials", "qasync", "cryptography", "pyroute2")

#: What may be a secret: an invite, a pin, a long run of base64 or of hexadecimal digits.
_SECRET: Final = re.compile(
    r"qvpn://\S+|sha256/[A-Za-z0-9+/=]+|(?<![A-Za-z0-9/_.-])(?=[A-Za-z+/_-]*\d)[A-Za-z0-9+/_-]{24,}={0,2}"
)
_MAC: Final = re.compile(r"\b(?:[0-9a-fA-F]{2}:){5}[0-9a-fA-F]{2}\b")
_IPV6: Final = re.compile(
    r"(?<![\w:.])(?=[0-9a-fA-F:.]*:[0-9a-fA-F:.]*:)[0-9a-fA-F:.]{2,45}(?![\w:])"
)
_IPV4: Final = re.compile(r"(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?![\w]|\.\d)")
_HOST: Final = re.compile(
    r"(?<![\w./@-])(?:[A-Za-z0-9_](?:[A-Za-z0-9_-]*[A-Za-z0-9_])?\.)+[A-Za-z][A-Za-z0-9-]*[A-Za-z0-9]\b"
)
#: What has dots and is no host: our own modules, files, and names on the bus.
_NO_HOST: Final = re.compile(
    r"^(?:qvpn(?:_core|_gui|_server)?\.|asyncio\.|aioquic\.|org\.freedesktop\.|io\.github\.qvpn)"
    r"|\.(?:py|toml|log|lock|sock|json|journal|service|conf|so|pyc)$"
)
#: Addresses that are nobody's.
_NOBODY: Final = frozenset({"0.0.0.0", "::", "127.0.0.1", "::1"})


class Redactor:
    """Replaces what may say who somebody is, the same thing always by the same word."""

    def __init__(self, words: Mapping[str, str] | None = None) -> None:
        """`words` are known names and what kind of name each is (``user``, ``profile``, …)."""
        self._given: dict[str, str] = {}
        self._counts: dict[str, int] = {}
        known = {word: kind for word, kind in (words or {}).items() if len(word) > 2}
        self._kinds = {word.lower(): kind for word, kind in known.items()}
        longest_first = sorted(known, key=len, reverse=True)
        either = "|".join(map(re.escape, longest_first))
        self._known = (
            re.compile(rf"(?<![A-Za-z0-9_.-])(?:{either})(?![A-Za-z0-9_-])", re.IGNORECASE)
            if known
            else None
        )

    def redact(self, text: str) -> str:
        """The text without names. Doing it twice changes nothing more."""
        text = _SECRET.sub(lambda match: self._name("secret", match[0]), text)
        if self._known is not None:
            text = self._known.sub(
                lambda match: self._name(self._kinds[match[0].lower()], match[0]), text
            )
        text = _MAC.sub(lambda match: self._name("mac", match[0]), text)
        for pattern in (_IPV6, _IPV4):
            text = pattern.sub(lambda match: self._address(match[0]), text)
        return _HOST.sub(lambda match: self._host(match[0]), text)

    def _host(self, text: str) -> str:
        return text if _NO_HOST.search(text) else self._name("host", text)

    def _address(self, text: str) -> str:
        tail = ""
        while text and text[-1] in ".:" and not text.endswith("::"):
            text, tail = text[:-1], text[-1] + tail
        try:
            address = ip_address(text)
        except ValueError:
            return text + tail  # a time, a version
        if str(address) in _NOBODY:
            return text + tail
        kind = "private" if address.is_private else "public"
        return self._name(f"{kind}-ipv{address.version}", str(address)) + tail

    def _name(self, kind: str, text: str) -> str:
        key = f"{kind} {text.lower()}"
        if key not in self._given:
            self._counts[kind] = self._counts.get(kind, 0) + 1
            self._given[key] = f"<{kind}-{self._counts[kind]}>"
        return self._given[key]


def compose(findings: Sequence[Finding], status: Status, more: str = "") -> dict[str, str]:
    """The report's parts, by title, redacted. Blocks; `more` is what the caller knows besides."""
    redactor = Redactor(_known_words())
    parts = {
        "versions": "\n".join((*_versions(), *filter(None, [more]))),
        "doctor": "\n".join(
            f"{it.verdict:<8} {it.check:<12} {it.words}{f' ({it.remedy})' if it.remedy else ''}"
            for it in findings
        ),
        "status": msgspec.json.format(msgspec.json.encode(status), indent=2).decode(),
    }
    for name in _LOGS:
        if text := _tail(paths.state_dir() / name):
            parts[name] = text
    return {title: redactor.redact(text) for title, text in parts.items()}


def as_text(parts: Mapping[str, str]) -> str:
    """The report as one text: what is shown is what is written."""
    return "\n".join(f"== {title} ==\n{text.rstrip()}\n" for title, text in parts.items())


def write(path: Path, parts: Mapping[str, str]) -> Path:
    """Write the report for its owner only. Raises UsageError."""
    try:
        paths.write_private(path, as_text(parts).encode())
    except OSError as error:
        raise UsageError(
            f"{path} cannot be written ({error.strerror})", "choose another place"
        ) from None
    return path


def _versions() -> Iterable[str]:
    for package in _PACKAGES:
        with suppress(PackageNotFoundError):
            yield f"{package} {version(package)}"
    yield f"Python {platform.python_version()}"
    yield f"Linux {platform.release()} {platform.machine()}"
    with suppress(OSError):
        yield platform.freedesktop_os_release().get("PRETTY_NAME", "")
    yield f"desktop {os.environ.get('XDG_CURRENT_DESKTOP', 'none')}"


def _known_words() -> dict[str, str]:
    """Names that are known to be somebody's."""
    words = {socket.gethostname(): "machine", str(Path.home()): "home"}
    with suppress(OSError, KeyError):
        words[getpass.getuser()] = "user"
    words.pop("root", None)
    words.pop("/root", None)
    for name in _profile_names():
        words[name] = "profile"
        with suppress(QvpnError):
            profile = profiles.load(name)
            words[profile.host] = "gateway"
            for word, kind in ((profile.device, "device"), (profile.token, "secret")):
                if word:
                    words[word] = kind
            for line in profile.route_lines:
                words[line.partition("#")[2].strip()] = "comment"
    return words


def _profile_names() -> list[str]:
    try:
        return profiles.names()
    except QvpnError:
        return []


def _tail(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _LOG_BYTES))
            return file.read(_LOG_BYTES).decode(errors="replace")
    except OSError:
        return ""
