"""Invite links: what they carry, that damage is told apart, that the secret stays unseen."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qvpn_core.auth.invite import (
    SCHEME,
    Gateway,
    Invite,
    InviteAltered,
    InviteExpired,
    InviteTruncated,
    InviteVersionUnknown,
    new_secret,
)

SECRET = bytes(range(0xC0, 0xD0))
PIN = "sha256/" + base64.b64encode(bytes(range(32))).decode()
INVITE = Invite(
    gateways=(Gateway("vpn.example.org", 443), Gateway("2001:db8::1", 4433)),
    secret=SECRET,
    pins=(PIN,),
    name="laptop",
    expires=1_800_000_000,
)
SMALLEST = Invite(gateways=(Gateway("a", 1),), secret=SECRET)

# INVITE by hand: version, length; gateways; pins; secret; expiry; name. A checksum follows.
INVITE_CONTENT = bytes.fromhex(
    "01 0064"
    "02 0f76706e2e6578616d706c652e6f7267 01bb 0b323030313a6462383a3a31 1151"
    "01 000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"
    "c0c1c2c3c4c5c6c7c8c9cacbcccdcecf"
    "6b49d200"
    "06 6c6170746f70"
)

HOSTS = st.one_of(
    st.from_regex(r"[a-z][a-z0-9]{0,20}(\.[a-z][a-z0-9]{0,20}){0,3}", fullmatch=True),
    st.ip_addresses(v=4).map(str),
    st.ip_addresses(v=6).map(str),
)
PINS = st.binary(min_size=32, max_size=32).map(
    lambda digest: "sha256/" + base64.b64encode(digest).decode()
)
INVITES = st.builds(
    Invite,
    gateways=st.lists(
        st.builds(Gateway, HOSTS, st.integers(1, 0xFFFF)), min_size=1, max_size=4
    ).map(tuple),
    secret=st.binary(min_size=16, max_size=16),
    pins=st.lists(PINS, max_size=4).map(tuple),
    name=st.none() | st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", fullmatch=True),
    expires=st.none() | st.integers(1, (1 << 32) - 1),
)


def encoded(content: bytes) -> str:
    """The characters of a link with a right checksum over any content."""
    data = content + hashlib.sha256(content).digest()[:4]
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def read(link: str) -> Invite:
    return Invite.from_characters(link.removeprefix(SCHEME))


# What a link is


def test_a_link_by_hand() -> None:
    assert INVITE.link == "qvpn://" + encoded(INVITE_CONTENT)
    assert read(INVITE.link) == INVITE


def test_a_usual_link_fits_a_line_and_a_half() -> None:
    usual = Invite((Gateway("vpn.example.org", 443),), new_secret(), (PIN,), "laptop", 1 << 31)
    assert len(usual.link) < 130


@given(INVITES)
def test_what_is_written_is_read(invite: Invite) -> None:
    assert re.fullmatch(r"qvpn://[A-Za-z0-9_-]+", invite.link)
    assert read(invite.link) == invite


def test_an_invite_of_the_greatest_size_is_read() -> None:
    label = "a" * 63
    host = ".".join((label, label, label, "b" * 61))
    greatest = Invite((Gateway(host, 65535),) * 4, SECRET, (PIN,) * 4, "n" * 63, (1 << 32) - 1)
    assert read(greatest.link) == greatest


@pytest.mark.parametrize(
    "change",
    [
        {"gateways": ()},
        {"gateways": INVITE.gateways * 3},
        {"gateways": (Gateway("", 443),)},
        {"gateways": (Gateway("a b", 443),)},
        {"gateways": (Gateway("[2001:db8::1]", 443),)},
        {"gateways": (Gateway("2001:DB8::1", 443),)},
        {"gateways": (Gateway("127.1", 443),)},
        {"gateways": (Gateway("münchen.example", 443),)},
        {"gateways": (Gateway("a", 0),)},
        {"gateways": (Gateway("a", 65536),)},
        {"secret": SECRET[:15]},
        {"secret": SECRET + b"\0"},
        {"pins": (PIN,) * 5},
        {"pins": (PIN.removeprefix("sha256/"),)},
        {"pins": ("sha256/AAAA",)},
        {"pins": ("sha256/?",)},
        {"name": ""},
        {"name": "a b"},
        {"name": "../x"},
        {"name": "n" * 64},
        {"expires": 0},
        {"expires": 1 << 32},
    ],
    ids=str,
)
def test_what_no_link_can_carry_is_no_invite(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"."):
        replace(INVITE, **change)


# Damage


@pytest.mark.parametrize("invite", [INVITE, SMALLEST], ids=["large", "small"])
def test_a_link_that_lost_its_end_is_cut_off(invite: Invite) -> None:
    characters = invite.link.removeprefix(SCHEME)
    for kept in range(len(characters)):
        with pytest.raises(InviteTruncated, match="copy it again"):
            Invite.from_characters(characters[:kept])
    assert Invite.from_characters(characters) == invite


def test_the_message_says_how_much_is_missing() -> None:
    characters = INVITE.link.removeprefix(SCHEME)
    with pytest.raises(InviteTruncated, match=f"after 100 of {len(characters)} characters"):
        Invite.from_characters(characters[:100])


@given(INVITES, st.data())
def test_a_changed_character_never_goes_unseen(invite: Invite, data: st.DataObject) -> None:
    characters = invite.link.removeprefix(SCHEME)
    place = data.draw(st.integers(0, len(characters) - 1))
    other = data.draw(st.sampled_from("ABab01-_").filter(lambda c: c != characters[place]))
    # A change of the length can also look as if the end were missing.
    with pytest.raises(InviteAltered if place >= 4 else (InviteAltered, InviteTruncated)):
        Invite.from_characters(characters[:place] + other + characters[place + 1 :])


def test_the_last_character_has_one_form() -> None:
    characters = INVITE.link.removeprefix(SCHEME)
    assert len(characters) % 4 == 2  # so that four bits of it say nothing
    for other in "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_":
        if other != characters[-1]:
            with pytest.raises(InviteAltered):
                Invite.from_characters(characters[:-1] + other)


def test_swapped_characters_are_seen() -> None:
    characters = INVITE.link.removeprefix(SCHEME)
    swapped = characters[:50] + characters[51] + characters[50] + characters[52:]
    assert swapped != characters
    with pytest.raises(InviteAltered, match="copy it again"):
        Invite.from_characters(swapped)


def test_what_follows_a_link_is_not_part_of_it() -> None:
    assert read(INVITE.link + "andmore") == INVITE


def test_a_link_of_a_later_version_is_told_from_a_damaged_one() -> None:
    later = bytes((2,)) + INVITE_CONTENT[1:]
    with pytest.raises(InviteVersionUnknown, match=r"version 2.*update qvpn"):
        Invite.from_characters(encoded(later))
    with pytest.raises(InviteTruncated):
        Invite.from_characters(encoded(later)[:-1])
    with pytest.raises(InviteAltered):
        Invite.from_characters(encoded(later)[:20] + "A" + encoded(later)[21:])


CONTENTS: list[tuple[str, Callable[[bytes], bytes]]] = [
    ("a short body", lambda c: c[:-1]),
    ("a long body", lambda c: c + b"\0"),
    ("no gateway", lambda c: c[:3] + b"\0" + c[37:]),
    ("a host that is none", lambda c: c.replace(b"vpn.example.org", b"vpn example.org")),
    ("a host that is not ASCII", lambda c: c.replace(b"vpn.example.org", b"\xff" * 15)),
    ("port 0", lambda c: c.replace(b"\x01\xbb", b"\0\0")),
    ("a name that is none", lambda c: c.replace(b"laptop", b"lap/op")),
    ("nothing", lambda c: c[:3]),
]


@pytest.mark.parametrize("change", [c for _, c in CONTENTS], ids=[n for n, _ in CONTENTS])
def test_nonsense_with_a_right_checksum_is_refused(change: Callable[[bytes], bytes]) -> None:
    content = change(INVITE_CONTENT)
    content = content[:1] + (len(content) + 4).to_bytes(2) + content[3:]
    with pytest.raises(InviteAltered):
        Invite.from_characters(encoded(content))


@pytest.mark.parametrize("size", [0, 3, 6, 7, 2049, 65535])
@pytest.mark.parametrize("filler", ["", "A" * 90_000])
def test_an_impossible_length_is_not_a_lost_end(size: int, filler: str) -> None:
    content = b"\x01" + size.to_bytes(2)
    with pytest.raises(InviteAltered):
        Invite.from_characters(encoded(content) + filler)


# The secret


def test_secrets_are_fresh_and_long_enough() -> None:
    assert len(new_secret()) * 8 >= 128
    assert new_secret() != new_secret()


def test_the_key_follows_from_the_secret_and_from_nothing_else() -> None:
    assert INVITE.key == SMALLEST.key == read(INVITE.link).key
    assert INVITE.key != replace(INVITE, secret=bytes(16)).key


def test_what_the_gateway_stores_does_not_contain_the_secret() -> None:
    stored = INVITE.key.public_key + INVITE.key.key_id
    assert SECRET not in stored
    assert len(stored) == 64


def test_the_secret_is_never_shown() -> None:
    shown = f"{INVITE!r} {INVITE} {INVITE.key!r}"
    for form in (repr(SECRET)[2:-1], SECRET.hex(), base64.b64encode(SECRET).decode()[:-2]):
        assert form not in shown
    assert "vpn.example.org" in shown


@pytest.mark.parametrize("damage", [lambda c: c[:-1], lambda c: c[:-1] + "-A"])
def test_no_error_repeats_the_link(damage: Callable[[str], str]) -> None:
    characters = INVITE.link.removeprefix(SCHEME)
    with pytest.raises((InviteAltered, InviteTruncated)) as caught:
        Invite.from_characters(damage(characters))
    assert characters[:8] not in str(caught.value)


# Expiry


def test_the_local_clock_gives_a_hint() -> None:
    INVITE.check_expiry(1_799_999_999.9)
    with pytest.raises(InviteExpired, match="2027-01-15 at 08:00 UTC by this computer's clock"):
        INVITE.check_expiry(1_800_000_000)


def test_an_invite_without_a_date_does_not_expire() -> None:
    SMALLEST.check_expiry(float(1 << 40))
