"""Prompts and answers -> the exact token ids that a model reads and writes."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING

from semgrad_guard.models.device import lock_of
from semgrad_guard.models.special import starts_special
from semgrad_guard.models.template import has_template, render, turn_end_ids
from semgrad_guard.models.text import clean_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from semgrad_guard.flow import Prompt


def encode(tokenizer: PreTrainedTokenizerBase, text: str, *, special: bool) -> tuple[int, ...]:
    """Return the ids of a text; `special` adds what the tokenizer puts before a text (never an end token after it)."""
    # a fast tokenizer refuses to be used from two threads while one of them changes its padding or truncation
    with lock_of(tokenizer):
        ids = tuple(tokenizer(clean_text(text), add_special_tokens=special, verbose=False)["input_ids"])
    ends = special and len(ids) > 1 and ids[-1] == tokenizer.eos_token_id
    return ids[:-1] if ends and not text.endswith(str(tokenizer.eos_token)) else ids


def decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], *, keep_special: bool = False) -> str:
    """Return the text of token ids, spaces as they are; special tokens are left out unless `keep_special`."""
    with lock_of(tokenizer):
        text = tokenizer.decode(list(ids), skip_special_tokens=not keep_special, clean_up_tokenization_spaces=False)
    return str(text)


def prompt_text(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> tuple[str, bool]:
    """Return the text of a prompt, and whether the tokenizer's own leading special tokens still belong before it.

    Messages go through the model's template, which writes its special tokens itself. Plain text is raw text: it is
    read as it stands, as a `PromptTemplate | HuggingFacePipeline` chain feeds it, behind the tokenizer's usual leading
    tokens; text that begins with a special token was rendered before and gets none.
    """
    if isinstance(prompt, str):
        return prompt, not starts_special(tokenizer, prompt)
    text = render(tokenizer, prompt)
    return text, not (has_template(tokenizer) or starts_special(tokenizer, text))


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> tuple[int, ...]:
    """Return the ids of a prompt, by the rules of `prompt_text`; an empty prompt has none."""
    if not prompt:
        return ()
    text, special = prompt_text(tokenizer, prompt)
    return encode(tokenizer, text, special=special)


def encode_answer(
    tokenizer: PreTrainedTokenizerBase, prompt_ids: Sequence[int], prompts: Sequence[Prompt], answer: str
) -> tuple[int, ...]:
    """Return the ids of an answer as they follow a prompt.

    Both are tokenised together, because a tokenizer may split a text differently at its beginning; only if the
    prompt's ids do not come out again (a token would span the border) is the answer tokenised alone.

    Args:
        tokenizer: the model's.
        prompt_ids: the prompt as the model read it.
        prompts: what the prompt may have been; the text of the ids themselves is tried last.
        answer: the answer's text.
    """
    if not answer:
        return ()
    prompt_ids, n = tuple(prompt_ids), len(prompt_ids)
    known = (prompt_text(tokenizer, prompt) for prompt in prompts if prompt)
    from_ids = ((decode(tokenizer, prompt_ids, keep_special=True), False) for _ in range(1))
    for text, special in chain(known, from_ids):
        both = encode(tokenizer, clean_text(text) + clean_text(answer), special=special)
        if len(both) > n and both[:n] == prompt_ids:
            return both[n:]
    return encode(tokenizer, answer, special=False)


def end_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Return the ids that end an answer, the usual one first.

    They come from the chat template, the tokenizer and the model's generation settings; a checkpoint may name only
    some of them in each place.
    """
    settings = getattr(model, "generation_config", None)
    listed = getattr(settings, "eos_token_id", None)
    found = [*turn_end_ids(tokenizer), tokenizer.eos_token_id, *(listed if isinstance(listed, list) else [listed])]
    return tuple(dict.fromkeys(end for end in found if isinstance(end, int)))


def can_wrap(tokenizer: PreTrainedTokenizerBase, text: str) -> bool:
    """Tell whether a plain text can be read as a user's message: the model is for chat, the text not rendered."""
    return has_template(tokenizer) and not starts_special(tokenizer, text)
