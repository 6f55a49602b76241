"""qvpn-server as the interoperation tests run it."""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.interop.program import Program

#: The resolvers that it announces.
RESOLVERS = ["198.51.100.53", "2001:db8:2::53"]


def command(name: str) -> str:
    """A command of the installation under test."""
    path = shutil.which(name, path=str(Path(sys.executable).parent))
    assert path is not None, f"{name} is not installed beside {sys.executable}"
    return path


@dataclass(frozen=True)
class Gateway:
    """A running qvpn-server and a device that it knows."""

    state: Path
    program: Program
    url: str
    pin: str
    token: str

    def trust(self) -> tuple[str, ...]:
        """The Go client's flags to reach and believe it."""
        return ("-url", self.url, "-pin", self.pin)

    def client(self) -> tuple[str, ...]:
        """And to be let in."""
        return (*self.trust(), "-token", self.token)
