"""Where a device's private key rests: in the desktop's Secret Service, or else in a file.

The Secret Service is reached through the `keyring` library, which is optional: on a machine without
a desktop, or where the service does not answer in time, or would first have to ask its owner for a
password, the key goes into a file with mode 0600 beside the profile, and the caller is told which
it was. Root's keys are always in files, since no
desktop session is its own. It refuses backends of `keyring` that would only be another file.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar, get_args

from qvpn_core.client import paths
from qvpn_core.errors import QvpnError, UsageError

if TYPE_CHECKING:  # slow to import, and most commands need no key
    from keyring.backend import KeyringBackend

    from qvpn_core.auth.device_key import DeviceKey

log = logging.getLogger("qvpn.keys")

KeyPlace = Literal["file", "secret-service"]
PLACES: tuple[KeyPlace, ...] = get_args(KeyPlace)

#: Under which the keys are listed in the desktop's password manager.
SERVICE = "qvpn device key"
#: Seconds for a desktop's service to take a key, and for a person to unlock it when it is asked.
STORE_SECONDS = 5.0
LOAD_SECONDS = 30.0
_MAX_FILE = 4096  # bytes

_T = TypeVar("_T")


class KeyUnavailable(QvpnError):
    """The device's key is not where it was stored, or its place does not open."""

    reason = "device-key"


def store(profile: str, key: DeviceKey) -> KeyPlace:
    """Keep `key` for a profile, in the best place there is; returns which that was.

    Raises OSError when not even a file can be written.
    """
    if _store_in_service(profile, key):
        return "secret-service"
    path = _path(profile)
    paths.make_private(path.parent)
    paths.write_private(path, key.to_pem())
    return "file"


def load(profile: str, place: KeyPlace) -> DeviceKey:
    """The key of a profile. Takes up to `LOAD_SECONDS`. Raises KeyUnavailable and UsageError."""
    from qvpn_core.auth.device_key import DeviceKey

    if place == "file":
        path = _path(profile)
        try:
            with path.open("rb") as file:
                return DeviceKey.from_pem(file.read(_MAX_FILE))
        except OSError as error:
            raise KeyUnavailable(
                f"the device key {path} cannot be read ({error.strerror})",
                "enrol this device again",
            ) from None
    backend = _service()
    if backend is None:
        raise KeyUnavailable(
            "the device key is in the desktop's password store, which is not there",
            "log in to the desktop, or enrol this device again without it",
        )
    try:
        pem = _within(LOAD_SECONDS, lambda: backend.get_password(SERVICE, profile))
    except Exception as error:  # whatever a backend raises
        raise KeyUnavailable(
            f"the desktop's password store does not give the device key ({_words(error)})",
            "unlock it and try again",
        ) from None
    if pem is None:
        raise KeyUnavailable(
            "the device key is no longer in the desktop's password store",
            "enrol this device again",
        )
    return DeviceKey.from_pem(pem.encode())


def delete(profile: str, place: KeyPlace) -> None:
    """Remove the key of a profile. What is not there is removed already."""
    if place == "file":
        with suppress(FileNotFoundError):
            _path(profile).unlink()
        return
    backend = _service()
    if backend is None:
        log.warning("the device key stays in the desktop's password store, which is not there")
        return
    try:
        _within(STORE_SECONDS, lambda: backend.delete_password(SERVICE, profile))
    except Exception as error:  # whatever a backend raises
        log.warning("the device key may still be in the password store (%s)", _words(error))


def describe(profile: str, place: KeyPlace) -> str:
    """Where the key is, in words for its owner."""
    if place == "file":
        return f"the file {_path(profile)}, readable only by you"
    return "the desktop's password store"


def _store_in_service(profile: str, key: DeviceKey) -> bool:
    backend = _service()
    if backend is None:
        return False
    pem = key.to_pem().decode()

    def put() -> bool:
        if _would_ask():
            raise PermissionError("it is locked, or still to be made")
        backend.set_password(SERVICE, profile, pem)
        # Some services take a secret and lose it.
        return backend.get_password(SERVICE, profile) == pem

    try:
        return _within(STORE_SECONDS, put)
    except Exception as error:  # whatever a backend raises
        log.info("the desktop's password store does not take the key (%s)", _words(error))
        return False


def _would_ask() -> bool:
    """Whether a Secret Service would ask for a password before it takes anything.

    Nobody who adds a gateway expects that question: where no store was made at login, it is for the
    password of a new one. And the answer would come later than we wait.
    """
    import secretstorage  # what `keyring` itself uses
    from secretstorage.exceptions import ItemNotFoundException, SecretServiceNotAvailableException

    try:
        with closing(secretstorage.dbus_init()) as connection:
            if not secretstorage.check_service_availability(connection):
                return False  # another kind of store
            return secretstorage.Collection(connection).is_locked()
    except SecretServiceNotAvailableException:
        return False
    except ItemNotFoundException:
        return True


def _service() -> KeyringBackend | None:
    """The desktop's service by way of `keyring`, None when there is none to trust."""
    if paths.is_root():
        return None
    try:
        import keyring

        backend = _within(STORE_SECONDS, keyring.get_keyring)
        # Below 1 are backends that `keyring` itself does not recommend: files, or nothing at all.
        return backend if backend.priority >= 1 else None
    except Exception as error:  # no library, no bus, a backend that does not import
        log.info("no password store of a desktop (%s)", _words(error))
        return None


def _within(seconds: float, action: Callable[[], _T]) -> _T:
    """What `action` returns or raises; TimeoutError when it takes longer, and it is left alone."""
    results: list[_T] = []
    errors: list[Exception] = []

    def work() -> None:
        try:
            results.append(action())
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=work, name="password store", daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not results:
        raise TimeoutError("no answer")
    return results[0]


def _words(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _path(profile: str) -> Path:
    return paths.config_dir() / "profiles" / f"{profile}.key"


def check_place(text: str) -> KeyPlace:
    """Raises UsageError for a place that we do not know."""
    for place in PLACES:
        if place == text:
            return place
    raise UsageError(f"{text!r} is no place for a device key", f"it is one of {', '.join(PLACES)}")
