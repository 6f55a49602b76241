"""Which versions a failure happened with, for whoever is to find its cause."""

from __future__ import annotations

import platform

from PySide6.QtCore import qVersion


def versions() -> str:
    """The versions of qvpn, Python, Qt and Linux, in a line."""
    from importlib.metadata import version  # slow to import, and rarely needed

    return (
        f"qvpn {version('qvpn')}, Python {platform.python_version()}, Qt {qVersion()}, "
        f"Linux {platform.release()}"
    )
