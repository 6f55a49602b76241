"""``qvpn-server``, as a wheel installs it: looks whether the gateway's part is there, then runs it.

Nothing of the gateway is imported before that.
"""

from __future__ import annotations

import sys

from qvpn_core.errors import QvpnError
from qvpn_core.parts import require


def main() -> int:
    """Returns the exit status."""
    try:
        require("server", "a gateway", "sqlalchemy", "alembic")
    except QvpnError as error:
        print(f"qvpn-server: {error}", file=sys.stderr)
        return 2
    from qvpn_server.cli import main

    return main()


if __name__ == "__main__":
    sys.exit(main())
