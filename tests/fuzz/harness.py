"""A small deterministic fuzzer: mutated seeds and random bytes into one parser at a time.

To plug a parser in, put a test like `test_masque.py` beside this file: a list of `Target`s and one
parametrised test that calls `fuzz`. A target's `run` takes bytes, ignores the errors that the
parser is meant to raise, and asserts whatever must hold for what it accepts.

A run is repeatable: the inputs follow from the target's name and QVPN_FUZZ_SEED (default 0). Each
target gets QVPN_FUZZ_SECONDS seconds (default: a fraction of one, for the ordinary test run).
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

DEFAULT_SECONDS = 0.5

#: No input may cost more processor time than this, in seconds: parsers are linear.
MAX_INPUT_SECONDS = 1.0

_MAX_SIZE = 4096  # bytes of one input
_INTERESTING = b"\x00\x01\x02\x04\x06\x3f\x40\x7f\x80\xbf\xc0\xfe\xff"


@dataclass(frozen=True, slots=True)
class Target:
    """A parser under test: what to do with an input, and valid inputs to start from."""

    name: str
    run: Callable[[bytes], object]
    seeds: Sequence[bytes] = ()


def seconds_per_target() -> float:
    """How long `fuzz` runs."""
    return float(os.environ.get("QVPN_FUZZ_SECONDS", DEFAULT_SECONDS))


def fuzz(target: Target) -> int:
    """Runs inputs through `target` until its time is over and returns how many there were.

    The first input that raises, or takes too long, fails the test with a note that repeats it.
    """
    rng = random.Random(f"{os.environ.get('QVPN_FUZZ_SEED', '0')} {target.name}")
    pool = [bytes(seed) for seed in target.seeds] or [b""]
    deadline = time.monotonic() + seconds_per_target()
    runs = 0
    while runs < len(pool) or time.monotonic() < deadline:
        data = pool[runs] if runs < len(pool) else _input(rng, pool)
        started = time.thread_time()
        try:
            target.run(data)
            spent = time.thread_time() - started
            assert spent < MAX_INPUT_SECONDS, f"{spent:.1f} s for one input"
        except Exception as error:
            error.add_note(f"input {runs} of {target.name}: bytes.fromhex('{data.hex()}')")
            raise
        runs += 1
    return runs


def _input(rng: random.Random, pool: Sequence[bytes]) -> bytes:
    if rng.random() < 0.1:
        return rng.randbytes(rng.randrange(64))
    data = bytearray(rng.choice(pool))
    for _ in range(1 + rng.randrange(4)):
        rng.choice(_MUTATIONS)(rng, data, pool)
    return bytes(data[:_MAX_SIZE])


def _flip_bit(rng: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    if data:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _set_byte(rng: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    if data:
        data[rng.randrange(len(data))] = rng.choice((*_INTERESTING, rng.randrange(256)))


def _truncate(rng: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    del data[rng.randrange(len(data) + 1) :]


def _delete(rng: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    start = rng.randrange(len(data) + 1)
    del data[start : start + rng.randrange(9)]


def _insert(rng: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    start = rng.randrange(len(data) + 1)
    data[start:start] = rng.randbytes(rng.randrange(1, 9))


def _repeat(rng: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    start = rng.randrange(len(data) + 1)
    piece = data[start : start + rng.randrange(1, 33)]
    data[start:start] = piece * rng.randrange(1, 9)


def _splice(rng: random.Random, data: bytearray, pool: Sequence[bytes]) -> None:
    other = rng.choice(pool)
    data[rng.randrange(len(data) + 1) :] = other[rng.randrange(len(other) + 1) :]


_MUTATIONS = (_flip_bit, _set_byte, _truncate, _delete, _insert, _repeat, _splice)
