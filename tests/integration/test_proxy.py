"""qvpn proxy and qvpn forward as people use them: real commands, real programs, no root needed."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from qvpn_server.certificate import self_signed
from tests.world import dns, plan, probes
from tests.world.namespaces import Namespace
from tests.world.vpn import AT_ONCE, BIN, PATIENCE, Vpn, VpnClient, no_defects, until

pytestmark = pytest.mark.netns

ROOT = Path(__file__).resolve().parents[2]
HTTPS_PORT = 443


class Proxy:
    """A running `qvpn proxy` or `qvpn forward`."""

    def __init__(self, client: VpnClient, *words: str, argv: tuple[str, ...] = ()) -> None:
        self.client = client
        self.log = client.directory / "proxy.log"
        with self.log.open("wb") as log:
            self.process = client.host.popen(
                [*(argv or (str(BIN / "qvpn"),)), *words],
                stdout=subprocess.PIPE,
                stderr=log,
                env=client.environment,
            )
        self.lines: list[str] = []

    def address(self, count: int = 1) -> tuple[str, int]:
        """Where the listener with that number is, once it listens."""
        stdout = self.process.stdout
        assert stdout is not None
        while len(self.lines) < count:
            assert select.select([stdout], [], [], PATIENCE)[0], self.log.read_text()
            line = stdout.readline().decode()
            assert line, self.log.read_text()
            self.lines.append(line)
        host, _, port = self.lines[count - 1].rsplit(" ", 1)[1].strip().rpartition(":")
        return host.strip("[]"), int(port)

    def stop(self, number: int = signal.SIGINT) -> int:
        self.process.send_signal(number)
        status = self.process.wait(PATIENCE)
        no_defects(self.log.read_text())
        return status


@contextmanager
def proxy(vpn: Vpn, *words: str) -> Iterator[Proxy]:
    running = Proxy(vpn.clients[0], *words)
    try:
        yield running
        assert running.stop() == 0
    finally:
        running.process.kill()
        running.process.wait()
    vpn.check_logs()


@pytest.fixture
def socks(vpn: Vpn) -> Iterator[tuple[Namespace, tuple[str, int]]]:
    """The client's namespace and the address of a SOCKS proxy in it."""
    with proxy(vpn, "proxy", "home", "--socks", "127.0.0.1:0") as running:
        yield vpn.clients[0].host, running.address()


@pytest.fixture(scope="module")
def https(vpn: Vpn, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An HTTPS server on every site; the certificate to trust, for www.alpha.test."""
    directory = tmp_path_factory.mktemp("https")
    certificate, key = self_signed("www.alpha.test", datetime.now(UTC))
    (directory / "cert.pem").write_bytes(certificate)
    (directory / "key.pem").write_bytes(key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(directory / "cert.pem", directory / "key.pem")
    listener = vpn.world.internet.socket(socket.AF_INET6, socket.SOCK_STREAM)
    listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    listener.bind(("::", HTTPS_PORT))
    listener.listen(256)

    def serve() -> None:
        while True:
            try:
                plain, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=(plain,), daemon=True).start()

    def answer(plain: socket.socket) -> None:
        with plain:
            try:
                with context.wrap_socket(plain, server_side=True) as tls:
                    tls.recv(65536)
                    body = b"over tls\n" * 10_000
                    tls.sendall(b"HTTP/1.0 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body))
                    tls.sendall(body)
            except OSError:
                return

    threading.Thread(target=serve, daemon=True).start()
    return directory / "cert.pem"


def curl(host: Namespace, *words: str) -> subprocess.CompletedProcess[str]:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed: install the package curl")
    return host.run(["curl", "-sS", "-m", "20", *words], check=False, timeout=30)


def test_curl_fetches_https_by_name_through_socks(
    socks: tuple[Namespace, tuple[str, int]], https: Path, vpn: Vpn
) -> None:
    host, (address, port) = socks
    before = len(probes.dns_queries(vpn.world.internet))
    got = curl(
        host, "--proxy", f"socks5h://{address}:{port}", "--cacert", str(https),
        "https://www.alpha.test/",
    )  # fmt: skip
    assert (got.returncode, got.stderr) == (0, "")
    assert got.stdout == "over tls\n" * 10_000
    # The gateway asked for the name, and nobody else did.
    asked = probes.dns_queries(vpn.world.internet)[before:]
    assert {query[0] for query in asked} <= {plan.GATEWAY4, plan.GATEWAY6}
    assert asked


def test_where_udp_is_blocked_tls_carries_the_same(vpn: Vpn, https: Path) -> None:
    vpn.world.relay.set(block_udp=True)
    try:
        with proxy(vpn, "proxy", "home", "--socks", "127.0.0.1:0") as running:
            address, port = running.address()
            for _ in range(3):
                got = curl(
                    running.client.host, "--proxy", f"socks5h://{address}:{port}",
                    "--cacert", str(https), "https://www.alpha.test/",
                )  # fmt: skip
                assert (got.returncode, len(got.stdout)) == (0, 90_000)
    finally:
        vpn.world.relay.clear()


def test_the_better_transport_is_used_and_what_is_open_goes_on(vpn: Vpn) -> None:
    relay, host = vpn.world.relay, vpn.clients[0].host
    relay.set(block_udp=True)
    try:
        with proxy(vpn, "proxy", "home", "--socks", "127.0.0.1:0") as running:
            address = running.address()
            with closing(opened(host, address)) as on_tls:
                relay.set(block_udp=False)
                begin = time.monotonic()
                until(lambda: "moved from tls to quic" in running.log.read_text(), "QUIC", 60.0)
                print(f"streams: back on QUIC {time.monotonic() - begin:.2f} s after its return")
                with closing(opened(host, address)) as on_quic:
                    echoes(on_tls)
                    assert vpn.gateway.peek()["connections"] == 2
                    on_tls.close()
                    until(lambda: vpn.gateway.peek()["connections"] == 1, "TLS is closed")
                    relay.set(block_udp=True)
                    begin = time.monotonic()
                    echoes_later = threading.Thread(target=echoes, args=(on_quic,))
                    echoes_later.start()
                    # Asked for on QUIC, which is silent, and again on TLS.
                    opened(host, address).close()
                    took = time.monotonic() - begin
                    print(f"streams: a new one {took:.2f} s after UDP was dropped")
                    assert took < 10.0
                    assert "moved from quic to tls" in running.log.read_text()
                    relay.set(block_udp=False)
                    echoes_later.join()  # the old one was only slow
                    echoes(on_quic)
    finally:
        relay.clear()


def opened(host: Namespace, proxy: tuple[str, int]) -> socket.socket:
    """A connection to the echo service, which works."""
    code, sock = host.call(socks_connect, proxy, plan.ALPHA.v4, plan.ECHO_PORT)
    assert code == 0
    echoes(sock)
    return sock


def echoes(sock: socket.socket) -> None:
    """The echo service answers."""
    sock.settimeout(PATIENCE)
    sock.sendall(b"hello\n")
    got = b""
    while got != b"hello\n":
        data = sock.recv(16)
        assert data, "the connection ended"
        got += data


def test_curl_fetches_https_through_the_http_proxy(vpn: Vpn, https: Path) -> None:
    with proxy(vpn, "proxy", "home", "--http", "127.0.0.1:0") as running:
        address, port = running.address()
        got = curl(
            running.client.host, "--proxy", f"http://{address}:{port}", "--cacert", str(https),
            "https://www.alpha.test/",
        )  # fmt: skip
        assert (got.returncode, len(got.stdout)) == (0, 90_000)
        plain = curl(
            running.client.host, "--proxy", f"http://{address}:{port}", "http://www.alpha.test/ip"
        )
        assert "only serves CONNECT" in plain.stdout


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("no-such-host.test", 4),
        ("192.0.2.10:81", 5),
        ("127.0.0.1:53", 2),
        ("169.254.169.254:80", 2),
        ("10.11.12.13:80", 2),
        ("0.0.0.0:80", 2),
        ("[::1]:80", 2),
        ("[::ffff:127.0.0.1]:80", 2),
        (f"{plan.GATEWAY4}:443", 2),
        (f"[{plan.GATEWAY6}]:443", 2),
        ("gateway.test:443", 2),
        ("2130706433:80", 4),
        ("0x7f000001:80", 4),
        ("127.1:80", 4),
    ],
)
def test_the_right_reply_at_once(
    socks: tuple[Namespace, tuple[str, int]], target: str, expected: int
) -> None:
    host, proxy_address = socks
    name, _, port = target.rpartition(":") if ":" in target else (target, "", "80")
    begin = time.monotonic()
    assert reply(host, proxy_address, name.strip("[]"), int(port)) == expected
    assert time.monotonic() - begin < AT_ONCE


def test_a_network_that_cannot_be_reached_has_its_own_reply(
    socks: tuple[Namespace, tuple[str, int]], vpn: Vpn
) -> None:
    vpn.world.gateway.ip(
        "route add unreachable 198.18.7.0/24", "route add blackhole 2001:db8:77::/48"
    )
    vpn.gateway.command("group", "set", "everyone", "--service", "*", "198.18.7.0/24")
    try:
        host, address = socks
        assert reply(host, address, "198.18.7.1", 80) == 4  # host unreachable
        assert reply(host, address, "2001:db8:77::1", 80) == 3
    finally:
        vpn.gateway.command("group", "set", "everyone", "--service", "default")


def reply(host: Namespace, proxy: tuple[str, int], name: str, port: int) -> int:
    """The reply code of a CONNECT."""
    code, sock = host.call(socks_connect, proxy, name, port)
    sock.close()
    return code


def socks_connect(proxy: tuple[str, int], host: str, port: int) -> tuple[int, socket.socket]:
    """The reply code of a CONNECT, and the connection."""
    sock = socket.create_connection(proxy, timeout=PATIENCE)
    name = host.encode()
    sock.sendall(b"\x05\x01\x00\x05\x01\x00\x03" + bytes((len(name),)) + name)
    sock.sendall(port.to_bytes(2, "big"))
    got = b""
    while len(got) < 4:
        data = sock.recv(4 - len(got))
        assert data, "the proxy closed the connection"
        got += data
    code = got[3]
    kind = sock.recv(2)[1]
    rest = {1: 6, 4: 18}[kind]
    while rest:
        rest -= len(sock.recv(rest))
    if code:
        assert sock.recv(1) == b""
        sock.close()
    return code, sock


def test_two_hundred_streams_at_once_and_one_that_is_stalled(
    socks: tuple[Namespace, tuple[str, int]], vpn: Vpn
) -> None:
    host, address = socks
    pid = vpn.gateway.process.pid if vpn.gateway.process else 0

    def download(number: int) -> bool:
        code, sock = socks_connect(address, plan.ALPHA.v4, plan.HTTP_PORT)
        with closing(sock):
            assert code == 0
            sock.sendall(b"GET /bytes/100000 HTTP/1.0\r\n\r\n")
            got = b""
            while data := sock.recv(65536):
                got += data
        return len(got.partition(b"\r\n\r\n")[2]) == 100_000

    def run() -> tuple[float, int]:
        code, stalled = socks_connect(address, plan.ALPHA.v4, plan.HTTP_PORT)
        with closing(stalled):
            assert code == 0
            stalled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            stalled.sendall(b"GET /bytes/200000000 HTTP/1.0\r\n\r\n")  # and nobody reads it
            memory = resident(pid)
            begin = time.monotonic()
            with ThreadPoolExecutor(200) as pool:
                done = list(pool.map(lambda n: host.call(download, n), range(200)))
            seconds = time.monotonic() - begin
            assert all(done)
            grown = resident(pid) - memory
            # Still alive, and where it was.
            assert stalled.recv(15).startswith(b"HTTP/1.")
        return seconds, grown

    seconds, grown = host.call(run)
    assert seconds < 60
    assert grown < 100 << 20  # bytes; the stalled one alone asks for 200 MB
    status = vpn.gateway.peek()["service_totals"]
    assert status["opened"] >= 201


def test_two_hundred_downloads_of_curl_over_tls_and_one_that_nobody_reads(
    socks: tuple[Namespace, tuple[str, int]], https: Path
) -> None:
    host, (address, port) = socks
    proxied = ("--proxy", f"socks5h://{address}:{port}")
    curl(host, "--version")  # or skip
    endless = f"http://{plan.ALPHA.v4}/bytes/200000000"
    stalled = host.popen(["curl", "-sS", *proxied, endless], stdout=subprocess.PIPE)
    assert stalled.stdout is not None
    try:
        assert stalled.stdout.read(1)  # it has begun; the rest stays in the pipe
        got = host.run(
            ["curl", "-sS", "--no-progress-meter", "--parallel", "--parallel-immediate",
             "--parallel-max", "200", "--http1.1", "-m", "60", *proxied,
             "--cacert", str(https), "-o", "/dev/null",
             "-w", "%{http_code} %{size_download}\n", "https://www.alpha.test/[1-200]"],
            check=False, timeout=90,
        )  # fmt: skip
        assert (got.returncode, got.stderr) == (0, "")
        assert got.stdout.splitlines() == ["200 90000"] * 200
        assert stalled.poll() is None
        assert len(stalled.stdout.read(1 << 20)) == 1 << 20, "it goes on when it is read"
    finally:
        stalled.kill()
        stalled.wait()
        stalled.stdout.close()


def resident(pid: int) -> int:
    """Resident memory of a process in bytes."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def test_dns_over_udp_associate(socks: tuple[Namespace, tuple[str, int]]) -> None:
    host, address = socks

    def ask() -> bytes:
        with socket.create_connection(address, timeout=PATIENCE) as control:
            control.sendall(b"\x05\x01\x00\x05\x03\x00\x01\0\0\0\0\0\0")
            got = b""
            while len(got) < 12:
                got += control.recv(12 - len(got))
            assert got[:5] == b"\x05\x00\x05\x00\x00"
            where = socket.inet_ntoa(got[6:10]), struct.unpack("!H", got[10:12])[0]
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.settimeout(PATIENCE)
                name = b"dns.alpha.test"
                header = b"\0\0\0\x03" + bytes((len(name),)) + name + b"\0\x35"
                sock.sendto(header + query("www.beta.test"), where)
                answer, _ = sock.recvfrom(4096)
                # Fragments and other senders are not heard.
                sock.sendto(b"\0\0\x01" + header[3:] + b"fragment", where)
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
                    other.settimeout(0.3)
                    other.sendto(header + query("www.alpha.test"), where)
                    with pytest.raises(TimeoutError):
                        other.recvfrom(4096)
            return answer

    answer = host.call(ask)
    assert answer[:3] == b"\0\0\0"
    assert answer[3] in (1, 4)  # the address of the server that was asked
    assert socket.inet_aton(plan.BETA.v4) in answer


def query(name: str) -> bytes:
    """A DNS query for an A record."""
    labels = b"".join(bytes((len(label),)) + label.encode() for label in name.split("."))
    packet = b"\x12\x34\x01\x00\x00\x01\0\0\0\0\0\0" + labels + b"\0\0\x01\0\x01"
    assert dns.parse(packet) is not None
    return packet


@pytest.fixture
def sshd(vpn: Vpn, tmp_path: Path) -> Iterator[tuple[int, Path]]:
    """An SSH server on the internet host; its port, and a directory with the client's files."""
    program = shutil.which("sshd", path="/usr/sbin:/usr/bin")
    if program is None or shutil.which("ssh") is None:
        pytest.skip("no SSH: install the packages openssh-server and openssh-client")
    for name in ("host", "user"):
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / name)], check=True
        )
    (tmp_path / "user.pub").rename(tmp_path / "authorized_keys")
    config = tmp_path / "sshd_config"
    config.write_text(
        f"HostKey {tmp_path / 'host'}\nAuthorizedKeysFile {tmp_path / 'authorized_keys'}\n"
        "StrictModes no\nUsePAM no\nPidFile none\nPermitRootLogin yes\n"
        "PasswordAuthentication no\n"
    )
    Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    port = 2022
    server = vpn.world.internet.popen(
        [program, "-D", "-e", "-f", str(config), "-p", str(port)],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
    )
    assert server.stderr is not None
    until(lambda: b"listening" in server.stderr.readline(), "sshd listens")
    try:
        yield port, tmp_path
    finally:
        server.terminate()
        server.wait(PATIENCE)
        server.stderr.close()


def test_an_ssh_session_through_a_forward(vpn: Vpn, sshd: tuple[int, Path]) -> None:
    port, directory = sshd
    with proxy(vpn, "forward", "home", f"0:www.alpha.test:{port}") as running:
        address, local = running.address()
        done = running.client.host.run(
            [
                "ssh", "-F", "none", "-i", str(directory / "user"), "-p", str(local),
                "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null",
                "-o", "IdentitiesOnly=yes", "-o", "LogLevel=ERROR", f"root@{address}",
                "cat; echo $SSH_CONNECTION; exit 7",
            ],
            check=False,
            input="typed\n" * 50_000,
            timeout=60,
        )  # fmt: skip
        assert done.returncode == 7, done.stderr
        lines = done.stdout.splitlines()
        assert lines[:-1] == ["typed"] * 50_000
        assert lines[-1].split()[0] in (plan.GATEWAY4, plan.GATEWAY6)


def test_a_lost_connection_is_made_again_and_requests_wait_for_it(vpn: Vpn) -> None:
    with proxy(vpn, "proxy", "home", "--socks", "127.0.0.1:0") as running:
        host, address = running.client.host, running.address()
        assert reply(host, address, plan.ALPHA.v4, plan.HTTP_PORT) == 0
        vpn.gateway.stop()
        until(lambda: "is lost" in running.log.read_text(), "the loss is noticed")
        # While there is no gateway: an answer, after the patience for it.
        begin = time.monotonic()
        assert reply(host, address, plan.ALPHA.v4, plan.HTTP_PORT) == 3
        assert time.monotonic() - begin < PATIENCE
        vpn.gateway.start()
        until(lambda: "connected again" in running.log.read_text(), "it is made again", 60)
        code, sock = host.call(socks_connect, address, plan.ALPHA.v4, plan.HTTP_PORT)
        sock.close()
        assert code == 0


def test_a_revoked_device_is_told_so_and_ends(vpn: Vpn) -> None:
    client = vpn.clients[0]
    client.add_profile(vpn.gateway.token("doomed"), "doomed")
    running = Proxy(client, "proxy", "doomed", "--socks", "127.0.0.1:0")
    address = running.address()
    code, sock = client.host.call(socks_connect, address, plan.ALPHA.v4, plan.ECHO_PORT)
    with closing(sock):
        assert code == 0
        vpn.gateway.command("revoke", "doomed")
        sock.settimeout(AT_ONCE)
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
    assert reply(client.host, address, plan.ALPHA.v4, plan.ECHO_PORT) != 0
    running.stop()
    again = client.command("proxy", "doomed", "--socks", "127.0.0.1:0", check=False)
    assert again.returncode == 1
    assert "does not know this device" in again.stderr
    assert again.stderr.count("\n") == 1


def test_a_port_that_is_taken_is_one_line(vpn: Vpn) -> None:
    with proxy(vpn, "proxy", "home", "--socks", "127.0.0.1:0") as running:
        _, port = running.address()
        second = running.client.command(
            "proxy", "home", "--socks", f"127.0.0.1:{port}", check=False
        )
        assert second.returncode == 1
        assert second.stderr.startswith(f"qvpn: cannot listen on 127.0.0.1:{port}")
        assert second.stderr.count("\n") == 1


#: Makes a Python that has nothing that only Linux has, and runs `qvpn` in it.
ELSEWHERE = """
import asyncio, os, signal, socket, sys

class Absent:
    NAMES = {"fcntl", "pyroute2", "pytun", "resource", "pwd", "grp", "termios"}
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.NAMES:
            raise ImportError(f"no {name} on this system")

for name in Absent.NAMES & set(sys.modules):
    del sys.modules[name]
sys.meta_path.insert(0, Absent())
sys.platform = "win32"
for module, names in (
    (os, "geteuid getuid fork memfd_create setns"),
    (socket, "SOCK_CLOEXEC SO_MARK AF_NETLINK SCM_RIGHTS CMSG_SPACE CMSG_LEN IP_PKTINFO TCP_INFO"
     " TCP_USER_TIMEOUT"),
    (signal, "SIGHUP"),
):
    for name in names.split():
        if hasattr(module, name):
            delattr(module, name)
for name in ("recvmsg", "sendmsg", "recvmsg_into"):
    setattr(socket.socket, name, property())

def unavailable(*_):
    raise NotImplementedError

asyncio.SelectorEventLoop.add_signal_handler = unavailable
from qvpn_core.client.cli import main
status = main(sys.argv[1:])
left = {name for name in sys.modules if name.startswith(("qvpn_core.net.", "qvpn_core.datapath"))}
types = {f"qvpn_core.net.{name}" for name in ("buffers", "names", "plan", "survey")}
assert left <= types, left
sys.exit(status)
"""


@pytest.mark.parametrize("transport", ["quic", "tls"])
def test_it_runs_where_nothing_of_linux_is(
    vpn: Vpn, tmp_path: Path, https: Path, transport: str
) -> None:
    script = tmp_path / "elsewhere.py"
    script.write_text(ELSEWHERE)
    client = vpn.clients[0]
    argv = (sys.executable, str(script))
    vpn.world.relay.set(block_udp=transport == "tls")
    try:
        running = Proxy(client, "proxy", "home", "--socks", "127.0.0.1:0", argv=argv)
        address, port = running.address()
        got = curl(
            client.host, "--proxy", f"socks5h://{address}:{port}", "--cacert", str(https),
            "https://www.alpha.test/",
        )  # fmt: skip
        assert (got.returncode, len(got.stdout)) == (0, 90_000)
        assert running.stop() in (0, 130)
    finally:
        vpn.world.relay.clear()


def test_it_needs_no_rights(vpn: Vpn) -> None:
    if shutil.which("setpriv") is None:
        pytest.skip("no setpriv: install the package util-linux")
    # Whoever is without capabilities is nobody, whatever his number: it can be tried with files
    # that only root reads.
    powerless = ("setpriv", "--bounding-set=-all", "--inh-caps=-all")
    client = vpn.clients[0]
    running = Proxy(
        client, "proxy", "home", "--socks", "127.0.0.1:0", argv=(*powerless, str(BIN / "qvpn"))
    )
    try:
        address = running.address()
        status = Path(f"/proc/{running.process.pid}/status").read_text()
        assert "CapEff:\t0000000000000000" in status
        assert reply(client.host, address, plan.ALPHA.v4, plan.HTTP_PORT) == 0
    finally:
        running.process.kill()
        running.process.wait()


def test_the_status_shows_what_is_used(vpn: Vpn) -> None:
    with proxy(vpn, "proxy", "home", "--socks", "127.0.0.1:0") as running:
        host, address = running.client.host, running.address()
        code, sock = host.call(socks_connect, address, plan.ALPHA.v4, plan.ECHO_PORT)
        with closing(sock):
            assert code == 0
            sock.sendall(b"x" * 1000)
            assert sock.recv(1000)
            status: dict[str, Any] = json.loads(vpn.gateway.command("status", "--json").stdout)
            used = next(user for user in status["services"] if user["device"] == "first")
            assert used["open"] >= 1
            assert used["rx_bytes"] >= 1000
            assert "first" in vpn.gateway.command("status").stdout
