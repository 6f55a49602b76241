"""The kill switch of the chosen profile, as a choice between its modes."""

from __future__ import annotations

from PySide6.QtWidgets import QWidget

from qvpn_core.client.states import KillSwitchMode
from qvpn_gui.actions import Actions
from qvpn_gui.widgets.choices import Choices, with_value


class KillSwitchMenu(Choices):
    """Follows the profile; `present` is its mode in words."""

    def __init__(self, actions: Actions, parent: QWidget) -> None:
        super().__init__("", parent)
        self.setTitle(self.tr("&Kill switch"))
        self._actions = actions
        self.present = ""
        actions.profiles_changed.connect(self.refresh)
        actions.failed.connect(self.refresh)
        self.refresh()

    def refresh(self) -> None:
        """Show the mode of the chosen profile."""
        profile = self._actions.stored_profile()
        now = profile.kill_switch if profile is not None else "off"
        modes: dict[KillSwitchMode, str] = {
            "off": self.tr("Off"),
            "on": self.tr("While connected"),
            "always": self.tr("Always"),
        }
        self.present = modes[now]
        self.offer(
            [
                (words, mode == now, with_value(self._actions.set_kill_switch, mode))
                for mode, words in modes.items()
            ]
        )
