"""The packages, in one place: what each is called, holds, needs and runs when it comes and goes.

`build` turns this into .deb and .rpm. The version is pyproject.toml's, and only there.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

PROJECT: Final = Path(__file__).resolve().parents[2]
MAINTAINER: Final = "The qvpn authors <qvpn@users.noreply.github.com>"
HOMEPAGE: Final = "https://github.com/qvpn/qvpn"
#: The app's name for the desktop.
APP: Final = "io.github.qvpn"


class PackageError(Exception):
    """A package cannot be built; the text says why and what to do."""


@dataclass(frozen=True, slots=True)
class Program:
    """A command: where it is installed, the function it calls, and where its options are parsed.

    `flags` are the interpreter's. One without a `parser` has no manual page and no completions.
    """

    path: str
    module: str
    function: str = "main"
    parser: str = ""
    flags: str = "-I"


@dataclass(frozen=True, slots=True)
class File:
    """A file of the checkout and where it goes."""

    source: str
    target: str
    mode: int = 0o644


@dataclass(frozen=True, slots=True)
class Package:
    """One package. `tree` is where its private interpreter goes, below /."""

    name: str
    summary: str
    description: str
    tree: str
    requirements: tuple[str, ...]
    modules: tuple[str, ...]
    programs: tuple[Program, ...]
    files: tuple[File, ...]
    docs: tuple[str, ...]
    section: str = "net"
    deb_depends: tuple[str, ...] = ()
    deb_recommends: tuple[str, ...] = ()
    rpm_depends: tuple[str, ...] = ()
    #: phase of the life of a package -> script in packaging/scripts
    scripts: dict[str, str] = field(default_factory=dict)
    #: Symbolic links: where, to what.
    links: tuple[tuple[str, str], ...] = ()
    #: A drawing that the desktop's icon theme gets in all sizes.
    icon: str = ""


def version() -> str:
    """The project's version."""
    with (PROJECT / "pyproject.toml").open("rb") as file:
        return str(tomllib.load(file)["project"]["version"])


_SYSTEMD: Final = "usr/lib/systemd/system"

_ICONS: Final = "qvpn_gui/resources/icons"
_THEME: Final = "usr/share/icons/hicolor"
_SHARE: Final = "usr/share"

CLIENT: Final = Package(
    name="qvpn",
    summary="VPN over QUIC for the desktop",
    description=(
        "qvpn connects this machine to a gateway over QUIC, as RFC 9484 (CONNECT-IP)\n"
        "says, from an icon in the panel (qvpn-gui) or by commands (qvpn). One link from\n"
        "the gateway's administrator is the whole set-up. Changes to the network are\n"
        "made by a small helper that asks through polkit, and are undone whatever\n"
        "happens. It brings its own Python and the part of Qt that it uses."
    ),
    tree="usr/lib/qvpn",
    requirements=("qvpn[gui]",),
    modules=("qvpn_core", "qvpn_gui"),
    programs=(
        Program("usr/bin/qvpn", "qvpn_core.client.cli", parser="_parser"),
        # -S: nothing but the tree, not even what site.py would look for.
        Program("usr/lib/qvpn/qvpn-helper", "qvpn_core.helper.__main__", flags="-IS"),
        Program("usr/bin/qvpn-gui", "qvpn_gui.__main__", parser="_parser"),
    ),
    files=(
        File(f"qvpn_core/helper/{APP}.policy", f"{_SHARE}/polkit-1/actions/{APP}.policy"),
        File("packaging/systemd/qvpn-kill-switch.service", f"{_SYSTEMD}/qvpn-kill-switch.service"),
        *(
            File(f"resources/{name}", f"{_SHARE}/applications/{name}")
            for name in (f"{APP}.desktop", f"{APP}.unlock.desktop")
        ),
        File(
            f"resources/{APP}.metainfo.xml",
            f"{_SHARE}/metainfo/{APP}.metainfo.xml",
        ),
        File(f"{_ICONS}/{APP}.svg", f"{_THEME}/scalable/apps/{APP}.svg"),
        File(
            f"{_ICONS}/qvpn-connected-symbolic.svg",
            f"{_THEME}/symbolic/apps/{APP}-symbolic.svg",
        ),
    ),
    icon=f"{_ICONS}/{APP}.svg",
    docs=("docs/user-guide.md",),
    deb_depends=("libc6 (>= 2.36)", "nftables", "pkexec", "polkitd"),
    deb_recommends=("ca-certificates",),
    rpm_depends=("glibc >= 2.36", "nftables", "polkit"),
    scripts={
        "preremove": "qvpn.preremove",
        "postremove": "qvpn.postremove",
        "postinstall": "qvpn.postinstall",
    },
    # It costs nothing where no kill switch was asked for, and who asked must not have to enable it.
    links=(
        (
            f"{_SYSTEMD}/sysinit.target.wants/qvpn-kill-switch.service",
            "../qvpn-kill-switch.service",
        ),
    ),
)

SERVER: Final = Package(
    name="qvpn-server",
    summary="VPN gateway over QUIC",
    description=(
        "The gateway of qvpn: gives devices a tunnel over QUIC, as RFC 9484 (CONNECT-IP)\n"
        "says, and is an ordinary small web site to everybody else. It runs as a user of\n"
        "its own, with two capabilities. It brings its own Python."
    ),
    tree="usr/lib/qvpn-server",
    requirements=("qvpn[server,postgresql]",),
    modules=("qvpn_core", "qvpn_server"),
    programs=(Program("usr/bin/qvpn-server", "qvpn_server.cli", parser="_parser"),),
    files=(
        File("packaging/systemd/qvpn-server.service", f"{_SYSTEMD}/qvpn-server.service"),
        File("packaging/qvpn-server.sysusers", "usr/lib/sysusers.d/qvpn-server.conf"),
    ),
    docs=("docs/administrator-guide.md",),
    deb_depends=("libc6 (>= 2.36)", "nftables", "systemd | systemd-standalone-sysusers"),
    rpm_depends=("glibc >= 2.36", "nftables", "systemd"),
    scripts={
        "postinstall": "qvpn-server.postinstall",
        "preremove": "qvpn-server.preremove",
        "postremove": "qvpn-server.postremove",
    },
)

PACKAGES: Final = (CLIENT, SERVER)
