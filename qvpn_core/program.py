"""How a part of qvpn starts another part of it as a process of its own.

In a checkout and in a package alike: the package carries an interpreter that is started isolated,
and so are its children, which then read no variable and no directory of the user's.
"""

from __future__ import annotations

import sys


def module_command(module: str, *words: str) -> list[str]:
    """The command line that runs `module` by this very interpreter."""
    # -P: never import from whatever directory one happens to stand in. -I: nor from PYTHONPATH
    # and the user's site-packages (python(1)).
    how = "-I" if sys.flags.isolated else "-P"
    return [sys.executable, how, "-m", module, *words]
