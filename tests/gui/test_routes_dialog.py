"""The route dialog: a list that is judged as it is typed, and applied to a session that lives."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
from msgspec.structs import replace
from PySide6.QtCore import Qt
from PySide6.QtWidgets import QApplication, QLabel, QRadioButton
from pytestqt.qtbot import QtBot

from qvpn_core.client import control, profiles
from qvpn_core.client.route_list import Entry
from qvpn_core.client.status import Status
from qvpn_gui.actions import Actions
from qvpn_gui.dialogs.routes import RoutesDialog
from qvpn_gui.dialogs.routes_table import COMMENT, DESTINATION, EXCEPTION
from qvpn_gui.session_model import SessionModel
from tests.gui.conftest import Play
from tests.gui.controls import unnamed, unreachable
from tests.gui.samples import STATUSES

CONNECTED = replace(STATUSES["connected"], profile="home")


@pytest.fixture
def dialog(qtbot: QtBot, model: SessionModel, actions: Actions) -> RoutesDialog:
    profile = profiles.load("home")
    policy = profiles.route_policy("only", ["10.0.0.0/8"], ["10.1.0.0/16"])
    profiles.save(profiles.changed(profile, policy=policy), replace=True)
    dialog = RoutesDialog(model, actions)
    qtbot.addWidget(dialog)
    return dialog


def texts(dialog: RoutesDialog) -> str:
    """Every text that is seen."""
    return "\n".join(it.text() for it in dialog.findChildren(QLabel) if it.isVisibleTo(dialog))


def rows(dialog: RoutesDialog) -> list[tuple[str, str]]:
    """The resulting routes."""
    table = dialog.view.result.model()
    return [
        (table.index(row, 0).data(), table.index(row, 1).data()) for row in range(table.rowCount())
    ]


class Agent:
    """The control socket of an agent whose gateway carries 10.0.0.0/8."""

    def __init__(self) -> None:
        self.asked: list[control.Question] = []

    async def watch(self) -> AsyncGenerator[Status, None]:
        yield CONNECTED

    async def answer(self, request: control.Question) -> control.Reply:
        self.asked.append(request)
        if isinstance(request, control.OfferRequest):
            return control.OfferReply(("10.9.0.7/32",), ("10.0.0.0/8", "192.0.2.0/24"), 1400)
        return control.Done()


def test_the_list_of_the_profile_is_shown_with_what_comes_of_it(
    dialog: RoutesDialog, play: Play
) -> None:
    async def story() -> None:
        await dialog.start()
        assert dialog.view.mode == "only"
        assert [entry.line for entry in dialog.lines.entries] == ["10.0.0.0/8", "!10.1.0.0/16"]
        assert rows(dialog) == [("10.0.0.0/8", "Tunnel"), ("10.1.0.0/16", "Direct")]
        assert not dialog.view.apply.isEnabled()
        dialog.done(0)

    play(story())


def test_what_is_typed_is_judged_at_once(dialog: RoutesDialog, play: Play) -> None:
    async def story() -> None:
        await dialog.start()
        view = dialog.view
        view.add_text.setText("10.0.0.1/8")
        assert not view.add.isEnabled()
        assert "did you mean 10.0.0.0/8" in texts(dialog)
        view.add_text.setText("192.0.2.0/24, 198.51.100.7 # test")
        assert "did you mean" not in texts(dialog)
        view.add.click()
        assert dialog.lines.entries[2:] == [
            Entry("192.0.2.0/24", comment="test"),
            Entry("198.51.100.7", comment="test"),
        ]
        assert view.apply.isEnabled()
        dialog.done(0)

    play(story())


def test_lines_are_edited_in_place(dialog: RoutesDialog, play: Play) -> None:
    async def story() -> None:
        await dialog.start()
        lines = dialog.lines
        assert not lines.setData(lines.index(0, DESTINATION), "10.0.0.0/99")
        assert "is no destination" in texts(dialog)
        assert lines.setData(lines.index(0, DESTINATION), "10.0.0.0/9")
        assert lines.setData(lines.index(0, COMMENT), "a # b")
        check = Qt.ItemDataRole.CheckStateRole
        assert lines.setData(lines.index(1, EXCEPTION), Qt.CheckState.Unchecked, check)
        assert [it.line for it in lines.entries] == ["10.0.0.0/9  # a b", "10.1.0.0/16"]
        await dialog._compute()
        assert "10.0.0.0/9 covers this already" in texts(dialog)
        dialog.view.table.selectRow(1)
        dialog.view.remove.click()
        assert [it.text for it in lines.entries] == ["10.0.0.0/9"]
        dialog.done(0)

    play(story())


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ("10.1.2.3", "10.1.2.3 goes directly. Your line 10.1.0.0/16 says so."),
        ("10.2.2.3", "10.2.2.3 uses the tunnel. Your line 10.0.0.0/8 says so."),
        ("8.8.8.8", "8.8.8.8 goes directly. Nothing that uses the tunnel covers it."),
        ("127.0.0.1", "127.0.0.1 goes directly"),
        ("localhost", "goes directly"),
        ("no.such.invalid", "no.such.invalid has no address."),
        ("what is this", "is no destination"),
    ],
)
def test_where_something_would_go_is_answered_with_the_line_that_says_so(
    dialog: RoutesDialog, play: Play, asked: str, words: str
) -> None:
    async def story() -> None:
        await dialog.start()
        dialog.view.where.setText(asked)
        await dialog._answer()
        assert words in texts(dialog)
        dialog.done(0)

    play(story())


def test_a_live_session_follows_and_the_profile_keeps_the_lines(
    dialog: RoutesDialog, model: SessionModel, play: Play
) -> None:
    model.show(CONNECTED)

    async def story() -> None:
        agent = Agent()
        async with control.serve(agent.answer, agent.watch):
            await dialog.start()
            dialog.view.offered.trigger()
            texts_now = [it.text for it in dialog.lines.entries]
            assert texts_now == ["10.0.0.0/8", "10.1.0.0/16", "192.0.2.0/24"]
            dialog.lines.add([Entry("198.51.100.0/24", comment="not theirs")])
            await dialog._compute()
            assert "does not carry this" in texts(dialog)
            assert ("198.51.100.0/24", "Blocked") in rows(dialog)
            dialog.lines.remove([3])
            dialog.lines.setData(dialog.lines.index(2, COMMENT), "lab")
            await dialog.apply(close=True)
        request = agent.asked[-1]
        assert isinstance(request, control.RoutesRequest)
        assert request.destinations == ("10.0.0.0/8", "192.0.2.0/24")
        assert request.excluded == ("10.1.0.0/16",)
        kept = profiles.load("home")
        assert kept.route_lines == ("10.0.0.0/8", "!10.1.0.0/16", "192.0.2.0/24  # lab")
        assert not dialog.isVisible()

    play(story())


def test_what_cannot_be_applied_is_told_and_nothing_is_stored(
    dialog: RoutesDialog, play: Play
) -> None:
    async def story() -> None:
        await dialog.start()
        before = profiles.load("home")
        dialog.lines.remove([0])
        await dialog.apply(close=True)
        assert "Nothing would use the tunnel" in texts(dialog)
        assert profiles.load("home") == before
        dialog.done(0)

    play(story())


def test_a_list_is_exported_and_imported_with_its_comments(
    dialog: RoutesDialog, play: Play, tmp_path: Path
) -> None:
    file = tmp_path / "list.txt"

    async def story() -> None:
        await dialog.start()
        dialog.lines.add([Entry("", comment="offices"), Entry("192.0.2.7", comment="lab")])
        before = list(dialog.lines.entries)
        await dialog.export_file(file)
        dialog.lines.show([])
        await dialog.import_file(file)
        assert dialog.lines.entries == before
        file.write_text("10.0.0.0/8\nwhat is this\n")
        await dialog.import_file(file)
        assert "Line 2 of list.txt" in texts(dialog)
        file.write_bytes(b"\xff\xfe")
        await dialog.import_file(file)
        assert "list.txt cannot be read" in texts(dialog)
        await dialog.import_file(tmp_path / "none.txt")
        assert "none.txt cannot be read" in texts(dialog)
        await dialog.export_file(tmp_path / "no" / "such.txt")
        assert "such.txt cannot be written" in texts(dialog)
        assert dialog.lines.entries == before
        dialog.done(0)

    play(story())


def test_names_are_looked_up_and_kept(dialog: RoutesDialog, play: Play) -> None:
    async def story() -> None:
        await dialog.start()
        dialog.lines.add([Entry("localhost"), Entry("no.such.invalid")])
        await dialog._compute()
        assert "no.such.invalid: This name has no address now" in texts(dialog)
        await dialog.apply()
        kept = profiles.load("home")
        assert any(it.startswith("localhost 127.0.0.1/32") for it in kept.lookups)
        assert "127.0.0.1/32" in map(str, kept.policy.destinations)
        dialog.done(0)

    play(story())


def test_closing_ends_what_still_runs(dialog: RoutesDialog, play: Play) -> None:
    async def story() -> None:
        task = dialog.start()
        dialog.done(0)
        with pytest.raises(asyncio.CancelledError):
            await task

    play(story())


def test_addresses_are_not_turned_round_where_one_reads_from_the_right(
    qapp: QApplication, dialog: RoutesDialog, play: Play
) -> None:
    async def story() -> None:
        await dialog.start()
        qapp.setLayoutDirection(Qt.LayoutDirection.RightToLeft)
        try:
            assert rows(dialog)[0][0] == "\u206610.0.0.0/8\u2069"
        finally:
            qapp.setLayoutDirection(Qt.LayoutDirection.LeftToRight)
        assert rows(dialog)[0][0] == "10.0.0.0/8"
        dialog.done(0)

    play(story())


@pytest.mark.parametrize("direction", list(Qt.LayoutDirection)[:2])
@pytest.mark.parametrize("mode", ["all", "only", "all-except"])
def test_every_control_has_a_name_is_reached_by_keyboard_and_fits(
    dialog: RoutesDialog, play: Play, qapp: QApplication, mode: str, direction: Qt.LayoutDirection
) -> None:
    async def story() -> None:
        await dialog.start()
        dialog.setLayoutDirection(direction)
        dialog.show()
        dialog.view.show_mode(mode)  # type: ignore[arg-type]
        assert unnamed(dialog) == []
        # Arrow keys go from one radio button to the next.
        assert [it for it in unreachable(dialog) if not isinstance(it, QRadioButton)] == []
        assert dialog.minimumSizeHint().width() <= 900
        assert not dialog.grab().isNull()
        dialog.done(0)

    play(story())
