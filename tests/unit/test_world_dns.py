"""The test world's DNS responder (RFC 1035), byte by byte."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.world.dns import AAAA, TXT, UDP_LIMIT, A, Question, answer, parse

NAMES = {"www.alpha.test": ("192.0.2.10", "2001:db8:a::10")}
ASKER = "203.0.113.2"


def query(name: str, kind: int) -> bytes:
    labels = b"".join(bytes([len(part)]) + part.encode() for part in name.split("."))
    return (
        b"\x12\x34"
        + struct.pack("!HHHHH", 0x0100, 1, 0, 0, 0)
        + labels
        + struct.pack("!BHH", 0, kind, 1)
    )


def ask(name: str, kind: int, *, limit: int | None = UDP_LIMIT) -> tuple[int, int, int, bytes]:
    """(response code, truncated, number of answers, the last answer's data)."""
    asked = query(name, kind)
    response = answer(asked, ASKER, NAMES, limit=limit)
    assert response is not None
    assert response[:2] == asked[:2]
    flags, questions, answers = struct.unpack_from("!HHH", response, 2)
    assert (flags & 0x8000, questions) == (0x8000, 1)
    assert response[12:].startswith(asked[12:])
    at, data = len(asked), b""
    for _ in range(answers):
        pointer, answered, _, _, length = struct.unpack_from("!HHHIH", response, at)
        assert (pointer, answered) == (0xC00C, kind)
        data = response[at + 12 : at + 12 + length]
        at += 12 + length
    assert at == len(response)
    return flags & 0xF, (flags >> 9) & 1, answers, data


@pytest.mark.parametrize(
    ("name", "kind", "data"),
    [
        ("www.alpha.test", A, bytes([192, 0, 2, 10])),
        ("WWW.Alpha.Test", A, bytes([192, 0, 2, 10])),
        ("www.alpha.test", AAAA, bytes.fromhex("20010db8000a00000000000000000010")),
        ("whoami.test", A, bytes([203, 0, 113, 2])),
        ("whoami.test", TXT, b"\x0b203.0.113.2"),
    ],
)
def test_names_it_knows_have_one_answer(name: str, kind: int, data: bytes) -> None:
    assert ask(name, kind) == (0, 0, 1, data)


def test_a_name_without_that_type_exists_but_has_no_answer() -> None:
    assert ask("www.alpha.test", TXT) == (0, 0, 0, b"")
    assert ask("whoami.test", AAAA) == (0, 0, 0, b"")


def test_an_unknown_name_does_not_exist() -> None:
    assert ask("nowhere.test", A) == (3, 0, 0, b"")


def test_an_answer_that_does_not_fit_udp_is_truncated_and_whole_over_tcp() -> None:
    assert ask("big.test", TXT) == (0, 1, 0, b"")
    assert ask("big.test", TXT, limit=None)[:3] == (0, 0, 10)


def test_a_response_is_not_answered() -> None:
    response = answer(query("www.alpha.test", A), ASKER, NAMES)
    assert response is not None
    assert answer(response, ASKER, NAMES) is None


@given(
    st.lists(
        st.text("abcdefghijklmnopqrstuvwxyz0123456789-", min_size=1, max_size=63),
        min_size=1,
        max_size=4,
    ),
    st.integers(0, 0xFFFF),
)
def test_questions_are_read_as_they_were_asked(labels: list[str], kind: int) -> None:
    assert parse(query(".".join(labels), kind)) == Question(".".join(labels), kind)


@given(st.binary(max_size=80))
def test_any_bytes_get_an_answer_to_their_id_or_none(data: bytes) -> None:
    response = answer(data, ASKER, NAMES)
    assert response is None or response[:2] == data[:2]
