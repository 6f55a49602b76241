"""A TUN device: IP packets in batches without waiting.

On the descriptor every packet follows a header of ten bytes (IFF_TUN, IFF_NO_PI, IFF_VNET_HDR;
linux/if_tun.h, struct virtio_net_hdr), because a device has it from its making on or never, and
what reads the descriptor may change while the device lives: `Tun` deals in bare packets, the native
datapath reads and writes the descriptor itself, with offloads. They are off until somebody turns
them on.

The device is never persistent, so it and its routes vanish with the descriptor, however the process
ends. It refuses to share: one process, one queue. Addresses and routes are in
:mod:`qvpn_core.net.links`.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
from collections.abc import Iterable
from types import TracebackType
from typing import Any, Final, Self

from qvpn_core.errors import NetworkSetupFailed, PermissionMissing, QvpnError, TunUnavailable

try:
    import pytun
except ImportError:  # no wheel for this machine
    pytun = None

_DEVICE: Final = "/dev/net/tun"
_TUNSETIFF: Final = 0x400454CA
_IFF_TUN: Final = 0x0001
_IFF_NO_PI: Final = 0x1000
_IFF_VNET_HDR: Final = 0x4000
_FLAGS: Final = _IFF_TUN | _IFF_NO_PI | _IFF_VNET_HDR
_TUNSETOFFLOAD: Final = 0x400454D0
_TUNSETVNETHDRSZ: Final = 0x400454D8
#: TUN_F_CSUM, _TSO4, _TSO6 and _TSO_ECN.
_TCP_OFFLOADS: Final = 0x01 | 0x02 | 0x04 | 0x08
#: TUN_F_USO4 and _USO6, which Linux has since 6.2, and takes together only.
_UDP_OFFLOADS: Final = 0x20 | 0x40
_HEADER: Final = 10
#: In front of a packet that is whole and has its checksums.
_PLAIN_HEADER: Final = bytes(_HEADER)
_NEEDS_CSUM: Final = 1  # VIRTIO_NET_HDR_F_NEEDS_CSUM
_SIOCSIFMTU: Final = 0x8922
#: More than any packet of an MTU that a tunnel has; room for the largest possible would cost 2 us
#: with each packet.
_READ_SIZE: Final = _HEADER + 16384


class Tun:
    """An open TUN device. Close it, or use it as a context manager."""

    __slots__ = ("_fd", "_owner", "index", "name", "unfinished")

    def __init__(self, fd: int, name: str, owner: Any = None) -> None:
        """Take over `fd`, which `open` made; `owner`, where given, is the object that closes it."""
        os.set_inheritable(fd, False)
        os.set_blocking(fd, False)
        self._fd = fd
        self._owner = owner
        #: Packets that `read_batch` dropped.
        self.unfinished = 0
        self.name = name
        self.index = socket.if_nametoindex(name)

    @classmethod
    def open(cls, name: str | None, mtu: int) -> Self:
        """Make a device of this name, or of a free one with None, for packets up to `mtu` bytes.

        It is down and has no address. Raises TunUnavailable, PermissionMissing and, for an MTU that
        the kernel refuses, NetworkSetupFailed.
        """
        try:
            owner = _open_pytun(name) if pytun is not None else None
            fd, actual = (owner.fileno(), owner.name) if owner else _open_plain(name)
        except OSError as error:
            raise _refusal(error, name) from error
        tun = cls(fd, actual, owner)
        try:
            tun._begin()
            set_mtu(actual, mtu)
        except BaseException:
            tun.close()
            raise
        return tun

    def fileno(self) -> int:
        """The descriptor, readable when a packet waits. Packets have the header there."""
        return self._fd

    def set_offload(self, on: bool) -> bool:
        """Let the kernel leave checksums and the cutting of TCP and UDP segments to the reader.

        With it, packets of up to 64 KB and without checksums come from the descriptor, for who
        reads the header. It takes no privilege, and what waits already stays as it is. False when
        the kernel refuses; then nothing is changed.
        """
        for offloads in (_TCP_OFFLOADS | _UDP_OFFLOADS, _TCP_OFFLOADS) if on else (0,):
            try:
                fcntl.ioctl(self._fd, _TUNSETOFFLOAD, offloads)
            except OSError:
                continue
            return True
        return False

    def read_batch(self, limit: int) -> list[bytes]:
        """Up to `limit` waiting packets, in order; none when none waits.

        Packets that the kernel left for an offload to finish are dropped and counted: with offloads
        off there are none but those that waited when they were turned off.

        Raises TunUnavailable when the device was deleted under us.
        """
        packets: list[bytes] = []
        append, read, fd = packets.append, os.read, self._fd
        try:
            for _ in range(limit):
                data = read(fd, _READ_SIZE)
                if data[0] & _NEEDS_CSUM or data[1]:  # flags, gso_type
                    self.unfinished += 1
                else:
                    append(data[_HEADER:])
        except BlockingIOError:
            pass
        except OSError as error:
            if not packets:
                raise TunUnavailable(
                    f"the device {self.name} is gone ({os.strerror(error.errno or 0)})",
                    "start the tunnel again",
                ) from error
        return packets

    def write_batch(self, packets: Iterable[bytes]) -> int:
        """Hand packets to the kernel; the number it took. A refused one does not stop the rest."""
        written = 0
        write, fd, header = os.write, self._fd, _PLAIN_HEADER
        for packet in packets:
            try:
                write(fd, header + packet)  # quicker than writev
            except OSError:
                continue
            written += 1
        return written

    def close(self) -> None:
        """Remove the device and with it its addresses and routes. Idempotent."""
        fd, self._fd = self._fd, -1
        if fd < 0:
            return
        if self._owner is not None:
            self._owner.close()
            self._owner = None
        else:
            os.close(fd)

    def _begin(self) -> None:
        """What the kernel has as defaults, said. Raises TunUnavailable."""
        try:
            fcntl.ioctl(self._fd, _TUNSETVNETHDRSZ, struct.pack("i", _HEADER))
            fcntl.ioctl(self._fd, _TUNSETOFFLOAD, 0)
        except OSError as error:
            raise _refusal(error, self.name) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def set_mtu(name: str, mtu: int) -> None:
    """Change a device's MTU to `mtu` bytes. Below 1280 the kernel takes IPv6 away from it.

    For root. Raises NetworkSetupFailed.
    """
    request = struct.pack("16si12x", name.encode(), mtu)
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
            fcntl.ioctl(control, _SIOCSIFMTU, request)
    except OSError as error:
        raise NetworkSetupFailed(
            f"cannot set the MTU of {name} to {mtu} ({os.strerror(error.errno or 0)})"
        ) from error


def _open_pytun(name: str | None) -> Any:
    return pytun.TunTapDevice(name=name or "", flags=_FLAGS)


def _open_plain(name: str | None) -> tuple[int, str]:
    """What python-pytun does, for machines that it has no wheel for."""
    fd = os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC)
    try:
        request = struct.pack("16sH22x", (name or "").encode(), _FLAGS)
        reply = fcntl.ioctl(fd, _TUNSETIFF, request)
    except BaseException:
        os.close(fd)
        raise
    return fd, reply[:16].rstrip(b"\0").decode()


def _refusal(error: OSError, name: str | None) -> QvpnError:
    if error.errno == errno.EBUSY:
        return TunUnavailable(f"the device {name} is in use", "end the other tunnel first")
    if error.errno in (errno.EPERM, errno.EACCES) and os.geteuid() != 0:
        return PermissionMissing("only root may open a TUN device", "run it with sudo")
    if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
        return TunUnavailable(f"{_DEVICE} is missing", "load the driver with: modprobe tun")
    return TunUnavailable(
        f"{_DEVICE} refuses us ({os.strerror(error.errno or 0)})",
        "in a container, allow the device and CAP_NET_ADMIN",
    )
