"""Where a device's key rests: a password store by `keyring`'s own interface, or a file."""

from __future__ import annotations

import base64
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import keyring
import keyring.backend
import keyring.errors
import pytest

from qvpn_core.auth.device_key import DeviceKey
from qvpn_core.client import keys, profiles
from qvpn_core.client.keys import KeyUnavailable
from qvpn_core.client.profiles import Profile
from qvpn_core.errors import UsageError
from qvpn_core.transport.trust import Trust

PIN, OTHER = ("sha256/" + base64.b64encode(byte * 32).decode() for byte in (b"a", b"b"))


class Store(keyring.backend.KeyringBackend):
    """A password store in memory that can be told to misbehave."""

    priority = 5  # type: ignore[assignment]

    def __init__(self) -> None:
        super().__init__()
        self.passwords: dict[tuple[str, str], str] = {}
        self.broken: Exception | None = None
        self.forgets = False
        self.stuck: threading.Event | None = None

    def _behave(self) -> None:
        if self.stuck is not None:
            self.stuck.wait(20)
        if self.broken is not None:
            raise self.broken

    def get_password(self, service: str, username: str) -> str | None:
        self._behave()
        return self.passwords.get((service, username))

    def set_password(self, service: str, username: str, password: str) -> None:
        self._behave()
        if not self.forgets:
            self.passwords[service, username] = password

    def delete_password(self, service: str, username: str) -> None:
        self._behave()
        if (service, username) not in self.passwords:
            raise keyring.errors.PasswordDeleteError("not found")
        del self.passwords[service, username]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Directories of a client, who is no root."""
    monkeypatch.setenv("QVPN_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setenv("QVPN_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    return tmp_path


@pytest.fixture
def store() -> Iterator[Store]:
    """The desktop's password store."""
    before = keyring.get_keyring()
    store = Store()
    keyring.set_keyring(store)
    yield store
    if store.stuck is not None:
        store.stuck.set()
    keyring.set_keyring(before)


def key_file(home: Path) -> Path:
    return home / "config" / "profiles" / "home.key"


def test_with_a_password_store_no_file_holds_the_key(store: Store, home: Path) -> None:
    key = DeviceKey.generate()
    assert keys.store("home", key) == "secret-service"
    assert not key_file(home).exists()
    assert keys.load("home", "secret-service") == key
    assert keys.load("home", "secret-service").sign(b"x") == key.sign(b"x")
    keys.delete("home", "secret-service")
    assert store.passwords == {}


def test_without_one_a_file_does_that_only_its_owner_reads(
    store: Store, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Store, "priority", 0)  # what keyring's own stand-ins have
    key = DeviceKey.generate()
    assert keys.store("home", key) == "file"
    assert key_file(home).stat().st_mode & 0o777 == 0o600
    assert key_file(home).parent.stat().st_mode & 0o777 == 0o700
    assert store.passwords == {}
    assert keys.load("home", "file").sign(b"x") == key.sign(b"x")
    assert "only by you" in keys.describe("home", "file")
    keys.delete("home", "file")
    assert not key_file(home).exists()
    keys.delete("home", "file")


def test_roots_keys_are_always_in_files(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert keys.store("home", DeviceKey.generate()) == "file"
    assert store.passwords == {}


@pytest.mark.parametrize("trouble", ["raises", "forgets", "hangs"])
def test_a_store_that_fails_is_passed_over(
    store: Store, home: Path, trouble: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "STORE_SECONDS", 0.2)
    if trouble == "raises":
        store.broken = keyring.errors.KeyringLocked("locked\nand more")
    elif trouble == "forgets":
        store.forgets = True
    else:
        store.stuck = threading.Event()
    begin = time.monotonic()
    assert keys.store("home", DeviceKey.generate()) == "file"
    assert time.monotonic() - begin < 5
    assert key_file(home).exists()


@pytest.mark.parametrize("trouble", ["raises", "hangs", "lost", "absent"])
def test_a_key_that_is_not_to_be_had_is_said_in_one_line(
    store: Store, trouble: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys.store("home", DeviceKey.generate())
    if trouble == "raises":
        store.broken = keyring.errors.KeyringLocked("locked\nand more")
    elif trouble == "hangs":
        monkeypatch.setattr(keys, "LOAD_SECONDS", 0.2)
        store.stuck = threading.Event()
    elif trouble == "lost":
        store.passwords.clear()
    else:
        monkeypatch.setattr(Store, "priority", 0)
    with pytest.raises(KeyUnavailable) as caught:
        keys.load("home", "secret-service")
    assert "\n" not in str(caught.value)
    assert caught.value.hint


def test_damaged_and_missing_files(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(KeyUnavailable, match="enrol this device again"):
        keys.load("home", "file")
    keys.store("home", DeviceKey.generate())
    key_file(home).write_text("not a key")
    with pytest.raises(UsageError, match="damaged"):
        keys.load("home", "file")


def make_profile(place: keys.KeyPlace) -> Profile:
    return Profile("home", "vpn.example.org", 443, key=place, device="x", trust=Trust((PIN,)))


@pytest.mark.parametrize("damaged", [False, True])
def test_removing_a_profile_removes_its_key(
    home: Path, damaged: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    path = profiles.save(make_profile(keys.store("home", DeviceKey.generate())))
    assert profiles.load("home") == make_profile("file")
    if damaged:
        path.write_text("nonsense")
    profiles.remove("home")
    assert not key_file(home).exists()
    assert profiles.names() == []


def test_removing_a_profile_removes_its_key_from_the_store(store: Store) -> None:
    profiles.save(make_profile(keys.store("home", DeviceKey.generate())))
    profiles.remove("home")
    assert store.passwords == {}


def test_pins_that_are_learned_are_kept_and_edits_of_a_person_too() -> None:
    profile = make_profile("file")
    path = profiles.save(profile)
    edited = path.read_text().replace("[routes]", '[routes]\nmode = "only"')
    path.write_text(edited.replace('"only"', '"only"\ndestinations = ["192.0.2.0/24"]'))
    pins = (PIN, OTHER)
    assert profiles.learn_pins(profile, pins).trust.pins == pins
    stored = profiles.load("home")
    assert stored.trust.pins == pins
    assert stored.policy.mode == "only"


def test_pins_that_a_person_set_meanwhile_are_not_overwritten() -> None:
    profile = make_profile("file")
    path = profiles.save(profile)
    other = "sha256/" + base64.b64encode(b"c" * 32).decode()
    path.write_text(path.read_text().replace(PIN, other))
    profiles.learn_pins(profile, (PIN, OTHER))
    assert profiles.load("home").trust.pins == (other,)
    profiles.remove("home")
    profiles.learn_pins(profile, (PIN,))
    assert profiles.names() == []
