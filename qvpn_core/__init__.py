"""The parts of qvpn that both ends are built from. No Qt here, and nothing of either end."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("qvpn")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0.0.0"
