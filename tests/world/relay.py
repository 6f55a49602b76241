"""The impairment relay's near end: makes the link's two TUN devices and steers the relay process.

The relay is a link of its own, of which each end is a TUN device in another namespace, so packets
pass through it whole, with finished checksums, whatever offloads their sender uses. The process is
`tests.world.relayd`; the link exists as long as it does.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import struct
import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

from tests.world.impairment import Impairment, LineCounters
from tests.world.namespaces import Namespace, WorldError

Direction = Literal["up", "down", "both"]

ROOT: Final = Path(__file__).resolve().parents[2]
_TUNSETIFF: Final = 0x400454CA  # linux/if_tun.h
_IFF_TUN: Final = 0x0001
_IFF_NO_PI: Final = 0x1000
#: How long the relay may take to answer, in seconds: generous, as machines are shared.
_PATIENCE: Final = 10.0


@dataclass(frozen=True, slots=True)
class LinkEnd:
    """One end of the relayed link: a TUN device to be made, and the addresses ICMP comes from."""

    namespace: Namespace
    interface: str
    address4: str
    address6: str


class Relay:
    """A link whose faults can be changed while it runs. `up` is towards the far end."""

    def __init__(self, near: LinkEnd, far: LinkEnd, seed: int) -> None:
        self._impairments = {"up": Impairment(), "down": Impairment()}
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control.settimeout(_PATIENCE)
        devices = [end.namespace.call(open_tun, end.interface) for end in (near, far)]
        # A hop answers from its own side of the link towards the sender.
        setup = {
            "control": theirs.fileno(),
            "near": devices[0],
            "far": devices[1],
            "seed": seed,
            "hops": [[far.address4, far.address6], [near.address4, near.address6]],
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.world.relayd", json.dumps(setup)],
            cwd=ROOT,
            pass_fds=[theirs.fileno(), *devices],
            process_group=0,
        )
        theirs.close()
        for device in devices:
            os.close(device)

    def ready(self) -> None:
        """Wait until the relay carries packets."""
        self._ask({})

    def set(self, direction: Direction = "both", **changes: Any) -> None:
        """Change faults (the fields of Impairment) in one or both directions; others stay.

        In force when this returns. Raises TypeError for an unknown fault and ValueError for an
        impossible value.
        """
        chosen = ("up", "down") if direction == "both" else (direction,)
        changed = {name: replace(self._impairments[name], **changes) for name in chosen}
        self._ask({name: asdict(impairment) for name, impairment in changed.items()})
        self._impairments |= changed

    def clear(self) -> None:
        """Make the link perfect again."""
        self._impairments = {"up": Impairment(), "down": Impairment()}
        self._ask({name: asdict(impairment) for name, impairment in self._impairments.items()})

    def counters(self, direction: Literal["up", "down"]) -> LineCounters:
        """What has happened in one direction since the relay began.

        The kernels at both ends send a few packets of their own (multicast listener reports), so
        these are lower bounds for what a test sent, not exact numbers.
        """
        return LineCounters(**self._ask({})[direction])

    def close(self) -> None:
        """End the relay and with it the link. May be repeated."""
        self._control.close()
        self._process.kill()
        self._process.wait()

    def _ask(self, message: dict[str, Any]) -> dict[str, Any]:
        try:
            self._control.send(json.dumps(message).encode())
            answer = self._control.recv(8192)
        except OSError as error:
            raise WorldError(f"the relay does not answer ({error})") from error
        if not answer:
            raise WorldError("the relay has ended: its message is above")
        parsed: dict[str, Any] = json.loads(answer)
        return parsed


def open_tun(interface: str) -> int:
    """Make a TUN device in the calling thread's namespace; it goes when the returned fd closes."""
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    request = struct.pack("16sH22x", interface.encode(), _IFF_TUN | _IFF_NO_PI)
    fcntl.ioctl(fd, _TUNSETIFF, request)
    return fd
