"""``python -m bench.load``: bytes through TCP connections, straight or through a SOCKS5 proxy.

What iperf3 is for tunnels, for whatever else carries a connection: it can speak SOCKS (RFC 1928).
``sink`` serves, ``run`` measures and prints Mbit/s as the receiving side counts them.
"""

from __future__ import annotations

import argparse
import socket
import sys
import threading
import time
from collections.abc import Sequence

_CHUNK = 1 << 18
_UP, _DOWN = b"u", b"d"
_PATIENCE = 20.0


def serve(address: tuple[str, int]) -> None:
    """Take or give bytes on every connection, as its first byte says, until it ends."""
    listener = socket.create_server(address, backlog=64)
    print("listening", flush=True)
    while True:
        sock, _peer = listener.accept()
        threading.Thread(target=_serve_one, args=(sock,), daemon=True).start()


def _serve_one(sock: socket.socket) -> None:
    data = bytes(_CHUNK)
    view = memoryview(bytearray(_CHUNK))
    got = 0
    with sock:
        try:
            kind = sock.recv(1)
            while kind == _DOWN:
                sock.sendall(data)
            while count := sock.recv_into(view):
                got += count
            sock.sendall(got.to_bytes(8, "big"))
        except OSError:
            return  # the client has enough


def through_socks(proxy: tuple[str, int], target: tuple[str, int]) -> socket.socket:
    """A connection to an IPv4 address and port by CONNECT."""
    sock = socket.create_connection(proxy, _PATIENCE)
    host, port = target
    sock.sendall(b"\x05\x01\x00")
    sock.sendall(b"\x05\x01\x00\x01" + socket.inet_aton(host) + port.to_bytes(2, "big"))
    answer = b""
    while len(answer) < 12:
        data = sock.recv(12 - len(answer))
        if not data:
            break
        answer += data
    if answer[:4] != b"\x05\x00\x05\x00":
        raise OSError("the proxy refuses")
    return sock


def run(connections: Sequence[socket.socket], seconds: float, *, down: bool) -> float:
    """Mbit/s that arrived over all connections while the load lasted; closes them."""
    begin = time.monotonic()
    end = begin + seconds
    arrived = [0] * len(connections)
    finished = [begin] * len(connections)

    def one(number: int, sock: socket.socket) -> None:
        sock.settimeout(seconds + _PATIENCE)
        with sock:
            if down:
                sock.sendall(_DOWN)
                view = memoryview(bytearray(_CHUNK))
                while time.monotonic() < end:
                    arrived[number] += sock.recv_into(view)
            else:
                sock.sendall(_UP)
                data = bytes(_CHUNK)
                while time.monotonic() < end:
                    sock.sendall(data)
                sock.shutdown(socket.SHUT_WR)
                count = b""
                while len(count) < 8 and (more := sock.recv(8 - len(count))):
                    count += more
                arrived[number] = int.from_bytes(count, "big")
            finished[number] = time.monotonic()

    threads = [
        threading.Thread(target=one, args=(number, sock)) for number, sock in enumerate(connections)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if not all(arrived):
        raise OSError("a connection carried nothing")
    return sum(arrived) * 8 / (max(finished) - begin) / 1e6


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host, int(port)


def main(argv: Sequence[str] | None = None) -> int:
    """Serve or measure; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.load", description=__doc__)
    commands = parser.add_subparsers(required=True, dest="command")
    sink = commands.add_parser("sink")
    load = commands.add_parser("run")
    for each in (sink, load):
        each.add_argument("address", type=_address, metavar="ADDR:PORT")
    load.add_argument("--socks", type=_address, metavar="ADDR:PORT")
    load.add_argument("--connections", type=int, default=1, metavar="N")
    load.add_argument("--seconds", type=float, default=4.0, metavar="S")
    load.add_argument("--down", action="store_true", help="towards this side")
    chosen = parser.parse_args(argv)
    if chosen.command == "sink":
        serve(chosen.address)
    connections = [
        through_socks(chosen.socks, chosen.address)
        if chosen.socks
        else socket.create_connection(chosen.address, _PATIENCE)
        for _ in range(chosen.connections)
    ]
    print(f"{run(connections, chosen.seconds, down=chosen.down):.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
