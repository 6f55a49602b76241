"""A device's key in a real desktop's password store: GNOME Keyring on a session bus of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

_DESKTOP = """
echo -n password | gnome-keyring-daemon --unlock --components=secrets >/dev/null 2>&1
bus="--session --print-reply --dest=org.freedesktop.DBus / org.freedesktop.DBus.NameHasOwner"
for _ in $(seq 100); do
    dbus-send $bus string:org.freedesktop.secrets | grep -q true && break
    sleep 0.1
done
exec "$1" -c "$2"
"""

_STORY = """
import keyring
from qvpn_core.auth.device_key import DeviceKey
from qvpn_core.client import keys, paths
paths.is_root = lambda: False  # root never asks a desktop
key = DeviceKey.generate()
assert "SecretService" in type(keyring.get_keyring()).__module__, keyring.get_keyring()
assert keys.store("home", key) == "secret-service"
assert keys.load("home", "secret-service").sign(b"x") == key.sign(b"x")
keys.delete("home", "secret-service")
try:
    keys.load("home", "secret-service")
except keys.KeyUnavailable as error:
    print(error)
"""


#: No store was made at login, as with some desktops; the service starts when it is asked.
_BARE = """
from qvpn_core.auth.device_key import DeviceKey
from qvpn_core.client import keys, paths
import secretstorage
paths.is_root = lambda: False
secretstorage.collection.create_collection = lambda *_: print("somebody is asked")
assert keys.store("home", DeviceKey.generate()) == "file"
assert secretstorage.check_service_availability(secretstorage.dbus_init())
print("stored")
"""


def test_the_key_rests_in_gnome_keyring(tmp_path: Path) -> None:
    done = _run(tmp_path, ["sh", "-c", _DESKTOP, "sh", sys.executable, _STORY])
    assert done.returncode == 0, done.stderr
    assert "no longer in the desktop's password store" in done.stdout
    assert not (tmp_path / "config").exists()


def test_a_store_that_would_ask_for_a_password_is_left_alone(tmp_path: Path) -> None:
    done = _run(tmp_path, [sys.executable, "-c", _BARE])
    assert done.returncode == 0, done.stderr
    assert done.stdout == "stored\n"
    assert (tmp_path / "config/profiles/home.key").stat().st_mode & 0o777 == 0o600


def _run(tmp_path: Path, argv: list[str]) -> subprocess.CompletedProcess[str]:
    for program in ("dbus-run-session", "gnome-keyring-daemon"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed (Debian packages dbus, gnome-keyring)")
    runtime = tmp_path / "run"
    runtime.mkdir(mode=0o700)
    home = {
        "HOME": str(tmp_path),
        "XDG_RUNTIME_DIR": str(runtime),
        "XDG_DATA_HOME": str(tmp_path / "data"),
        "QVPN_CONFIG_DIR": str(tmp_path / "config"),
    }
    return subprocess.run(
        ["dbus-run-session", "--", *argv],
        env=os.environ | home,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
