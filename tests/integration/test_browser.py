"""A browser is served the site as any web server would: over HTTP/2, and over HTTP/3."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.world import plan
from tests.world.namespaces import Namespace
from tests.world.vpn import PATIENCE, Vpn, until

pytestmark = pytest.mark.netns

SITE = "https://gateway.test/"
#: What the browser itself says of how a page came (W3C Resource Timing, PerformanceNavigationTiming
#: in it), and what is on it.
PROTOCOL = "performance.getEntriesByType('navigation')[0].nextHopProtocol"
HEADING = "document.querySelector('h1')?.textContent"


class Browser:
    """Chromium in a namespace, driven by its debugging pipe (Chrome DevTools Protocol)."""

    def __init__(self, host: Namespace, directory: Path, pin: str, *options: str) -> None:
        read, self._commands = os.pipe()
        self._answers, write = os.pipe()
        self._pending = b""
        self._count = 0
        argv = [
            "chromium", "--headless=new", "--no-sandbox", "--disable-gpu",
            "--disable-dev-shm-usage", "--disable-background-networking", "--no-first-run",
            "--disable-component-update", "--disable-sync", "--disable-extensions",
            f"--user-data-dir={directory}", "--remote-debugging-pipe",
            f"--host-resolver-rules=MAP gateway.test {plan.GATEWAY4}",
            f"--ignore-certificate-errors-spki-list={pin.removeprefix('sha256/')}",
            *options, "about:blank",
        ]  # fmt: skip
        self.log = directory / "log"
        with self.log.open("wb") as log:
            self.process = host.popen(
                ["bash", "-c", f'exec "$@" 3<&{read} 4>&{write}', "bash", *argv],
                pass_fds=(read, write),
                stdout=subprocess.DEVNULL,
                stderr=log,
                env={"PATH": os.environ["PATH"], "HOME": str(directory), "TMPDIR": str(directory)},
            )
        os.close(read)
        os.close(write)
        target = self._ask("Target.createTarget", url="about:blank")["targetId"]
        attached = self._ask("Target.attachToTarget", targetId=target, flatten=True)
        self._session: str = attached["sessionId"]

    def load(self, url: str) -> str:
        """Open a page; how it came, as the browser saw it."""
        self._ask("Page.navigate", url=url)
        until(lambda: self.evaluate("document.readyState") == "complete", "the page is there")
        assert self.evaluate("location.href") == url
        protocol: str = self.evaluate(PROTOCOL)
        return protocol

    def evaluate(self, expression: str) -> Any:
        """The value of an expression in the page."""
        answer = self._ask("Runtime.evaluate", expression=expression, returnByValue=True)
        return answer["result"].get("value")

    def _ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._count += 1
        message: dict[str, Any] = {"id": self._count, "method": method, "params": parameters}
        if method.partition(".")[0] != "Target":
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._answer()
            if answer.get("id") == self._count:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result

    def _answer(self) -> dict[str, Any]:
        while b"\0" not in self._pending:
            assert select.select([self._answers], [], [], PATIENCE)[0], self.log.read_text()
            data = os.read(self._answers, 65536)
            assert data, self.log.read_text()
            self._pending += data
        text, _, self._pending = self._pending.partition(b"\0")
        answer: dict[str, Any] = json.loads(text)
        return answer

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(PATIENCE)
        os.close(self._commands)
        os.close(self._answers)


@pytest.fixture(scope="module")
def pin(vpn: Vpn) -> str:
    """The gateway's pin, by which a browser that knows no authority for it lets it pass."""
    if shutil.which("chromium") is None:
        pytest.skip("no browser: install the package chromium")
    return vpn.gateway.token("whatever").pin


@contextlib.contextmanager
def browser(vpn: Vpn, pin: str, *options: str) -> Iterator[Browser]:
    # Of its own: pytest's are too long for the path of a socket, and it is killed in the end.
    with tempfile.TemporaryDirectory(prefix="qvpn-", ignore_cleanup_errors=True) as directory:
        running = Browser(vpn.clients[0].host, Path(directory), pin, *options)
        try:
            yield running
        finally:
            running.close()
    vpn.check_logs()


def test_over_http2(vpn: Vpn, pin: str) -> None:
    with browser(vpn, pin, "--disable-quic") as visitor:
        assert visitor.load(SITE) == "h2"
        assert visitor.evaluate(HEADING) == "Nothing here yet"
        assert visitor.load(SITE + "nowhere") == "h2"
        assert visitor.evaluate(HEADING) == "Not Found"


def test_over_http3(vpn: Vpn, pin: str) -> None:
    with browser(vpn, pin, "--origin-to-force-quic-on=gateway.test:443") as visitor:
        assert visitor.load(SITE) == "h3"
        assert visitor.evaluate(HEADING) == "Nothing here yet"
        assert visitor.load(SITE + "nowhere") == "h3"
        assert visitor.evaluate(HEADING) == "Not Found"


def test_http3_is_found_by_alt_svc(vpn: Vpn, pin: str) -> None:
    # Nothing is at port 1: this only allows HTTP/3 with an authority that Chromium does not ship.
    option = "--origin-to-force-quic-on=gateway.test:1"
    with browser(vpn, pin, option) as visitor:
        assert visitor.load(SITE) == "h2"
        # Another page: the first may come from the browser's cache.
        until(lambda: visitor.load(SITE + "nowhere") == "h3", "it has found HTTP/3")
        assert visitor.evaluate(HEADING) == "Not Found"
