"""Unicode texts in one form, in a time that grows with their length alone."""

from __future__ import annotations

import re
import unicodedata
from functools import cache

MOST_MARKS = 30
"""Marks on one letter, as accents are, that count; no language has so many."""


def one_form(text: str) -> str:
    """Return a text in Unicode's form NFKC, with at most `MOST_MARKS` marks on a letter.

    Python puts the marks on a letter in order one by one, so that a text of many thousands would take hours.
    """
    return text if text.isascii() else unicodedata.normalize("NFKC", _many_marks().sub(r"\1", text))


@cache
def _many_marks() -> re.Pattern[str]:
    last = 0x1F000  # beyond it, no character is a mark
    marks = (chr(code) for code in range(0x300, last) if _is_mark(chr(code)))
    kind = f"[{''.join(map(re.escape, marks))}]"
    return re.compile(f"({kind}{{{MOST_MARKS}}}){kind}+")


def _is_mark(sign: str) -> bool:
    return all(unicodedata.combining(part) for part in unicodedata.normalize("NFKD", sign))
