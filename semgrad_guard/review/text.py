"""Texts made fit for a database and a page: every character storable, previews short, questions comparable."""

from __future__ import annotations

import hashlib
import re
import unicodedata

_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
_SPACE = re.compile(r"\s+")
UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\U000e0000-\U000e007f]"
)
"""Characters that change how a text looks without being seen: controls, zero-width, direction overrides, tags."""


def storable(text: str) -> str:
    """Return the text with every character that UTF-8 or PostgreSQL can't hold replaced by U+FFFD, one for one."""
    return _UNSTORABLE.sub("�", text)


def shorten(text: str, limit: int) -> str:
    """Return the text on one line, at most `limit` characters long."""
    line = _SPACE.sub(" ", storable(text[: limit * 4])).strip()
    return line if len(line) <= limit else line[: limit - 1] + "…"


def question_key(question: str) -> str:
    """Return a digest that is equal for questions that differ only in case, spacing or Unicode form."""
    return hashlib.sha256(plain_question(question).encode()).hexdigest()


def plain_question(question: str) -> str:
    """Return the question in one case, spacing and Unicode form."""
    return _SPACE.sub(" ", unicodedata.normalize("NFKC", storable(question)).casefold()).strip()


def reveal(text: str) -> str:
    """Return the text with unseen characters written out, so that what is read is what is there."""
    return UNSEEN.sub(lambda found: unseen_name(found[0]), text)


def unseen_name(character: str) -> str:
    """Return how an unseen character is written out, for example `⟨U+202E⟩`."""
    return f"⟨U+{ord(character):04X}⟩"
