"""Install this checkout's helper, so that pkexec can start it: for development, as root.

    sudo .venv/bin/python tools/install_helper.py            installs, or replaces
    sudo .venv/bin/python tools/install_helper.py --remove   removes

What root will run is copied to /usr/local/lib/qvpn, where no user can write; a change in the
checkout is not in it until the next call. It writes there and polkit's description, nothing else.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
TARGET = Path("/usr/local/lib/qvpn")
HELPER = TARGET / "qvpn-helper"
POLICY = Path("/usr/share/polkit-1/actions/io.github.qvpn.policy")
#: All that the helper imports, of ours and of others.
OURS = ("__init__.py", "errors.py", "helper", "net", "masque/__init__.py", "masque/domain.py")
THEIRS = ("msgspec", "pyroute2", "jeepney", "pytun")

SCRIPT = """\
#!{python} -IS
import sys

sys.path.insert(0, "{library}")

from qvpn_core.helper.__main__ import main

sys.exit(main())
"""


def install() -> None:
    """Copy everything beside what is there, then swap."""
    new = TARGET.with_name("qvpn.new")
    shutil.rmtree(new, ignore_errors=True)
    library = new / "lib"
    library.mkdir(parents=True)
    for name in OURS:
        copy(CHECKOUT / "qvpn_core" / name, library / "qvpn_core" / name)
    for name in THEIRS:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            continue  # pytun has no wheel for every machine
        origin = Path(spec.origin)
        source = origin.parent if origin.name == "__init__.py" else origin
        copy(source, library / source.name)
    script = new / HELPER.name
    # Not the virtual environment's python: that is where the checkout's owner can write.
    python = os.path.realpath(sys.executable)
    script.write_text(SCRIPT.format(python=python, library=TARGET / "lib"))
    script.chmod(0o755)
    shutil.rmtree(TARGET, ignore_errors=True)
    new.rename(TARGET)
    text = (CHECKOUT / "resources" / POLICY.name).read_text()
    POLICY.parent.mkdir(parents=True, exist_ok=True)
    POLICY.write_text(text.replace("/usr/lib/qvpn/qvpn-helper", str(HELPER)))
    POLICY.chmod(0o644)


def copy(source: Path, target: Path) -> None:
    """A file, or a directory without what Python compiled."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy(source, target)


def remove() -> None:
    """Undo `install`."""
    shutil.rmtree(TARGET, ignore_errors=True)
    POLICY.unlink(missing_ok=True)


def main() -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(description="Install this checkout's helper for pkexec.")
    parser.add_argument("--remove", action="store_true", help="remove it again")
    arguments = parser.parse_args()
    if os.geteuid() != 0:
        print("the helper is installed by root: run it with sudo", file=sys.stderr)
        return 1
    os.umask(0o022)
    if arguments.remove:
        remove()
    else:
        install()
        print(f"installed {HELPER} and {POLICY}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
