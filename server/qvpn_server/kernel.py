"""The netlink work of a gateway's start, in a process of its own that ends with it.

The gateway needs netlink for a moment and would keep pyroute2 in memory for months: ten megabytes,
a sixth of the whole. So the process asks for nothing but one set-up on its standard input, answers
with one line, and is done; it refuses to stay.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from ipaddress import ip_interface
from typing import Final

import msgspec

from qvpn_core.errors import NetworkSetupFailed, PermissionMissing, QvpnError
from qvpn_core.net import nft
from qvpn_core.net.worker import in_thread
from qvpn_core.program import module_command
from qvpn_server.pool import Pool, overlap

#: Seconds for the process to start and to do its work, on a busy machine.
TIMEOUT: Final = 30.0


class _SetUp(msgspec.Struct):
    """What to do: bring up the device with this index and these addresses (with prefix length)."""

    index: int
    addresses: list[str]


class _Outcome(msgspec.Struct):
    """How it went; the words of a QvpnError if it did not."""

    what: str = ""
    hint: str = ""
    permission: bool = False


async def set_up(index: int, pools: Sequence[Pool]) -> None:
    """Give the TUN the gateway's addresses and bring it up.

    Raises NetworkSetupFailed, also for a pool that a network of this host lies in: that network's
    connected route would hide the pool. Raises PermissionMissing.
    """
    request = _SetUp(index, [str(pool.gateway_interface) for pool in pools])
    await in_thread(_in_process, request)


def _in_process(request: _SetUp) -> None:
    try:
        done = subprocess.run(
            module_command("qvpn_server.kernel"),  # when it runs itself, it has another name
            input=msgspec.json.encode(request),
            capture_output=True,
            cwd="/",
            env={
                "PATH": nft.SYSTEM_PATH,
                "PYTHONPATH": ":".join(filter(None, sys.path)),
                "LC_ALL": "C.UTF-8",
            },
            start_new_session=True,  # Ctrl-C is the gateway's to handle
            timeout=TIMEOUT,
            check=False,
        )
        outcome = msgspec.json.decode(done.stdout, type=_Outcome)
    except (OSError, subprocess.TimeoutExpired, msgspec.DecodeError) as error:
        raise NetworkSetupFailed(f"the process that sets up the network failed ({error})") from None
    if outcome.what:
        kind = PermissionMissing if outcome.permission else NetworkSetupFailed
        raise kind(outcome.what, outcome.hint)


def main() -> None:
    """The process: a `_SetUp` on standard input, an `_Outcome` on standard output."""
    request = msgspec.json.decode(sys.stdin.buffer.read(), type=_SetUp)
    outcome = _Outcome()
    try:
        _set_up(request)
    except QvpnError as error:
        outcome = _Outcome(error.what, error.hint, isinstance(error, PermissionMissing))
    sys.stdout.buffer.write(msgspec.json.encode(outcome))


def _set_up(request: _SetUp) -> None:
    from pyroute2 import IPRoute

    from qvpn_core.net.links import bring_up_now

    addresses = [ip_interface(text) for text in request.addresses]
    with IPRoute() as netlink:
        for message in netlink.get_addr():
            here = ip_interface(f"{message.get_attr('IFA_ADDRESS')}/{message['prefixlen']}").network
            for address in addresses:
                if overlap(address.network, here):
                    raise NetworkSetupFailed(
                        f"the pool {address.network} overlaps this host's network {here}",
                        f"choose another pool{here.version} in gateway.toml",
                    )
    bring_up_now(request.index, addresses)


if __name__ == "__main__":
    main()
