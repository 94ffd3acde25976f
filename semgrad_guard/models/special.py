"""A tokenizer's special tokens: those that stand for structure, not for text."""

from __future__ import annotations

from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from collections.abc import Mapping

    from transformers import PreTrainedTokenizerBase

_known: WeakKeyDictionary[PreTrainedTokenizerBase, Mapping[str, int]] = WeakKeyDictionary()


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> Mapping[str, int]:
    """Return text -> id of all special tokens; a chat template's own are often named nowhere but among the added ones.

    Listing thousands of added tokens takes milliseconds, so it is done once a tokenizer.
    """
    found = _known.get(tokenizer)
    if found is None:
        added = {
            str(token.content): number for number, token in tokenizer.added_tokens_decoder.items() if token.special
        }
        named = zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True)
        found = _known[tokenizer] = {text: number for text, number in {**added, **dict(named)}.items() if text}
    return found


def starts_special(tokenizer: PreTrainedTokenizerBase, text: str) -> bool:
    """Tell whether a text begins with a special token, as one does that a template has already rendered."""
    return text.startswith(tuple(special_tokens(tokenizer)))
