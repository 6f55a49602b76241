"""Finding the invite in what people paste, after what mailers, chats and browsers did to it."""

from __future__ import annotations

import quopri
from collections.abc import Callable
from dataclasses import replace
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qvpn_core.auth.invite import (
    Invite,
    InviteAltered,
    InviteTruncated,
    InviteVersionUnknown,
)
from qvpn_core.auth.invite_text import MAX_TEXT, InviteAmbiguous, InviteMissing, find_invite
from tests.unit.auth.test_invite import INVITE, INVITE_CONTENT, INVITES, encoded

LINK = INVITE.link
OTHER = replace(INVITE, secret=bytes(16)).link
LATER = "qvpn://" + encoded(b"\x02" + INVITE_CONTENT[1:])


def wrapped(text: str, width: int, prefix: str = "", end: str = "\n") -> str:
    """Broken after every `width` characters, wherever that is."""
    pieces = [text[place : place + width] for place in range(0, len(text), width)]
    return end.join(prefix + piece for piece in pieces)


PASTED = {
    "bare": LINK,
    "spaces": f"  {LINK} \r\n",
    "a sentence": f"Dear Ann, please use {LINK}. It is good for a day, Bob",
    "words on either side": f"invite {LINK} invite",
    "double quotes": f'"{LINK}"',
    "single quotes": f"'{LINK}'",
    "typographic quotes": f"„{LINK}“",
    "backticks": f"`{LINK}`",
    "brackets": f"<{LINK}>",
    "parentheses": f"({LINK})",
    "markdown": f"**[{LINK}]({LINK})**",
    "markdown that escapes": LINK.replace("_", r"\_").replace("-", r"\-"),
    "a chat's markup": f"<{LINK}|{LINK}>",
    "HTML": f'<p>Hello</p><a href="{LINK}">join</a>',
    "upper-case scheme": LINK.replace("qvpn", "QVPN"),
    "wrapped": wrapped(LINK, 40),
    "wrapped by CRLF": wrapped(LINK, 40, end="\r\n"),
    "wrapped and indented": wrapped(LINK, 40, "\t    "),
    "wrapped inside the scheme": wrapped(LINK, 5),
    "one character a line": wrapped(LINK, 1),
    "wrapped with empty lines": wrapped(LINK, 4, end="\n\n"),
    "percent-encoded, with empty lines": wrapped(quote(LINK, safe=""), 5, end="\n\n"),
    "quoted": wrapped(f"Use {LINK}", 40, "> "),
    "quoted twice": wrapped(f"Use {LINK}", 40, "> > "),
    "quoted without space": wrapped(LINK, 40, ">>"),
    "a terminal's frame": wrapped(LINK, 40, "| ", " |\n"),
    "a shell's continuation": wrapped(LINK, 40, end="\\\n"),
    "spaces instead of line ends": "qvpn://" + wrapped(LINK[7:], 40, end=" "),
    "no-break spaces": wrapped(LINK, 40, "\u00a0"),
    "zero-width spaces": wrapped(LINK, 3, end="\u200b"),
    "soft hyphens": wrapped(LINK, 3, end="\u00ad"),
    "a byte order mark": f"\ufeff{LINK}",
    "quoted-printable": quopri.encodestring(f"Hello, {LINK}".encode()).decode(),
    "percent-encoded": quote(LINK, safe=""),
    "percent-encoded with lower-case digits": quote(LINK, safe="").lower()[:13] + LINK[7:],
    "percent-encoded whole": "".join(f"%{ord(character):02X}" for character in LINK),
    "percent-encoded three times": quote(quote(quote(LINK, safe=""), safe=""), safe=""),
    "percent-encoded and wrapped": wrapped(quote(LINK, safe=""), 6, "> "),
    "percent-encoded, with zero-width spaces": wrapped(quote(LINK, safe=""), 5, end="\u200b"),
    "percent-encoded, wrapped and percent-encoded": quote(wrapped(quote(LINK, safe=""), 5, "> ")),
    "a parameter of a scanner's link": f"https://scan.example/?u={quote(LINK, safe='')}&d=5",
    "behind percent signs": f"100% sure, 50%de, %zz: {LINK} %",
    "twice": f"{LINK}\n\n{LINK}",
    "twice, once wrapped": f"{LINK}\n\n{wrapped(LINK, 30, '> ')}",
    "beside a damaged copy": f"{LINK[:60]}...\n{LINK}",
    "beside a later form": f"{LATER} {LINK}",
    "behind an explanation": f"The link starts with qvpn:// and goes on: {LINK}",
}


@pytest.mark.parametrize("text", PASTED.values(), ids=PASTED)
def test_found(text: str) -> None:
    assert find_invite(text) == INVITE


DAMAGED = {
    "cut off": (LINK[:-10], InviteTruncated),
    "cut off before a sentence": (f"{LINK[:-10]}, the invite that I promised", InviteTruncated),
    "cut off before a line": (f"{LINK[:-10]}\nRegards, Bob, the administrator", InviteTruncated),
    "cut off before a paragraph": (f"{LINK[:-10]}\n\nRegardsFromBob", InviteTruncated),
    "cut off, percent-encoded, with empty lines": (
        wrapped(quote(LINK[:-10], safe=""), 5, end="\n\n"),
        InviteTruncated,
    ),
    "shortened": (f"{LINK[:60]}…{LINK[-20:]} and more words after it", InviteTruncated),
    "only the scheme": ("qvpn://", InviteTruncated),
    "changed": (LINK[:60] + ("A" if LINK[60] != "A" else "B") + LINK[61:], InviteAltered),
    "changed case": ("qvpn://" + LINK[7:].lower(), (InviteAltered, InviteTruncated)),
    "a line lost": (LINK[:40] + LINK[60:] + "x" * 20, InviteAltered),
    "a later version": (LATER, InviteVersionUnknown),
}


@pytest.mark.parametrize(("text", "error"), DAMAGED.values(), ids=DAMAGED)
def test_damaged(text: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        find_invite(text)


@pytest.mark.parametrize("width", [13, 40, 72])
def test_a_changed_link_is_recognised_as_such_when_wrapped(width: int) -> None:
    changed, _ = DAMAGED["changed"]
    with pytest.raises(InviteAltered):
        find_invite(wrapped(changed, width, "> "))


@pytest.mark.parametrize("text", ["", " \n", "hello", "https://vpn.example.org", LINK[7:], "qvpn"])
def test_nothing_is_there(text: str) -> None:
    with pytest.raises(InviteMissing, match="no invite link in the text: it begins with qvpn://"):
        find_invite(text)


@pytest.mark.parametrize("text", [f"{LINK} {OTHER}", f"{LINK}{OTHER}", f"> {OTHER}\n{LINK}\n"])
def test_different_links_are_not_guessed_between(text: str) -> None:
    with pytest.raises(InviteAmbiguous, match="2 different invite links"):
        find_invite(text)


def test_a_text_of_any_size_ends_soon() -> None:
    filling = MAX_TEXT - len(LINK)
    for filler in (" ", "\n", "%", "%25", "q", "qvpn:/", "=\n", "> "):
        assert find_invite((filler * filling)[:filling] + LINK) == INVITE
    with pytest.raises(InviteMissing, match="too long"):
        find_invite(" " * (filling + 1) + LINK)


# Everything at once

PROSE = st.text(
    st.characters(min_codepoint=0x20, max_codepoint=0x2FF, exclude_characters=":%=\\"),
    max_size=60,
)
MANGLERS: list[Callable[[str, int], str]] = [
    wrapped,
    lambda text, width: wrapped(text, width, "> "),
    lambda text, width: wrapped(text, width, ">> ", "\r\n"),
    lambda text, width: wrapped(text, width, "    ", " \n"),
    lambda text, width: wrapped(text, width, end="=\n"),
    lambda text, width: wrapped(text, width, end="\u200b"),
    lambda text, width: f"<{text}>",
    lambda text, width: f'"{text}"',
]


@given(
    invite=INVITES,
    before=PROSE,
    after=PROSE,
    encode=st.booleans(),
    manglers=st.lists(st.tuples(st.sampled_from(MANGLERS), st.integers(8, 80)), max_size=3),
)
def test_a_link_survives_what_happens_on_its_way(
    invite: Invite,
    before: str,
    after: str,
    encode: bool,
    manglers: list[tuple[Callable[[str, int], str], int]],
) -> None:
    text = f"{before} {quote(invite.link, safe='') if encode else invite.link} {after}"
    for mangle, width in manglers:
        text = mangle(text, width)
    assert find_invite(text) == invite
