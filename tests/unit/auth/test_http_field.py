"""Authorization fields by the grammar of RFC 9110 section 11.4."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qvpn_core.auth.http_field import MAX_FIELD, Credentials, parse_credentials, quote


@pytest.mark.parametrize(
    ("field", "parameters", "quoted"),
    [
        ("Scheme", {}, {}),
        ("Scheme ", {}, {}),
        ("Scheme k=v", {"k": "v"}, {}),
        ("Scheme   k=v,l=w", {"k": "v", "l": "w"}, {}),
        ("Scheme k=v \t,\t l=w", {"k": "v", "l": "w"}, {}),
        ("Scheme k \t= \tv", {"k": "v"}, {}),
        ("Scheme ,, k=v,, ,l=w , ", {"k": "v", "l": "w"}, {}),
        ("Scheme Realm=x", {"realm": "x"}, {}),
        ('Scheme k="v"', {}, {"k": "v"}),
        ('Scheme k="",l="a b,c=d"', {}, {"k": "", "l": "a b,c=d"}),
        (r'Scheme k="a\"b\\c\d"', {}, {"k": r'a"b\cd'}),
    ],
)
def test_well_formed(field: str, parameters: dict[str, str], quoted: dict[str, str]) -> None:
    assert parse_credentials(field) == Credentials("Scheme", parameters, quoted)


@pytest.mark.parametrize(
    "field",
    [
        "",
        " Scheme k=v",
        "Sch(eme k=v",
        "Scheme\tk=v",
        "Scheme,k=v",
        "Scheme k",
        "Scheme k=",
        "Scheme =v",
        "Scheme k=v l=w",
        "Scheme k=v;l=w",
        "Scheme k=v=",
        "Scheme dG9rZW4=",
        'Scheme k="v',
        'Scheme k="v"w',
        'Scheme k="v\\"',
        'Scheme k="\x00"',
        "Scheme k=\xe4",
        "Scheme k=v, k=w",
        "Scheme k=v, K=w",
        'Scheme k=v, k="v"',
        'Scheme k="v", k=v',
        'Scheme k="v", k="w"',
        "Scheme k=" + "v" * MAX_FIELD,
    ],
)
def test_malformed(field: str) -> None:
    assert parse_credentials(field) is None


@given(st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=100))
def test_what_was_quoted_is_read(text: str) -> None:
    credentials = parse_credentials(f"Scheme k={quote(text)}, l=w")
    assert credentials == Credentials("Scheme", {"l": "w"}, {"k": text})


@pytest.mark.parametrize("text", ["\n", "\xe4", "\x7f"])
def test_what_cannot_be_quoted(text: str) -> None:
    with pytest.raises(ValueError, match="printable ASCII"):
        quote(text)
