"""Finds the invite in what a person pasted: a whole mail, a chat line, a link broken by a mailer.

Wrapping, indentation, quoting, brackets, markup and percent-encoding between and around the link's
characters do not matter, since none of it is in the link's alphabet and the link knows its own
length. Exactly one invite is found, or an error says what is wrong.
"""

from __future__ import annotations

import re
import string
from urllib.parse import unquote

from qvpn_core.auth.invite import SCHEME, Invite, InviteAltered
from qvpn_core.errors import QvpnError

#: A longer text is not looked at, in characters.
MAX_TEXT = 1 << 16

# What mailers, terminals and editors put at the ends of the lines that they break.
_LINE_ENDS = string.whitespace + "\\=>|*#\u00a0\u200b\u200c\u200d\u2060\ufeff"
_INVISIBLE = dict.fromkeys(map(ord, "\u00ad\u200b\u200c\u200d\u2060\ufeff"))
_MAX_PERCENT_ENCODINGS = 3  # on top of each other
_FOREIGN = re.compile(r"[^A-Za-z0-9_:/-]++")
_SCHEME = re.compile(" ?".join(SCHEME), re.IGNORECASE)
_NOT_ALPHABET = re.compile(r"[^A-Za-z0-9_-]")


class InviteMissing(QvpnError):
    """There is no invite link in the text."""

    reason = "invite-missing"


class InviteAmbiguous(QvpnError):
    """There are several different invites in the text."""

    reason = "invite-several"


def find_invite(text: str) -> Invite:
    """The one invite in `text`; copies of it, whole or damaged, do no harm.

    Raises InviteMissing, InviteAmbiguous, and what :meth:`Invite.from_characters` raises when no
    link is whole.
    """
    if len(text) > MAX_TEXT:
        raise InviteMissing("the text is too long for an invite", "paste only the link")
    failures: list[QvpnError] = []
    # A mailer may double line ends. Where that does not help, an empty line is what it looks like,
    # and tells a link that was cut off from one that was changed.
    for paragraph_end in ("", " "):
        found, failed = _search(_normal_form(text, paragraph_end))
        failures = failed or failures
        if len(found) > 1:
            raise InviteAmbiguous(
                f"the text holds {len(found)} different invite links", "paste the one that you mean"
            )
        if found:
            return found.pop()
    if failures:
        raise failures[0]
    raise InviteMissing("there is no invite link in the text", f"it begins with {SCHEME}")


def _search(normal: str) -> tuple[set[Invite], list[QvpnError]]:
    """The invites in a normal form, and what is wrong with each other link."""
    found: set[Invite] = set()
    failures: list[QvpnError] = []
    for candidate in _SCHEME.split(normal)[1:]:
        try:
            found.add(_read(candidate))
        except QvpnError as error:
            failures.append(error)
    return found, failures


def _read(candidate: str) -> Invite:
    """The invite in what lies between one scheme and the next."""
    try:
        return Invite.from_characters(_NOT_ALPHABET.sub("", candidate))
    except InviteAltered:
        # Prose behind a link that was cut off would look like its changed end.
        Invite.from_characters(_NOT_ALPHABET.split(candidate, maxsplit=1)[0])
        raise


def _normal_form(text: str, paragraph_end: str) -> str:
    """`text` with its lines joined, percent-encoding undone and a space for all that is foreign."""
    text = _join_lines(text, paragraph_end)
    for _ in range(_MAX_PERCENT_ENCODINGS):
        if "%" not in text:
            break
        text = _join_lines(unquote(text), paragraph_end)
    return _FOREIGN.sub(" ", text)


def _join_lines(text: str, paragraph_end: str) -> str:
    lines = (line.strip(_LINE_ENDS) for line in text.translate(_INVISIBLE).splitlines())
    return "".join(line or paragraph_end for line in lines)
