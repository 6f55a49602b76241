"""Programs that tests talk with."""

from __future__ import annotations

import os
import select
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Final, Self

_REPOSITORY: Final = Path(__file__).parents[2]


class Talker:
    """A program that answers a line with a line, within a time."""

    def __init__(self, *command: str, env: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            command,
            env=env,
            cwd=_REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self._rest = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(5)
        self._process.stdout.close()

    @property
    def pid(self) -> int:
        """Of the program."""
        return self._process.pid

    def ask(self, line: str, timeout: float = 30.0) -> str:
        """Say a line, and hear one."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n".encode())
        self._process.stdin.flush()
        return self.hear(timeout)

    def hear(self, timeout: float = 30.0) -> str:
        """Hear a line."""
        assert self._process.stdout is not None
        end = time.monotonic() + timeout
        while b"\n" not in self._rest:
            ready, _, _ = select.select(
                [self._process.stdout], [], [], max(0, end - time.monotonic())
            )
            more = os.read(self._process.stdout.fileno(), 1 << 20) if ready else b""
            assert more, f"no answer: status {self._process.poll()}"
            self._rest += more
        answer, _, self._rest = self._rest.partition(b"\n")
        return answer.decode()
