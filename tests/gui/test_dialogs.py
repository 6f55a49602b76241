"""Invites, profiles and defects: what a person does in the smaller windows."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path

import pytest
from PySide6.QtCore import QMimeData, QPointF, Qt, QUrl
from PySide6.QtGui import QDropEvent, QGuiApplication
from PySide6.QtWidgets import QApplication, QFileDialog, QMessageBox, QPushButton
from pytestqt.qtbot import QtBot

from qvpn_core.auth.invite import Gateway, Invite
from qvpn_core.client import profiles
from qvpn_gui import autostart, settings
from qvpn_gui.actions import Actions
from qvpn_gui.defects import Defects
from qvpn_gui.dialogs.defect import DefectDialog
from qvpn_gui.dialogs.profiles import ProfilesDialog
from qvpn_gui.loop import Loop
from qvpn_gui.session_model import SessionModel
from qvpn_gui.widgets.invite_form import InviteForm
from qvpn_gui.words import Words
from tests.gui.conftest import Play, until
from tests.gui.controls import unnamed, unreachable
from tests.gui.samples import STATUSES

PIN = "sha256/" + "A" * 43 + "="


def link(*, expires: float = 3600) -> str:
    """An invite to a port where nobody answers."""
    moment = int(time.time() + expires)
    return Invite((Gateway("127.0.0.1", 9),), b"s" * 16, (PIN,), expires=moment).link


@pytest.fixture
def form(qtbot: QtBot, words: Words) -> InviteForm:
    form = InviteForm(words)
    qtbot.addWidget(form)
    form.show()
    return form


def test_a_pasted_invite_says_whose_it_is_and_waits_for_the_button(form: InviteForm) -> None:
    assert not form.add.isEnabled()
    form.text.setPlainText(link())
    assert "Invite to 127.0.0.1:9, good until" in form.verdict.text()
    assert form.name.text() == "127.0.0.1"
    assert form.add.isEnabled()
    assert unnamed(form) == []
    assert unreachable(form) == []


def test_a_whole_mail_will_do(form: InviteForm) -> None:
    whole = link()
    form.text.setPlainText(f"Hello,\n\n> {whole[:40]}\n> {whole[40:]}\n\nyour administrator")
    assert "Invite to 127.0.0.1:9" in form.verdict.text()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("hello", "There is no invite in this text"),
        (link()[:-20], "The invite is cut off"),
        (link(expires=-60), "The invite has expired"),
        ("x" * 200_000, "There is no invite in this text"),
    ],
)
def test_what_is_no_invite_is_told_as_one_types(form: InviteForm, text: str, told: str) -> None:
    form.text.setPlainText(text)
    assert form.verdict.text().startswith(told)
    assert not form.add.isEnabled()


def test_a_file_can_be_opened_or_dropped(form: InviteForm, tmp_path: Path) -> None:
    file = tmp_path / "invite.eml"
    file.write_text(f"Subject: VPN\n\n{link()}\n")
    form.read_file(file)
    assert form.add.isEnabled()
    form.clear()
    data = QMimeData()
    data.setUrls([QUrl.fromLocalFile(str(file))])
    drop = QDropEvent(
        QPointF(5, 5), Qt.DropAction.CopyAction, data,
        Qt.MouseButton.LeftButton, Qt.KeyboardModifier.NoModifier,
    )  # fmt: skip
    form.dropEvent(drop)
    assert form.add.isEnabled()
    form.clear()
    form.read_file(tmp_path / "missing")
    assert "missing cannot be read" in form.verdict.text()


def test_a_gateway_that_does_not_answer_leaves_the_invite_in_place(
    form: InviteForm, play: Play
) -> None:
    async def story() -> None:
        form.text.setPlainText(link())
        form.add.click()
        assert "Registering" in form.verdict.text()
        assert not form.text.isEnabled()
        await until(lambda: "Registering" not in form.verdict.text())
        assert form.verdict.text().startswith("The gateway does not answer")
        assert form.add.isEnabled()
        assert profiles.names() == []

    play(story())


@pytest.fixture
def dialog(qtbot: QtBot, model: SessionModel, actions: Actions, words: Words) -> ProfilesDialog:
    dialog = ProfilesDialog(model, actions, words)
    qtbot.addWidget(dialog)
    dialog.show()
    return dialog


async def settled(dialog: ProfilesDialog) -> None:
    await until(lambda: dialog._task is None)


def rename(dialog: ProfilesDialog, new: str) -> None:
    item = dialog.list.currentItem()
    assert item is not None
    item.setText(new)


def test_profiles_are_listed_with_what_they_are(dialog: ProfilesDialog) -> None:
    assert [dialog.list.item(row).text() for row in range(dialog.list.count())] == ["home", "work"]
    assert dialog.chosen == "home"
    assert "home.example.org" in dialog.about.text()
    assert unnamed(dialog) == []
    assert unreachable(dialog) == []
    dialog.add.click()
    assert unnamed(dialog) == []
    assert unreachable(dialog) == []


def test_a_profile_is_renamed_in_its_place(dialog: ProfilesDialog, play: Play) -> None:
    settings.save_settings(settings.Settings(connect_at_start="home"))

    async def story() -> None:
        rename(dialog, "office")
        await settled(dialog)
        assert profiles.names() == ["office", "work"]
        assert settings.load_settings().connect_at_start == "office"
        dialog.list.setCurrentRow(0)
        rename(dialog, "work")
        await settled(dialog)
        assert "exists" in dialog.verdict.text()
        assert profiles.names() == ["office", "work"]
        dialog.list.setCurrentRow(0)
        rename(dialog, "../etc")
        await settled(dialog)
        assert "cannot name a profile" in dialog.verdict.text()

    play(story())


def answer(dialog: ProfilesDialog, words: str) -> None:
    box = dialog.findChild(QMessageBox)
    assert box is not None
    (button,) = (one for one in box.buttons() if one.text().replace("&", "") == words)
    button.click()


def test_deleting_asks_first_and_says_what_is_lost(dialog: ProfilesDialog, play: Play) -> None:
    async def story() -> None:
        dialog.delete.click()
        box = dialog.findChild(QMessageBox)
        assert box is not None
        assert "home and its key" in box.text()
        answer(dialog, "Cancel")
        await settled(dialog)
        assert profiles.names() == ["home", "work"]
        dialog.delete.click()
        answer(dialog, "Delete")
        await settled(dialog)
        assert profiles.names() == ["work"]
        assert dialog.chosen == "work"

    play(story())


def test_a_profile_in_use_is_left_alone(dialog: ProfilesDialog, model: SessionModel) -> None:
    dialog.list.setCurrentRow(1)
    model.show(STATUSES["connected"])
    assert not dialog.delete.isEnabled()
    assert not dialog.rename.isEnabled()
    assert dialog.export.isEnabled()


def test_an_export_has_no_secret(
    dialog: ProfilesDialog, play: Play, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "out.toml"
    monkeypatch.setattr(QFileDialog, "getSaveFileName", lambda *_: (str(file), ""))

    async def story() -> None:
        dialog.export.click()
        await settled(dialog)
        assert "home.example.org" in file.read_text()
        assert "token" not in file.read_text()
        monkeypatch.setattr(QFileDialog, "getSaveFileName", lambda *_: ("/proc/no", ""))
        dialog.export.click()
        await settled(dialog)
        assert "/proc/no cannot be written" in dialog.verdict.text()

    play(story())


def test_starting_with_the_session_and_connecting_then(
    dialog: ProfilesDialog, play: Play, tmp_path: Path
) -> None:
    async def story() -> None:
        assert not autostart.is_on()
        dialog.with_session.click()
        await settled(dialog)
        assert autostart.is_on()
        entry = (tmp_path / "xdg/autostart/io.github.qvpn.desktop").read_text()
        assert " --minimized\n" in entry
        dialog.at_start.click()
        await settled(dialog)
        assert settings.load_settings().connect_at_start == "home"
        dialog.at_start.click()
        await settled(dialog)
        dialog.with_session.click()
        await settled(dialog)
        assert settings.load_settings().connect_at_start == ""
        assert not autostart.is_on()

    play(story())


def test_a_defect_is_shown_once_with_its_report_and_the_app_goes_on(
    loop: Loop, play: Play, caplog: pytest.LogCaptureFixture
) -> None:
    defects = Defects(loop)
    quits: list[bool] = []
    defects.quit.connect(lambda: quits.append(True))

    async def story() -> None:
        sys.excepthook(ZeroDivisionError, ZeroDivisionError("first"), None)
        asyncio.get_running_loop().call_soon(lambda: {}["second"])
        await until(lambda: defects.dialog is not None)
        dialog = defects.dialog
        assert "ZeroDivisionError" in dialog.report.toPlainText()
        assert "qvpn 0." in dialog.report.toPlainText()
        assert unnamed(dialog) == []
        buttons = {one.text().replace("&", ""): one for one in dialog.findChildren(QPushButton)}
        buttons["Copy report"].click()
        assert "ZeroDivisionError" in QGuiApplication.clipboard().text()
        buttons["Quit qvpn"].click()
        assert quits == [True]
        buttons["Continue"].click()
        await until(lambda: defects.dialog is None)

    try:
        play(story())
    finally:
        defects.close()
    assert caplog.text.count("a defect") == 2
    assert [one for one in QApplication.topLevelWidgets() if isinstance(one, DefectDialog)] == []
