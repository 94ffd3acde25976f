"""Numbers in words, the same in decisions and explanations."""

from __future__ import annotations


def versus(value: float, relation: str, limit: float) -> str:
    """Return two numbers and how they compare, with as many digits as it takes to tell them apart.

    Example:
        >>> versus(0.6999, "<", 0.7)
        '0.6999 < 0.7000'
    """
    for digits in range(2, 17):
        left, right = f"{value:.{digits}f}", f"{limit:.{digits}f}"
        if left != right:
            return f"{left} {relation} {right}"
    return f"{value:.2f} {relation} {limit:.2f}"


def listed(words: list[str], joint: str = "and") -> str:
    """Return words as a sentence lists them.

    Example:
        >>> listed(["a", "b", "c"], "or")
        'a, b or c'
    """
    return f" {joint} ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else "".join(words)
