"""Settings hold at once, explain themselves, and survive whoever edits their file."""

from __future__ import annotations

import logging
import tomllib
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from PySide6.QtCore import Qt
from PySide6.QtWidgets import QApplication, QLabel
from pytestqt.qtbot import QtBot

from qvpn_core.client import profiles
from qvpn_core.errors import QvpnError
from qvpn_gui import settings
from qvpn_gui.actions import Actions
from qvpn_gui.dialogs.settings import SettingsDialog
from qvpn_gui.dialogs.settings_words import SettingWords
from qvpn_gui.settings import Settings
from tests.gui.conftest import Play
from tests.gui.controls import unnamed, unreachable


@pytest.fixture
def dialog(qtbot: QtBot, actions: Actions) -> Iterator[SettingsDialog]:
    level = logging.getLogger("qvpn").level
    dialog = SettingsDialog(actions)
    qtbot.addWidget(dialog)
    dialog.show()
    yield dialog
    logging.getLogger("qvpn").setLevel(level)


def texts(dialog: SettingsDialog) -> str:
    return "\n".join(it.text() for it in dialog.findChildren(QLabel) if it.isVisibleTo(dialog))


def test_every_setting_that_is_declared_has_words_and_none_has_words_alone(
    qapp: QApplication,
) -> None:
    words = SettingWords()
    own = {field.name for field in msgspec.structs.fields(Settings)} - {"connect_at_start"}
    assert {it.key for it in words.of_app()} == own
    profile = profiles.make_profile("x", "vpn.example.org", "token")
    for setting in (*words.of_app(), *words.of_profile()):
        source = {"lan": profile.policy}.get(setting.key, profile)
        default = getattr(Settings(), setting.key, None)
        if default is None:
            default = getattr(source, setting.key)
        assert default in [it.value for it in setting.values]
        assert setting.name
        assert setting.help


def choose(dialog: SettingsDialog, key: str, value: object) -> None:
    row = {**dialog.profile_rows, **dialog.app_rows}[key]
    if row.check is not None:
        row.check.click()
    else:
        assert row.choice is not None
        at = row.choice.findData(value)
        row.choice.setCurrentIndex(at)
        row.choice.activated.emit(at)


@pytest.mark.parametrize(
    ("key", "value"),
    [("kill_switch", "always"), ("dns", False), ("transport", "tls")],
)
def test_settings_of_a_gateway_are_stored_with_its_profile(
    dialog: SettingsDialog, play: Play, key: str, value: object
) -> None:
    async def story() -> None:
        choose(dialog, key, value)
        await dialog.settled()

    play(story())
    assert getattr(profiles.load("home"), key) == value


@pytest.mark.parametrize(
    ("mode", "wanted", "excluded", "after"),
    [
        ("all", [], [], ("all-except", ())),
        ("all", [], ["10.0.0.0/8"], ("all-except", ("10.0.0.0/8",))),
        ("only", ["192.0.2.0/24"], [], ("only", ())),
    ],
)
def test_the_local_network_comes_and_goes_with_one_click(
    dialog: SettingsDialog,
    actions: Actions,
    play: Play,
    mode: profiles.RouteMode,
    wanted: list[str],
    excluded: list[str],
    after: tuple[str, tuple[str, ...]],
) -> None:
    before = profiles.route_policy(mode, wanted, excluded)
    profiles.save(profiles.changed(profiles.load("home"), policy=before), replace=True)
    actions.profiles_moved()

    async def story() -> None:
        choose(dialog, "lan", True)
        await dialog.settled()
        policy = profiles.load("home").policy
        assert policy.lan
        assert (policy.mode, tuple(map(str, policy.excluded))) == after
        choose(dialog, "lan", False)
        await dialog.settled()

    play(story())
    assert profiles.load("home").policy == before


def test_settings_of_the_app_are_stored(dialog: SettingsDialog, play: Play) -> None:
    async def story() -> None:
        for key, value in (("notifications", False), ("language", "de"), ("log_level", "debug")):
            choose(dialog, key, value)
            await dialog.settled()

    play(story())
    assert settings.load_settings() == Settings("", False, "de", "debug")


def test_a_chosen_mode_of_the_kill_switch_says_what_it_does(
    dialog: SettingsDialog, play: Play
) -> None:
    async def story() -> None:
        assert "goes directly to the internet" in texts(dialog)
        choose(dialog, "kill_switch", "always")
        await dialog.settled()
        assert "even after this computer restarts" in texts(dialog)

    play(story())


def test_what_somebody_edits_meanwhile_is_seen(dialog: SettingsDialog, qtbot: QtBot) -> None:
    file = settings.settings_file()
    settings.save_settings(Settings(language="de"))
    choice = dialog.app_rows["language"].choice
    assert choice is not None
    qtbot.waitUntil(lambda: choice.currentData() == "de", timeout=5000)
    assert file.exists()


def test_saving_keeps_comments_and_what_a_newer_version_wrote() -> None:
    file = settings.settings_file()
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text('# mine\nfuture = 7\nlanguage = "de"\n\n[table]\nnotifications = 3\n')
    settings.save_settings(Settings(language="en", notifications=False))
    text = file.read_text()
    assert "# mine\nfuture = 7\n" in text
    assert tomllib.loads(text)["table"] == {"notifications": 3}
    assert settings.load_settings() == Settings(language="en", notifications=False)


def test_a_broken_file_is_told_defaults_hold_and_it_is_kept(
    dialog: SettingsDialog, play: Play
) -> None:
    file = settings.settings_file()
    file.write_text("language = ???\n")
    dialog.refresh()
    assert "app.toml is not TOML, defaults are used" in texts(dialog)
    settings.save_settings(Settings(log_level="debug"))
    assert file.with_name("app.toml.broken").read_text() == "language = ???\n"
    assert settings.load_settings() == Settings(log_level="debug")
    file.write_text('log_level = "loud"\n')
    assert settings.examine_settings()[0] == Settings()
    said = settings.examine_settings()[1][0]
    assert said.startswith('setting log_level is ignored: it has to be "warning" or ')


def test_a_disk_that_refuses_is_told(
    dialog: SettingsDialog, play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_path: Path, _data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(settings.paths, "write_private", full)

    async def story() -> None:
        choose(dialog, "language", "de")
        await dialog.settled()
        assert "cannot be written: No space left on device" in texts(dialog)

    play(story())
    with pytest.raises(QvpnError):
        settings.save_settings(Settings(language="en"))


@pytest.mark.parametrize("direction", list(Qt.LayoutDirection)[:2])
def test_every_control_has_a_name_is_reached_by_keyboard_and_fits(
    dialog: SettingsDialog, direction: Qt.LayoutDirection
) -> None:
    dialog.setLayoutDirection(direction)
    assert unnamed(dialog) == []
    assert unreachable(dialog) == []
    assert dialog.minimumSizeHint().width() <= 520
    assert not dialog.grab().isNull()
