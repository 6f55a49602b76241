"""Somebody else removes what is ours: netlink's news of it, and the changes of resolver files.

systemd-networkd and NetworkManager remove rules and routes that they do not know, firewalld and
``nft flush ruleset`` remove tables. It only tells; putting back is done by whoever asked. Parsing
is pure: linux/rtnetlink.h, linux/fib_rules.h, linux/nfnetlink.h, inotify(7).
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
from collections.abc import Iterable, Iterator
from contextlib import suppress
from enum import Enum, auto
from pathlib import Path
from typing import Final

from qvpn_core.net.names import (
    CLIENT_NFT_TABLE,
    KILL_SWITCH_NFT_TABLE,
    PROTOCOL,
    RULE_PRIORITY,
)


class Loss(Enum):
    """What may have gone. Our own changes look the same, so look before putting back."""

    NETWORK = auto()
    #: A table of the firewall, the kill switch's among them.
    FIREWALL = auto()


_RTM_NEWLINK, _RTM_DELADDR, _RTM_DELROUTE, _RTM_DELRULE = 16, 21, 25, 33
#: Group numbers of linux/rtnetlink.h: link, addresses, routes, rules.
_RTNL_GROUPS: Final = (1, 5, 7, 8, 9, 11, 19)
_NETLINK_NETFILTER: Final = 12
_NFNLGRP_NFTABLES: Final = 7
_NFT_DELTABLE: Final = 10 << 8 | 2
_NFTA_TABLE_NAME: Final = 1
_FRA_PRIORITY: Final = 6
_IFF_UP: Final = 0x1
_TABLES: Final = {name.encode() + b"\0" for name in (CLIENT_NFT_TABLE, KILL_SWITCH_NFT_TABLE)}
#: More than one message of the kernel; one that does not fit is a loss of everything.
_BUFFER: Final = 1 << 16
_HEADER: Final = struct.Struct("=IHHII")
_ATTRIBUTE: Final = struct.Struct("=HH")


def rtnetlink_losses(data: bytes, index: int) -> Iterator[Loss]:
    """What a packet of rtnetlink's groups says of us, whose TUN has `index`."""
    for kind, body in _messages(data):
        if (
            (kind == _RTM_DELROUTE and len(body) >= 12 and body[5] == PROTOCOL)
            or (kind == _RTM_DELADDR and _word(body, 4) == index)
            or (kind == _RTM_NEWLINK and _word(body, 4) == index and not _word(body, 8) & _IFF_UP)
            or (kind == _RTM_DELRULE and _priority(body) == RULE_PRIORITY)
        ):
            yield Loss.NETWORK


def nftables_losses(data: bytes) -> Iterator[Loss]:
    """What a packet of nftables' group says of our tables."""
    for kind, body in _messages(data):
        if kind == _NFT_DELTABLE and dict(_attributes(body, 4)).get(_NFTA_TABLE_NAME) in _TABLES:
            yield Loss.FIREWALL


def _messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + _HEADER.size <= len(data):
        length, kind, _flags, _sequence, _port = _HEADER.unpack_from(data, at)
        if not _HEADER.size <= length <= len(data) - at:
            return
        yield kind, data[at + _HEADER.size : at + length]
        at += length + 3 & ~3


def _attributes(body: bytes, start: int) -> Iterator[tuple[int, bytes]]:
    at = start
    while at + _ATTRIBUTE.size <= len(body):
        length, kind = _ATTRIBUTE.unpack_from(body, at)
        if not _ATTRIBUTE.size <= length <= len(body) - at:
            return
        yield kind & 0x3FFF, body[at + _ATTRIBUTE.size : at + length]
        at += length + 3 & ~3


def _word(body: bytes, at: int) -> int:
    return int.from_bytes(body[at : at + 4], "little" if _LITTLE else "big")


def _priority(body: bytes) -> int:
    return _word(dict(_attributes(body, 12)).get(_FRA_PRIORITY, b""), 0)


_LITTLE: Final = struct.pack("=H", 1) == b"\1\0"


class NetlinkWatch:
    """The news of the kernel's network, in the namespace it was made in."""

    def __init__(self) -> None:
        """Raises OSError."""
        self._route = _netlink(socket.NETLINK_ROUTE, _RTNL_GROUPS)
        try:
            self._nftables = _netlink(_NETLINK_NETFILTER, (_NFNLGRP_NFTABLES,))
        except OSError:
            self._route.close()
            raise

    def filenos(self) -> tuple[int, int]:
        """Readable when there is news."""
        return self._route.fileno(), self._nftables.fileno()

    def read(self, index: int) -> set[Loss]:
        """All news there is; everything may be lost when there was too much of it."""
        losses: set[Loss] = set()
        try:
            for data in _packets(self._route):
                losses.update(rtnetlink_losses(data, index))
            for data in _packets(self._nftables):
                losses.update(nftables_losses(data))
        except OSError:  # ENOBUFS: the kernel has dropped some
            return set(Loss)
        return losses


def _netlink(protocol: int, groups: Iterable[int]) -> socket.socket:
    sock = socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, protocol
    )
    sock.bind((0, sum(1 << group - 1 for group in groups)))
    return sock


def _packets(sock: socket.socket) -> Iterator[bytes]:
    with suppress(BlockingIOError):
        while True:
            yield sock.recv(_BUFFER)


#: Written, moved or removed, or other attributes.
_IN_CHANGED: Final = 0x2 | 0x4 | 0x8 | 0x40 | 0x80 | 0x100 | 0x200


class FileWatch:
    """News of files, which may be replaced or not exist yet: it watches their directories."""

    def __init__(self) -> None:
        """Raises OSError."""
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd: int = self._libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "inotify")
        self._names: set[bytes] = set()
        self._watched: dict[Path, int] = {}

    def fileno(self) -> int:
        """Readable when there is news."""
        return self._fd

    def set(self, paths: Iterable[Path]) -> None:
        """Watch these from now on, and nothing else."""
        paths = tuple(paths)
        self._names = {os.fsencode(path.name) for path in paths}
        directories = {path.parent for path in paths}
        for gone in self._watched.keys() - directories:
            self._libc.inotify_rm_watch(self._fd, self._watched.pop(gone))
        for new in directories - self._watched.keys():
            number = self._libc.inotify_add_watch(self._fd, os.fsencode(new), _IN_CHANGED)
            if number >= 0:  # else it is not there, and has no files
                self._watched[new] = number

    def read(self) -> bool:
        """Whether one of the files may have changed."""
        changed = False
        with suppress(BlockingIOError):
            while data := os.read(self._fd, _BUFFER):
                at = 0
                while at + 16 <= len(data):
                    length = _word(data, at + 12)
                    name = data[at + 16 : at + 16 + length].rstrip(b"\0")
                    # No name: the queue overflowed, or the directory itself went.
                    changed = changed or not name or name in self._names
                    at += 16 + length
        return changed
