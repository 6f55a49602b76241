"""resolvconf(8), Debian's and openresolv: an entry for our interface, which it merges.

Both take a fixed command line and resolv.conf lines on stdin. Neither is systemd's command of the
same name, which is resolvectl in disguise. What the entry led to is checked, because either may be
configured to do nothing with it.
"""

from __future__ import annotations

import shutil
import subprocess
from typing import Final, Literal

from qvpn_core.errors import DnsSetupFailed
from qvpn_core.net.dns import resolv_conf
from qvpn_core.net.dns.link import Link
from qvpn_core.net.dns.plan import DnsPlan
from qvpn_core.net.dns.records import DnsRecord, Held, RemoveResolvconfEntry
from qvpn_core.net.dns.resolv_conf import MAX_ASKED, PATH
from qvpn_core.net.nft import SYSTEM_PATH

Flavour = Literal["debian", "openresolv"]

#: Seconds. Both wait for a lock, Debian's for ten.
_TIMEOUT: Final = 15.0
#: What makes openresolv prefer our entry and leave out the others. Debian's has no such thing.
_OPENRESOLV: Final = ("-m", "0", "-x")


class Resolvconf:
    """See the module. It merges all into one list, so it cannot tell names apart."""

    routes_domains: Final = False
    paths: Final = (PATH,)

    def prepare(self, link: Link, held: Held) -> tuple[DnsRecord, ...]:
        """What undoes `apply`."""
        del held
        return (RemoveResolvconfEntry(link.interface),)

    def apply(self, link: Link, plan: DnsPlan) -> None:
        """Add or replace our entry. Raises DnsSetupFailed, and then there is none."""
        lines = [f"nameserver {server}" for server in plan.servers[:MAX_ASKED]]
        lines += [f"search {' '.join(plan.search)}"] if plan.search else []
        exclusive = _OPENRESOLV if flavour() == "openresolv" else ()
        try:
            _run("-a", _entry(link.interface), *exclusive, lines="".join(f"{x}\n" for x in lines))
            if not self.holds(link, plan):
                raise DnsSetupFailed(
                    "resolvconf does not put the tunnel's name servers first",
                    "it may be disabled or serve a resolver of its own; see resolvconf(8)",
                )
        except DnsSetupFailed:
            remove(RemoveResolvconfEntry(link.interface))
            raise

    def holds(self, link: Link, plan: DnsPlan) -> bool:
        """Whether programs ask our servers first."""
        del link
        wanted = plan.servers[:MAX_ASKED]
        found = resolv_conf.read().text
        return found.servers[: len(wanted)] == wanted and not set(plan.search) - set(found.search)


def flavour() -> Flavour | None:
    """Which of the two there is, if one is."""
    if shutil.which("resolvconf", path=SYSTEM_PATH) is None:
        return None
    try:
        said = _run("--version")
    except DnsSetupFailed:
        return None
    if said.startswith("Debian"):
        return "debian"
    return "openresolv" if said.startswith("openresolv") else None


def remove(record: RemoveResolvconfEntry) -> None:
    """Delete our entry; fine when there is none, or no resolvconf. Raises DnsSetupFailed."""
    match flavour():
        case "debian":
            _run("-d", _entry(record.interface))
        case "openresolv":
            _run("-f", "-d", _entry(record.interface))


def _entry(interface: str) -> str:
    """Names that begin with ``tun`` come before those of cards in both orders."""
    return f"tun.{interface}"


def _run(*arguments: str, lines: str = "") -> str:
    command = shutil.which("resolvconf", path=SYSTEM_PATH)
    if command is None:
        raise DnsSetupFailed("resolvconf is gone", "install it again, or leave DNS alone")
    try:
        done = subprocess.run(
            [command, *arguments],
            input=lines,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIMEOUT,
            check=False,
            cwd="/",
            env={"PATH": SYSTEM_PATH, "LC_ALL": "C"},
        )
    except (subprocess.TimeoutExpired, OSError) as error:
        raise DnsSetupFailed(f"resolvconf does not work ({error})", "see resolvconf(8)") from error
    if done.returncode:
        said = next(iter(done.stderr.splitlines()), f"status {done.returncode}")
        raise DnsSetupFailed(f"resolvconf refused our entry ({said[:200]})", "see resolvconf(8)")
    return done.stdout
