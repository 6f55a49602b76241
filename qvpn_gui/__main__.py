"""``qvpn-gui``: the tray app. A second start hands over to the first and ends.

Nothing of Qt is imported before it is known that this start is the first.
"""

from __future__ import annotations

import argparse
import logging
import logging.handlers
import sys
from collections.abc import Sequence

from qvpn_core.client import paths
from qvpn_core.errors import QvpnError
from qvpn_core.parts import require
from qvpn_gui import instance, settings

_LOG_BYTES = 256 << 10


def main(argv: Sequence[str] | None = None) -> int:
    """Run the app; returns the exit status."""
    arguments = _parser().parse_args(argv)
    start = instance.Start(
        arguments.connect, arguments.minimized, token=instance.activation_token()
    )
    try:
        with instance.single() as first:
            if not first:
                instance.hand_over(start)
                return 0
            require("gui", "the app", "PySide6", "qasync", "dbus_fast")
            _log_to_file()
            return _run(start)
    except QvpnError as error:
        print(f"qvpn-gui: {error}", file=sys.stderr)
        return 1


def _run(start: instance.Start) -> int:
    from qvpn_gui.app import live, make_qt
    from qvpn_gui.loop import Loop

    qt = make_qt(sys.argv[:1])
    with Loop(qt) as loop:
        loop.run_until_complete(live(qt, start))
    return 0


def _log_to_file() -> None:
    """What the app and its sessions have to say. No log is no reason to have no app."""
    try:
        directory = paths.make_private(paths.state_dir())
        handler: logging.Handler = logging.handlers.RotatingFileHandler(
            directory / "app.log", maxBytes=_LOG_BYTES, backupCount=1
        )
    except OSError:
        handler = logging.NullHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    log = logging.getLogger("qvpn")
    log.addHandler(handler)
    settings.set_log_level(settings.load_settings())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="qvpn-gui", description="The tray app of qvpn, a QUIC VPN.", allow_abbrev=False
    )
    parser.add_argument(
        "--connect", metavar="PROFILE", nargs="?", const="", help="connect; default: as last time"
    )
    parser.add_argument("--minimized", action="store_true", help="stay in the panel")
    return parser


if __name__ == "__main__":
    sys.exit(main())
