"""What the user asks for reaches the agent that runs, and is stored only when that took it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
from msgspec.structs import replace
from PySide6.QtCore import QObject, QUrl, Slot
from PySide6.QtGui import QDesktopServices
from PySide6.QtWidgets import QPushButton
from pytestqt.qtbot import QtBot

from qvpn_core.client import control, profiles
from qvpn_core.client.states import State
from qvpn_core.client.status import Status
from qvpn_core.errors import QvpnError, UsageError
from qvpn_gui.actions import Actions
from qvpn_gui.dialogs.settings import SettingsDialog
from qvpn_gui.session_model import SessionModel
from qvpn_gui.window.main_window import MainWindow
from qvpn_gui.words import Words
from tests.gui.conftest import Play
from tests.gui.samples import STATUSES

HOME = {name: replace(status, profile="home") for name, status in STATUSES.items()}


class Agent:
    """The control socket of an agent that does what it is asked, or refuses."""

    def __init__(self, *, refuses: bool = False) -> None:
        self.asked: list[control.Question] = []
        self._refuses = refuses

    async def watch(self) -> AsyncGenerator[Status, None]:
        yield HOME["connected"]

    async def answer(self, request: control.Question) -> control.Reply:
        self.asked.append(request)
        if self._refuses:
            raise UsageError("the disk is full", "remove something")
        match request:
            case control.SignInRequest():
                return control.SignInReply("http://portal.example/fresh")
            case control.ConnectRequest():
                return control.StatusReply(HOME["connected"])
        return control.Done()


@asynccontextmanager
async def running(agent: Agent) -> AsyncIterator[None]:
    async with control.serve(agent.answer, agent.watch):
        yield


class Browser(QObject):
    """What the desktop opens pages with."""

    def __init__(self) -> None:
        super().__init__()
        self.opened: list[str] = []

    @Slot(QUrl)
    def open(self, url: QUrl) -> None:
        self.opened.append(url.toString())


@pytest.fixture
def browser(qtbot: QtBot) -> Iterator[Browser]:
    browser = Browser()
    QDesktopServices.setUrlHandler("http", browser, "open")
    yield browser
    QDesktopServices.unsetUrlHandler("http")


@pytest.fixture
def window(qtbot: QtBot, model: SessionModel, actions: Actions, words: Words) -> MainWindow:
    window = MainWindow(model, actions, words)
    qtbot.addWidget(window)
    window.show()
    return window


@pytest.mark.parametrize("state", ["connecting", "connected", "reconnecting"])
def test_a_kill_switch_is_changed_at_once_where_a_tunnel_is_wanted(
    model: SessionModel, actions: Actions, play: Play, state: str
) -> None:
    model.show(HOME[state])

    async def story() -> None:
        agent = Agent()
        async with running(agent):
            actions.set_kill_switch("always")
            await actions.settled()
        assert agent.asked == [control.KillSwitchRequest("always")]

    play(story())
    assert profiles.load("home").kill_switch == "always"


def test_a_kill_switch_that_is_refused_is_neither_stored_nor_shown(
    qtbot: QtBot, model: SessionModel, actions: Actions, play: Play
) -> None:
    model.show(HOME["connected"])
    dialog = SettingsDialog(actions)
    qtbot.addWidget(dialog)
    choice = dialog.profile_rows["kill_switch"].choice
    assert choice is not None

    async def story() -> None:
        async with running(Agent(refuses=True)):
            choice.setCurrentIndex(choice.findData("on"))
            choice.activated.emit(choice.currentIndex())
            await dialog.settled()

    play(story())
    assert profiles.load("home").kill_switch == "off"
    assert choice.currentData() == "off"
    assert "the disk is full" in dialog._problem.text()


def test_without_a_session_a_kill_switch_is_stored_for_the_next(
    model: SessionModel, actions: Actions, play: Play
) -> None:
    async def story() -> None:
        actions.set_kill_switch("on")
        await actions.settled()

    play(story())
    assert profiles.load("home").kill_switch == "on"


def test_switching_off_what_blocks_without_a_session_ends_the_block(
    model: SessionModel, actions: Actions, play: Play
) -> None:
    model.show(HOME["blocked"])

    async def story() -> None:
        agent = Agent()
        async with running(agent):
            actions.set_kill_switch("off")
            await actions.settled()
        assert agent.asked == [control.DownRequest()]

    play(story())


def test_from_a_block_it_is_tried_again_as_the_profile_is_now(
    model: SessionModel, actions: Actions, play: Play
) -> None:
    model.show(HOME["blocked"])
    changed = profiles.changed(profiles.load("home"), transport="tls", kill_switch="on")
    profiles.save(changed, replace=True)

    async def story() -> None:
        agent = Agent()
        async with running(agent):
            actions.toggle()
            await actions.settled()
        assert agent.asked == [control.ConnectRequest(control.Wish.of(changed))]
        assert control.Wish.of(changed).transport == "tls"

    play(story())


@pytest.mark.parametrize("agent", [Agent(), None])
def test_the_sign_in_page_is_let_through_and_opened(
    window: MainWindow, model: SessionModel, actions: Actions, browser: Browser, play: Play,
    agent: Agent | None,
) -> None:  # fmt: skip
    status = HOME["portal"] if agent else replace(HOME["portal"], state=State.FAILED)
    model.show(status)

    async def story() -> None:
        (button,) = (
            one
            for one in window.session.problem.findChildren(QPushButton)
            if "sign-in" in one.text()
        )
        button.click()
        await actions.settled()

    async def beside(agent: Agent) -> None:
        async with running(agent):
            await story()
        assert agent.asked == [control.SignInRequest(300)]

    play(beside(agent) if agent else story())
    assert browser.opened == [f"http://portal.example/{'fresh' if agent else 'login'}"]


def test_a_portal_that_cannot_be_reached_says_why(
    model: SessionModel, actions: Actions, browser: Browser, play: Play
) -> None:
    model.show(HOME["portal"])
    told: list[QvpnError] = []
    actions.failed.connect(told.append)

    async def story() -> None:
        async with running(Agent(refuses=True)):
            actions.sign_in()
            await asyncio.wait_for(actions.settled(), 10)

    play(story())
    assert [str(error) for error in told] == ["the disk is full: remove something"]
    assert browser.opened == []
