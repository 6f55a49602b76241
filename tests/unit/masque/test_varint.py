"""Variable-length integers against the examples of RFC 9000 appendix A.1, and as a property."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qvpn_core.masque.varint import MAX_VARINT, decode_varint, encode_varint

RFC_9000_EXAMPLES = [
    ("c2197c5eff14e88c", 151_288_809_941_952_652),
    ("9d7f3e7d", 494_878_333),
    ("7bbd", 15_293),
    ("25", 37),
]


@pytest.mark.parametrize(("encoded", "value"), RFC_9000_EXAMPLES)
def test_examples_of_the_rfc(encoded: str, value: int) -> None:
    assert encode_varint(value).hex() == encoded
    assert decode_varint(bytes.fromhex(encoded)) == (value, len(encoded) // 2)


@pytest.mark.parametrize("longer", ["4025", "80000025", "c000000000000025"])
def test_an_encoding_need_not_be_the_shortest(longer: str) -> None:
    assert decode_varint(bytes.fromhex(longer)) == (37, len(longer) // 2)


@pytest.mark.parametrize("value", [-1, MAX_VARINT + 1])
def test_what_does_not_fit_is_refused(value: int) -> None:
    with pytest.raises(ValueError, match="does not fit"):
        encode_varint(value)


@pytest.mark.parametrize(
    ("value", "size"),
    [(63, 1), (64, 2), (16_383, 2), (16_384, 4), ((1 << 30) - 1, 4), (1 << 30, 8), (MAX_VARINT, 8)],
)
def test_the_shortest_form_is_chosen_on_both_sides_of_each_boundary(value: int, size: int) -> None:
    assert len(encode_varint(value)) == size


@given(value=st.integers(0, MAX_VARINT), before=st.binary(max_size=9), after=st.binary(max_size=9))
def test_what_was_encoded_is_decoded_wherever_it_stands(
    value: int, before: bytes, after: bytes
) -> None:
    encoded = encode_varint(value)
    end = len(before) + len(encoded)
    assert decode_varint(before + encoded + after, len(before)) == (value, end)
    for cut in range(len(encoded)):
        assert decode_varint(encoded[:cut]) is None
