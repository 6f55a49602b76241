"""Traffic through a tunnel between two namespaces, checked byte for byte."""

from __future__ import annotations

import hashlib
import random
import socket
import threading
from contextlib import suppress

from tests.world.namespaces import Namespace

#: Seconds that one exchange may take on a busy machine.
PATIENCE = 30.0


def family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def everything_passes(client: Namespace, server: Namespace, address: str) -> None:
    """Whatever `client` begins with `server`, which has `address`, comes back whole."""
    ping(client, address)
    tcp_exchange(client, server, address, 1 << 20)
    for size in (0, 1, 1200, 8000):  # the last is fragmented
        udp_round_trip(client, server, address, size)


def ping(namespace: Namespace, address: str, size: int = 56, fragment: bool = True) -> str:
    """Five echo requests with `size` bytes of data; returns what ping said. Fails if none return.

    With `fragment` off, a packet too big for the path is an error, not a job for the kernel.
    """
    argv = ["ping", "-n", "-c", "5", "-i", "0.1", "-W", "2", "-s", str(size)]
    argv += ["-M", "dont" if fragment else "do", address]
    done = namespace.run(argv, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def tcp_exchange(client: Namespace, server: Namespace, address: str, size: int) -> None:
    """Connect to `address`, send `size` bytes, then receive as many, and compare the digests."""
    there, back = (random.Random(f"{size}{way}").randbytes(size) for way in ("there", "back"))
    received: list[str] = []
    with server.socket(family(address), socket.SOCK_STREAM) as listener:
        listener.bind((address, 0))
        listener.listen(1)
        listener.settimeout(PATIENCE)

        def serve() -> None:
            with suppress(TimeoutError):  # the client's failure says more
                connection, _ = listener.accept()
                with connection:
                    received.append(_digest(connection))
                    connection.sendall(back)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            with client.socket(family(address), socket.SOCK_STREAM) as connection:
                connection.settimeout(PATIENCE)
                connection.connect(listener.getsockname()[:2])
                connection.sendall(there)
                connection.shutdown(socket.SHUT_WR)
                received.append(_digest(connection))
        finally:
            thread.join()
    assert received == [hashlib.sha256(data).hexdigest() for data in (there, back)]


def _digest(connection: socket.socket) -> str:
    """The digest of all that the other side sends."""
    connection.settimeout(PATIENCE)
    with connection.makefile("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def udp_round_trip(client: Namespace, server: Namespace, address: str, size: int) -> None:
    """Send a datagram of `size` bytes to `address` and have it back, five times at most.

    A tunnel may lose a datagram; it may not change one, nor lose five in a row.
    """
    data = random.Random(size).randbytes(size)
    with (
        server.socket(family(address), socket.SOCK_DGRAM) as echo,
        client.socket(family(address), socket.SOCK_DGRAM) as caller,
    ):
        echo.bind((address, 0))
        echo.settimeout(2)
        caller.settimeout(2)
        caller.connect(echo.getsockname()[:2])
        for _ in range(5):
            caller.send(data)
            try:
                received, source = echo.recvfrom(1 << 16)
                echo.sendto(received, source)
                assert caller.recv(1 << 16) == data
            except TimeoutError:
                continue
            return
    raise AssertionError(f"five datagrams of {size} bytes to {address} and none came back")
