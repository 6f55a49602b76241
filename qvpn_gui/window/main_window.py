"""The main window: which profile, its session, and the way to everything else."""

from __future__ import annotations

from PySide6.QtCore import QEvent, Qt, QTimer, QUrl, Signal
from PySide6.QtGui import (
    QAction,
    QActionGroup,
    QCloseEvent,
    QDesktopServices,
    QKeyEvent,
    QKeySequence,
)
from PySide6.QtWidgets import (
    QAbstractButton,
    QFrame,
    QHBoxLayout,
    QMainWindow,
    QMenu,
    QScrollArea,
    QStackedWidget,
    QVBoxLayout,
    QWidget,
)

from qvpn_core.client.states import State
from qvpn_core.errors import QvpnError, UsageError
from qvpn_gui import icons, theme
from qvpn_gui.actions import Actions
from qvpn_gui.session_model import SessionModel
from qvpn_gui.widgets.buttons import MenuButton
from qvpn_gui.widgets.texts import Told
from qvpn_gui.window.first_run import FirstRunPage
from qvpn_gui.window.session_page import SessionPage
from qvpn_gui.words import Words

_NOTE_SECONDS = 12
#: Of a window that shows all of a session, in device-independent pixels.
_HEIGHT = 840


class MainWindow(QMainWindow):
    """Closing it leaves what runs; `closed` says so. `menu` is open to more entries."""

    closed = Signal()
    #: The user wants to see all profiles.
    profiles = Signal()
    quit = Signal()

    def __init__(
        self,
        model: SessionModel,
        actions: Actions,
        words: Words,
        parent: QWidget | None = None,
    ) -> None:
        super().__init__(parent)
        self._model = model
        self._actions = actions
        self._words = words
        self.first_run = FirstRunPage(words)
        self.session = SessionPage(model, actions, words)
        self.menu = QMenu(self)
        self._profile_menu = QMenu(self)
        self._profile_button = MenuButton(self._profile_menu)
        self._menu_button = MenuButton(self.menu)
        self._note = Told()
        self._note_timer = QTimer(self, singleShot=True, interval=_NOTE_SECONDS * 1000)
        self._pages = QStackedWidget()
        self._page: QWidget | None = None
        self._build()
        self._build_menu()
        self._note_timer.timeout.connect(self._note.hide)
        actions.failed.connect(self._show_failure)
        actions.portal_open.connect(self._open_portal)
        actions.profiles_changed.connect(self.refresh)
        model.changed.connect(self.refresh)
        self.session.invite.connect(self.profiles)
        self.refresh()

    def _build(self) -> None:
        self.setWindowTitle("qvpn")
        self._profile_button.emphasise(1.05)
        self._menu_button.setAccessibleName(self.tr("Menu"))
        self._menu_button.setToolTip(self.tr("Menu"))
        self._menu_button.setShortcut(QKeySequence(Qt.Key.Key_F10))
        self._note.hide()
        for page in (self.first_run, self.session):
            self._pages.addWidget(_scrolling(page))
        header = QHBoxLayout()
        header.setContentsMargins(theme.SPACE + 4, theme.SPACE, theme.SPACE, 0)
        header.addWidget(self._profile_button)
        header.addStretch(1)
        header.addWidget(self._menu_button)
        body = QWidget()
        self.setCentralWidget(body)
        rows = QVBoxLayout(body)
        rows.setContentsMargins(0, 0, 0, 0)
        rows.setSpacing(0)
        rows.addLayout(header)
        note = QVBoxLayout()
        note.setContentsMargins(theme.MARGIN, 0, theme.MARGIN, 0)
        note.addWidget(self._note)
        rows.addLayout(note)
        rows.addWidget(self._pages, 1)
        self._colour()
        # All of a session, where the screen is high enough.
        self.resize(440, min(_HEIGHT, round(self.screen().availableGeometry().height() * 0.9)))
        self.setMinimumWidth(360)

    def _build_menu(self) -> None:
        profiles = QAction(self.tr("&Profiles…"), self)
        profiles.triggered.connect(self.profiles)
        end = QAction(self.tr("&Quit"), self)
        end.setShortcut(QKeySequence(QKeySequence.StandardKey.Quit))
        end.triggered.connect(self.quit)
        close = QAction(self)
        close.setShortcut(QKeySequence(QKeySequence.StandardKey.Close))
        close.triggered.connect(self.close)
        self.menu.addAction(profiles)
        #: Before this one, dialogs add their own.
        self.end_of_menu = self.menu.addSeparator()
        self.menu.addAction(end)
        self.addActions([profiles, end, close])

    def refresh(self) -> None:
        """Show the right page, and the profiles there are."""
        names = self._actions.profile_names()
        first = not names and self._model.state is State.DISCONNECTED
        if first:
            self._turn_to(self.first_run, self.first_run.form.text)
        else:
            self._turn_to(self.session, self.session.button)
        self._profile_button.setVisible(not first)
        chosen = self._actions.profile
        shown = [action.text() for action in self._profile_menu.actions() if action.isCheckable()]
        if shown != names:
            self._list_profiles(names)
        for action in self._profile_menu.actions():
            action.setChecked(action.text() == chosen)
        self._profile_button.setText(f"{chosen or ''} ▾")
        self._profile_button.setAccessibleName(self.tr("Profile {name}").format(name=chosen or ""))

    def _turn_to(self, page: QWidget, control: QWidget) -> None:
        if page is not self._page:
            self._page = page
            self._pages.setCurrentIndex(0 if page is self.first_run else 1)
            control.setFocus()

    def _list_profiles(self, names: list[str]) -> None:
        self._profile_menu.clear()
        group = QActionGroup(self._profile_menu)
        for name in names:
            action = QAction(name, self._profile_menu, checkable=True)
            action.triggered.connect(lambda _checked, name=name: self._actions.choose(name))
            group.addAction(action)
            self._profile_menu.addAction(action)
        self._profile_menu.addSeparator()
        self._profile_menu.addAction(self.tr("&Add or change…")).triggered.connect(self.profiles)

    def _show_failure(self, error: QvpnError) -> None:
        """A command that failed beside the session: for a while, at the top."""
        self._note.tell(self._words.problem(error))
        self._note.show()
        self._note_timer.start()

    def _open_portal(self, url: str) -> None:
        if not QDesktopServices.openUrl(QUrl(url)):
            self._show_failure(UsageError("no browser could be started", f"open {url} in one"))

    def present(self) -> None:
        """Come to the front."""
        self.setWindowState(self.windowState() & ~Qt.WindowState.WindowMinimized)
        self.show()
        self.raise_()
        self.activateWindow()

    def keyPressEvent(self, event: QKeyEvent) -> None:
        """Return presses what has the focus, as it does in dialogs."""
        control = self.focusWidget()
        if event.key() in (Qt.Key.Key_Return, Qt.Key.Key_Enter) and isinstance(
            control, QAbstractButton
        ):
            control.click()
        else:
            super().keyPressEvent(event)

    def changeEvent(self, event: QEvent) -> None:
        super().changeEvent(event)
        if event.type() == QEvent.Type.PaletteChange:
            self._colour()

    def _colour(self) -> None:
        self._menu_button.setIcon(icons.icon("menu", self.palette().windowText().color()))

    def closeEvent(self, event: QCloseEvent) -> None:
        super().closeEvent(event)
        self.closed.emit()


def _scrolling(page: QWidget) -> QScrollArea:
    """For small screens and large fonts."""
    area = QScrollArea()
    area.setWidget(page)
    area.setWidgetResizable(True)
    area.setFrameShape(QFrame.Shape.NoFrame)
    area.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
    area.setFocusPolicy(Qt.FocusPolicy.NoFocus)
    return area
