"""The impairment relay's process: moves packets between two TUN devices through two lines.

Started by `tests.world.relay` with one JSON argument that names inherited file descriptors; steered
over a socket with JSON messages that replace a direction's impairment and are answered with the
counters; ends when that socket closes.
"""

from __future__ import annotations

import gc
import json
import os
import select
import socket
import sys
import time
from dataclasses import asdict
from typing import Final

from tests.world.impairment import Impairment, Line

#: Packets taken from one device before the other gets its turn.
_BATCH: Final = 64
_LARGEST: Final = 65535


def main(argument: str) -> None:
    """Relay until the control socket closes."""
    setup = json.loads(argument)
    control = socket.socket(fileno=setup["control"])
    near, far = setup["near"], setup["far"]
    seed = setup["seed"]
    lines = {
        "up": Line(seed, tuple(setup["hops"][0])),
        "down": Line(seed + 1, tuple(setup["hops"][1])),
    }
    # Each line with where its packets come from and go to.
    paths = ((near, lines["up"], far), (far, lines["down"], near))
    gc.disable()  # nothing here makes cycles, and a collection would be jitter
    while True:
        ready, _, _ = select.select([near, far, control], [], [], _time_left(lines))
        if control in ready and not _obey(control, lines):
            return
        for source, line, target in paths:
            if source in ready:
                _take(source, line)
            for packet in line.pop(time.monotonic()):
                _give(target, packet, line)


def _time_left(lines: dict[str, Line]) -> float | None:
    """Seconds until a line has something to deliver, or None when none holds anything."""
    times = [line.next_due for line in lines.values()]
    due = min((time for time in times if time is not None), default=None)
    return None if due is None else max(0.0, due - time.monotonic())


def _take(source: int, line: Line) -> None:
    for _ in range(_BATCH):
        try:
            packet = os.read(source, _LARGEST)
        except OSError:  # empty, or the device is down
            return
        answer = line.push(packet, time.monotonic())
        if answer is not None:
            _give(source, answer, line)


def _give(target: int, packet: bytes, line: Line) -> None:
    try:
        os.write(target, packet)
    except OSError:
        line.counters.refused += 1


def _obey(control: socket.socket, lines: dict[str, Line]) -> bool:
    """Handle one control message; False when there will be no more."""
    message = control.recv(8192)
    if not message:
        return False
    for direction, impairment in json.loads(message).items():
        lines[direction].impair(Impairment(**impairment))
    control.send(json.dumps({name: asdict(line.counters) for name, line in lines.items()}).encode())
    return True


if __name__ == "__main__":
    main(sys.argv[1])
