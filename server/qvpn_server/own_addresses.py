"""Whether an address is this machine's own, as its routing says (rtnetlink(7)).

One question to the kernel, which answers from its tables at once. So also an address that was added
a moment ago, or a whole prefix that is routed to this machine, is known. It changes nothing.
"""

from __future__ import annotations

import socket
import struct

from qvpn_server.pool import IPAddress

_RTM_GETROUTE = 26  # linux/rtnetlink.h
_NLM_F_REQUEST = 1
_NLMSG_ERROR = 2
_RTA_DST = 1
_RTN_LOCAL = 2
_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr
_ROUTE = struct.Struct("=BBBBBBBBI")  # struct rtmsg
_ATTRIBUTE = struct.Struct("=HH")  # struct rtattr
_TYPE_AT = _HEADER.size + 7  # of rtm_type, which the kernel answers with
#: Types of routes that lead to this machine or to all on a link: local, broadcast, anycast,
#: multicast.
_OURS = range(_RTN_LOCAL, 6)


def is_own(address: IPAddress) -> bool:
    """Whether packets to `address` would stay on this machine, or go to all on its link.

    Also when the kernel cannot be asked: what is not known to be elsewhere is not opened.
    """
    packed = address.packed
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    body = _ROUTE.pack(family, 8 * len(packed), 0, 0, 0, 0, 0, 0, 0)
    body += _ATTRIBUTE.pack(_ATTRIBUTE.size + len(packed), _RTA_DST) + packed
    request = _HEADER.pack(_HEADER.size + len(body), _RTM_GETROUTE, _NLM_F_REQUEST, 1, 0) + body
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as netlink:
            netlink.send(request)
            answer = netlink.recv(8192)
    except OSError:
        return True
    _length, kind, _flags, _sequence, _port = _HEADER.unpack_from(answer)
    # An error: there is no route to it, so it is not ours.
    return kind != _NLMSG_ERROR and answer[_TYPE_AT] in _OURS
