"""Of Qt's wheels, what the app uses: four modules, plugins for a desktop, and what those link to.

The wheel holds a Qt for every purpose, 230 MB of it. Here a use is named and its libraries follow
from what the files link to, so that nothing needed is forgotten and nothing else comes along: no
QML, no web engine, no designer.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from tools.packages import elf
from tools.packages.description import PROJECT, PackageError

#: The distributions that are trimmed.
DISTRIBUTIONS: Final = frozenset(("pyside6-essentials", "shiboken6"))
#: What qvpn_gui imports of PySide6.
MODULES: Final = ("QtCore", "QtGui", "QtSvg", "QtWidgets")
#: Displays; frames of windows where the compositor draws none; what types accents and Chinese.
PLUGINS: Final = (
    "platforms/libqxcb.so",
    "platforms/libqwayland.so",
    "platforms/libqoffscreen.so",
    "platforminputcontexts/libcomposeplatforminputcontextplugin.so",
    "platforminputcontexts/libibusplatforminputcontextplugin.so",
    "wayland-decoration-client/libadwaita.so",
    "wayland-decoration-client/libbradient.so",
    "wayland-shell-integration/libxdg-shell.so",
)
#: The wheels come without the text of their licence, LGPL-3.0, which is upon the GPL-3.0.
_LICENCES: Final = Path("/usr/share/common-licenses")
_QT: Final = Path("PySide6/Qt")
_OURS: Final = PROJECT / "qvpn_gui/resources/translations"


def kept(site: Path) -> frozenset[Path]:
    """The files to take of those in `site`, where the wheels are installed, relative to it.

    Qt's own words come in the languages of the app.
    """
    libraries = {
        path.name: path
        for place in ("PySide6", "shiboken6", str(_QT / "lib"))
        for path in (site / place).glob("*.so*")
    }
    waiting = [site / "PySide6" / f"{name}.abi3.so" for name in MODULES]
    waiting += [site / _QT / "plugins" / name for name in PLUGINS]
    waiting.append(site / "shiboken6/Shiboken.abi3.so")
    found: set[Path] = set()
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.add(path)
            waiting += [libraries[name] for name in elf.needed(path) if name in libraries]
    for place in ("PySide6", "shiboken6", "PySide6/support"):
        found.update((site / place).glob("*.py"))
    languages = [path.stem.removeprefix("qvpn_") for path in _OURS.glob("*.qm")]
    found.update(site / _QT / "translations" / f"qtbase_{name}.qm" for name in languages)
    return frozenset(path.relative_to(site) for path in found)


def licences() -> list[tuple[str, bytes]]:
    """Name and text of each licence. Raises PackageError where the system has no copy of them."""
    try:
        return [(name, (_LICENCES / name).read_bytes()) for name in ("LGPL-3", "GPL-3")]
    except OSError as error:
        raise PackageError(f"{error.filename} is missing: packages are built on Debian") from None
