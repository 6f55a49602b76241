"""Files that others edit too: the command line, an editor, a second hand. It reads none of them."""

from __future__ import annotations

import logging
from pathlib import Path

from PySide6.QtCore import QFileSystemWatcher, QObject, Signal

from qvpn_core.client import paths

log = logging.getLogger("qvpn.app")


class FileWatch(QObject):
    """Files of one directory. An editor may replace a file or write into it: both are seen."""

    changed = Signal()

    def __init__(self, directory: Path, pattern: str, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._directory = directory
        self._pattern = pattern
        self._watcher = QFileSystemWatcher(self)
        try:
            paths.make_private(directory)
        except OSError as error:
            log.warning("%s cannot be watched: %s", directory, error)
            return
        self._watcher.addPath(str(directory))
        self._watch_files()
        self._watcher.directoryChanged.connect(self._moved)
        self._watcher.fileChanged.connect(self._moved)

    def _moved(self) -> None:
        self._watch_files()
        self.changed.emit()

    def _watch_files(self) -> None:
        # A file that was replaced is no longer watched; what is, is not watched twice.
        files = {str(path) for path in self._directory.glob(self._pattern)}
        new = files - set(self._watcher.files())
        if new:
            self._watcher.addPaths(sorted(new))
