"""Starting with the desktop's session (Desktop Application Autostart Specification)."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from qvpn_core.client import paths
from qvpn_core.errors import QvpnError

_NAME = "io.github.qvpn.desktop"


def is_on() -> bool:
    """Whether the app starts with the session."""
    return _file().exists()


def set_on(on: bool) -> None:
    """Start with the session, in the background, or do not. Raises QvpnError."""
    file = _file()
    try:
        if not on:
            file.unlink(missing_ok=True)
            return
        file.parent.mkdir(parents=True, exist_ok=True)
        paths.write_private(file, _entry().encode())
    except OSError as error:
        raise QvpnError(f"{file} cannot be written", error.strerror or "the disk refuses") from None


def _entry() -> str:
    return (
        "[Desktop Entry]\n"
        "Type=Application\n"
        "Name=qvpn\n"
        "Icon=io.github.qvpn\n"
        f"Exec={_quoted(_program())} --minimized\n"
        "X-GNOME-Autostart-enabled=true\n"
    )


def _program() -> str:
    """The command that started us, where the next session finds it too."""
    return str(Path(sys.argv[0]).absolute())


def _quoted(word: str) -> str:
    """An argument of Exec (Desktop Entry Specification, the Exec key)."""
    for special in ("\\", '"', "`", "$"):
        word = word.replace(special, "\\" + special)
    return '"' + word.replace("\\", "\\\\").replace("%", "%%") + '"'


def _file() -> Path:
    base = os.environ.get("XDG_CONFIG_HOME", "")
    root = Path(base) if os.path.isabs(base) else Path("~/.config").expanduser()
    return root / "autostart" / _NAME
