"""Text that tokenizers can read."""

from __future__ import annotations


def clean_text(text: str) -> str:
    """Return the text without lone surrogates, which no UTF-8 tokenizer can read.

    A high and a low surrogate that belong together become the character that they stand for; a lone one becomes
    U+FFFD, as a browser or a terminal would show it. Other text comes back unchanged.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text
