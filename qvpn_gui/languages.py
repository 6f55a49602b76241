"""The language of the app: the desktop's, or the one that is set; English where there is no other.

Translations are made by `tools/translate.py`; Qt's own words come with Qt.
"""

from __future__ import annotations

from importlib.resources import files
from typing import Final

from PySide6.QtCore import QLibraryInfo, QLocale, QTranslator
from PySide6.QtWidgets import QApplication

from qvpn_gui.settings import Language

_DIRECTORY: Final = str(files("qvpn_gui") / "resources" / "translations")


def install(qt: QApplication, language: Language) -> None:
    """Use `language`, or the desktop's when it is empty, for words, numbers and direction."""
    system = QLocale.system()
    chosen = QLocale(language) if language else system
    if chosen.language() != system.language():
        QLocale.setDefault(chosen)
    qt_words = QLibraryInfo.path(QLibraryInfo.LibraryPath.TranslationsPath)
    for name, directory in (("qtbase", qt_words), ("qvpn", _DIRECTORY)):
        translator = QTranslator(qt)
        found = translator.load(chosen, name, "_", directory)
        # English has no words of its own but its plurals.
        if not found and name == "qvpn":
            found = translator.load(f"{name}_en", directory)
        if found:
            qt.installTranslator(translator)
    qt.setLayoutDirection(chosen.textDirection())
