"""Parts of an installation that a wheel's extra brings: the app's toolkit, the gateway's registry.

A package has all of its parts. Who installs the wheel chooses, and is told in one line what to
choose when it was too little (docs/install/pipx.md).
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from qvpn_core.errors import UsageError


def require(extra: str, what: str, *modules: str) -> None:
    """Raise UsageError unless all of `modules`, which come with `extra`, are there.

    `what` is the part in words that fit into "for the app".
    """
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        raise UsageError(
            f"{', '.join(missing)} is missing here, which is needed for {what}",
            f'install qvpn with its extra "{extra}", such as by '
            f"pipx install --force './qvpn-{_version()}-py3-none-any.whl[{extra}]'",
        )


def _version() -> str:
    try:
        return version("qvpn")
    except PackageNotFoundError:
        return "VERSION"
