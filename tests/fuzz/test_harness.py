"""The fuzzer itself: it finds a planted fault, repeats itself, and stops in time."""

from __future__ import annotations

import time

import pytest

from tests.fuzz.harness import Target, fuzz


def test_a_planted_fault_is_found_and_its_input_is_shown() -> None:
    def run(data: bytes) -> None:
        if data.endswith(b"\xff"):
            raise IndexError

    with pytest.raises(IndexError) as raised:
        fuzz(Target("planted", run, [b"valid"]))
    [note] = raised.value.__notes__
    assert note.endswith("ff')")


def test_the_same_target_gets_the_same_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QVPN_FUZZ_SECONDS", "0.05")
    first: list[bytes] = []
    second: list[bytes] = []
    for seen in (first, second):
        fuzz(Target("same", seen.append, [b"one seed", b"another"]))
    common = min(len(first), len(second))
    assert first[:common] == second[:common]
    assert len(set(first)) > 2


def test_every_seed_is_run_even_without_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QVPN_FUZZ_SECONDS", "0")
    seen: list[bytes] = []
    assert fuzz(Target("seeds", seen.append, [b"a", b"b"])) == 2
    assert seen == [b"a", b"b"]


def test_an_input_that_takes_too_long_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.fuzz.harness.MAX_INPUT_SECONDS", 0.001)

    def run(_: bytes) -> None:
        end = time.thread_time() + 0.01
        while time.thread_time() < end:
            pass

    with pytest.raises(AssertionError, match="for one input"):
        fuzz(Target("slow", run))
