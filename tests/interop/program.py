"""Programs that the interoperation tests run in a namespace and watch through what they print."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pytest

from tests.world.namespaces import Namespace

#: Seconds that anything a test waits for may take on a busy machine.
PATIENCE = 20.0

Event = dict[str, Any]
T = TypeVar("T")


class Program:
    """A running program. Both its output streams are one sequence of lines."""

    def __init__(
        self, namespace: Namespace, argv: Sequence[str], env: Mapping[str, str] | None = None
    ) -> None:
        self.process = namespace.popen(
            argv,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, **(env or {})},
        )
        self._seen: list[str] = []
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line.rstrip("\n"))
        self._lines.put(None)

    def wait_for(self, text: str) -> str:
        """The next line that contains `text`; those before it are passed over."""
        return self._next(lambda line: line if text in line else None, text)

    def _next(self, match: Callable[[str], T | None], what: str) -> T:
        while True:
            try:
                line = self._lines.get(timeout=PATIENCE)
            except queue.Empty:
                line = None
            if line is None:
                said = "\n".join(self._seen)
                pytest.fail(f"{self.process.args!r} never said {what!r}, but:\n{said}")
            self._seen.append(line)
            if (found := match(line)) is not None:
                return found

    def stop(self) -> int:
        """Ask it to end, and return its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.wait()

    def wait(self) -> int:
        """Its exit status, once it has ended by itself."""
        return self.process.wait(PATIENCE)

    def close(self) -> None:
        """End it whatever it does, and release what it holds here."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._reader.join()
        assert self.process.stdout is not None
        self.process.stdout.close()
        while not self._lines.empty():
            if (line := self._lines.get()) is not None:
                self._seen.append(line)
        print(self.process.args, *self._seen, sep="\n")  # shown with a test that fails


class Peer(Program):
    """connect-ip-peer, the third-party client or proxy, which prints events as JSON."""

    def __init__(self, namespace: Namespace, program: Path, *arguments: str) -> None:
        super().__init__(namespace, [str(program), *arguments])

    def wait_for_event(self, name: str) -> Event:
        """The next event with this name; what comes before it is passed over."""
        return self._next(lambda line: _event(line, name), name)


def _event(line: str, name: str) -> Event | None:
    if not line.startswith("{"):
        return None  # the library's log
    event: Event = json.loads(line)
    return event if event["event"] == name else None


StartPeer = Callable[..., Peer]
