"""Every setting of the TLS transport (HTTP/2 on TCP) that we choose, in one place, and why.

What both transports share (timeouts, limits on strangers, authorities) is in `settings.py`.
"""

from __future__ import annotations

import re
from typing import Final

ALPN_HTTP2: Final = b"h2"
ALPN_HTTP1: Final = b"http/1.1"

# A byte stream carries packets of any size, so no path decides about these two. What does is that a
# session may change its transport at any moment, and the far ends of its connections then go on
# with the segment sizes that they agreed on before.
#: At the client, in bytes, and so of its TUN: no more than QUIC carries on nearly every path
#: (1414 behind PPPoE over IPv6), so that what begins on TLS fits when the session moves to QUIC.
CLIENT_MTU: Final = 1400
#: At the gateway: whatever its uplink delivers (its TUN has 1500), so that what began on QUIC, with
#: 1442 bytes, still fits when the session falls back to TLS.
GATEWAY_MTU: Final = 1500

#: Bytes of packets that become one DATA frame and one TLS record (RFC 8446 section 5.1: 2^14 at
#: most, here with the frame's head). Larger would be in the way of fresher packets.
CHUNK: Final = (1 << 14) - 9
#: The kernel takes new bytes only while fewer than these are unsent, whatever its buffer could
#: hold: packets wait in our queue, which drops the oldest, and not in a socket, which cannot.
NOTSENT_LOWAT: Final = 16 << 10
#: Bytes of flow control for a tunnel, by stream and connection. What arrives is handed on at once,
#: so the window costs no memory and must only never be the limit: 16 MiB are 1 Gbit/s at 130 ms.
WINDOW: Final = 16 << 20
#: Bytes of flow control for a stream of CONNECT, at first (RFC 9113 section 6.9.2) and at most. All
#: windows of a known peer fit the connection's: what they may grow by together is `WINDOW`.
STREAM_WINDOW: Final = 65535
MAX_STREAM_WINDOW: Final = 1 << 20
#: Bytes of capsules that may wait for a peer who opens no window.
MAX_BUFFERED: Final = 256 << 10
#: Ciphertext bytes that may wait while the kernel takes no more: what one chunk becomes, and
#: answers to control frames. A peer that makes more of them and reads none is left.
MAX_BACKLOG: Final = 256 << 10

KEEPALIVE: Final = 10.0  # seconds without a byte until the client sends PING (RFC 9113 section 6.7)
IDLE_TIMEOUT: Final = 30.0  # seconds without a byte until either end gives a tunnel up
USER_TIMEOUT: Final = 15.0  # seconds that sent bytes may stay unacknowledged (tcp(7))
HEAD_TIMEOUT: Final = 15.0  # seconds from the handshake to the first whole request
REQUEST_TIMEOUT: Final = 60.0  # seconds without another one, or progress with an answer

# What a stranger can make us do on one connection: frames that move no content cost tokens.
FRAME_RATE, FRAME_BURST = 200.0, 2000.0
REQUEST_COST: Final = 5.0  # tokens of a stranger's request; other frames cost one
FRAME_CREDIT: Final = 4.0  # tokens for a DATA frame that we send: it may be answered by windows
MAX_HEADERS: Final = 16 << 10  # bytes of a request head, as common servers have it
MAX_STREAMS: Final = 128  # of a stranger

# ChaCha20 first, at the client: a key of it seals any number of records, one of AES some 2^24
# (RFC 8446 section 5.5), and OpenSSL renews none by itself. Behind Python its speed is no matter.
CLIENT_SUITES: Final = b"TLS_CHACHA20_POLY1305_SHA256:TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384"
SERVER_SUITES: Final = b"TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256"
#: Records in one direction after which a connection with AES is ended.
MAX_AES_RECORDS: Final = 1 << 24

_PORT = re.compile(r":([0-9]{1,5})")


def alt_svc(authority: str) -> tuple[str, str]:
    """The field that tells a browser of HTTP/3 (RFC 7838) at the port that it used itself."""
    port = _PORT.search(authority, authority.rfind("]") + 1)
    return "alt-svc", f'h3=":{port[1] if port else 443}"; ma=86400'
