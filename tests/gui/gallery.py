"""Pictures of every window in every state: ``python -m tests.gui.gallery DIRECTORY [SCENE]...``

Light and dark, at 100 % and at 200 %, in English; light at 100 % also in German, in Chinese, and
from right to left. It needs no display. Qt takes the scale from the environment and an app has one
language, so there is a process for each. Without a scene: all.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

#: A variant's name, scale, and language; `rtl` is English from right to left.
_VARIANTS: Final = (
    ("", 1, "en"),
    ("", 2, "en"),
    ("de", 1, "de"),
    ("zh", 1, "zh_CN"),
    ("rtl", 1, "rtl"),
)
_TALL: Final = 840  # pixels of the main window; the screen without a display is small


def main() -> int:
    """Draw everything into the directory that the command line names."""
    directory, *scenes = sys.argv[1:]
    Path(directory).mkdir(parents=True, exist_ok=True)
    if chosen := os.environ.get("QVPN_GALLERY"):
        _draw(Path(directory), scenes, *json.loads(chosen))
        return 0
    for variant in _VARIANTS:
        with tempfile.TemporaryDirectory(prefix="qvpn-gallery-") as home:
            environment = os.environ | {
                "QVPN_GALLERY": json.dumps(variant),
                "QT_QPA_PLATFORM": "offscreen",
                "QT_SCALE_FACTOR": str(variant[1]),
                "QVPN_CONFIG_DIR": f"{home}/config",
                "QVPN_STATE_DIR": f"{home}/state",
                "QVPN_RUNTIME_DIR": f"{home}/run",
                "XDG_CONFIG_HOME": home,
                "LANG": "C.UTF-8",
                "TZ": "UTC",
            }
            command = [sys.executable, "-m", "tests.gui.gallery", directory, *scenes]
            subprocess.run(command, env=environment, check=True, timeout=240)
    return 0


def _draw(directory: Path, scenes: list[str], name: str, scale: int, language: str) -> None:
    from PySide6.QtCore import QEvent, QLocale, Qt

    from qvpn_gui import languages
    from qvpn_gui.app import make_qt
    from qvpn_gui.loop import Loop
    from tests.gui.samples import dark
    from tests.gui.scenes import SCENES, stage

    qt = make_qt(["qvpn-gui"])
    if language == "rtl":
        qt.setLayoutDirection(Qt.LayoutDirection.RightToLeft)
    else:
        languages.install(qt, language)  # type: ignore[arg-type]
    if language in ("en", "rtl"):
        QLocale.setDefault(QLocale(QLocale.Language.English, QLocale.Country.UnitedKingdom))
    palettes = {"light": qt.palette()}
    if not name:
        palettes["dark"] = dark()
    with Loop(qt) as loop:
        for colours, palette in palettes.items():
            qt.setPalette(palette)
            for scene, make in SCENES.items():
                if scenes and scene not in scenes:
                    continue
                with stage(loop.run_until_complete) as on:
                    widget = make(on)
                    if scene.startswith(("window", "first")) and not scene.endswith("menu"):
                        widget.resize(440, _TALL)
                    widget.show()
                    qt.processEvents()
                    end = f"{name}-100" if name else f"{colours}-{scale}00"
                    widget.grab().save(str(directory / f"{scene}-{end}.png"))
                    widget.hide()
                    widget.deleteLater()
                    qt.sendPostedEvents(None, QEvent.Type.DeferredDelete.value)


if __name__ == "__main__":
    sys.exit(main())
