"""Convert texts and chat messages to token ids and back, with the model's own template."""

from __future__ import annotations

import hashlib
import json
from itertools import chain
from typing import TYPE_CHECKING, cast
from weakref import WeakKeyDictionary

from jinja2.exceptions import TemplateError

from semgrad_guard.flow import Message
from semgrad_guard.models.device import lock_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from semgrad_guard.flow import Prompt


def clean_text(text: str) -> str:
    """Return the text without lone surrogates, which no UTF-8 tokenizer can read.

    A matching pair of high and low surrogate becomes its character; a lone surrogate becomes U+FFFD, as in a browser or
    terminal. Other text is returned unchanged.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


_special_tokens: WeakKeyDictionary[PreTrainedTokenizerBase, Mapping[str, int]] = WeakKeyDictionary()


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> Mapping[str, int]:
    """Return a map from text to id of all special tokens, including added ones, which chat templates often use.

    Listing thousands of added tokens takes milliseconds, so it is done once per tokenizer.
    """
    found = _special_tokens.get(tokenizer)
    if found is None:
        added = {
            str(token.content): number for number, token in tokenizer.added_tokens_decoder.items() if token.special
        }
        named = zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True)
        found = {text: number for text, number in {**added, **dict(named)}.items() if text}
        _special_tokens[tokenizer] = found
    return found


def starts_special(tokenizer: PreTrainedTokenizerBase, text: str) -> bool:
    """Tell whether a text begins with a special token, like text that a template has already rendered."""
    return text.startswith(tuple(special_tokens(tokenizer)))


_PROBE = "probe"


def has_template(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Tell whether the model is a chat model, that is, its tokenizer has a template."""
    return bool(tokenizer.chat_template)


def template_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the SHA-256 digest of the chat template; of the empty text for a base model."""
    template: object = tokenizer.chat_template or ""
    text = template if isinstance(template, str) else json.dumps(template, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def render(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> str:
    """Return the text of a chat, up to the point where the assistant's answer begins.

    - A chat model's own template is used, with its generation prompt.
    - If a template refuses a system message, or turns that do not alternate, messages are merged: the system message
      goes to the start of the first user message, and neighbours of one role are joined by a blank line.
    - A base model has no template, so contents are joined by blank lines. If they include earlier turns of an
      assistant, each turn starts with its role (`user: …`), and `assistant:` ends the text.
    """
    messages = [Message(message.role, clean_text(message.content)) for message in messages]
    if not has_template(tokenizer):
        return join_plainly(messages)
    try:
        return _apply(tokenizer, messages)
    except TemplateError:
        return _apply(tokenizer, _merged(messages))


def join_plainly(messages: Sequence[Message]) -> str:
    """Return the messages as plain text, for a model without a chat template."""
    if not any(message.role == "assistant" for message in messages):
        return "\n\n".join(message.content for message in messages)
    turns = [f"{message.role}: {message.content}" for message in messages]
    return "\n\n".join([*turns, "assistant:"])


def turn_end_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Return the id of the special token that ends an assistant's turn in the chat template, or nothing.

    Checkpoints do not always name it as an end token, but the template always contains it.
    """
    if not has_template(tokenizer):
        return ()
    turn = [Message("user", _PROBE), Message("assistant", _PROBE)]
    try:
        text = _apply(tokenizer, turn, add_generation_prompt=False)
    except TemplateError:
        return ()
    rest = text.rpartition(_PROBE)[2].lstrip()
    ids = tokenizer(rest, add_special_tokens=False)["input_ids"] if rest else []
    return tuple(ids[:1]) if ids and ids[0] in special_tokens(tokenizer).values() else ()


def _apply(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], *, add_generation_prompt: bool = True
) -> str:
    chat = [{"role": message.role, "content": message.content} for message in messages]
    rendered = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=add_generation_prompt)
    return cast("str", rendered)


def _merged(messages: Sequence[Message]) -> list[Message]:
    """Return messages of alternating roles without a system message."""
    merged: list[Message] = []
    for message in messages:
        role = "user" if message.role == "system" else message.role
        if merged and merged[-1].role == role:
            merged[-1] = Message(role, f"{merged[-1].content}\n\n{message.content}")
        else:
            merged.append(Message(role, message.content))
    return merged


def encode(tokenizer: PreTrainedTokenizerBase, text: str, *, special: bool) -> tuple[int, ...]:
    """Return the ids of a text; `special` adds the tokenizer's leading tokens, but never an end token."""
    # a fast tokenizer cannot be used by two threads while one of them changes its padding or truncation
    with lock_of(tokenizer):
        ids = tuple(tokenizer(clean_text(text), add_special_tokens=special, verbose=False)["input_ids"])
    ends = special and len(ids) > 1 and ids[-1] == tokenizer.eos_token_id
    return ids[:-1] if ends and not text.endswith(str(tokenizer.eos_token)) else ids


def decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], *, keep_special: bool = False) -> str:
    """Return the text of token ids with unchanged spaces; special tokens are left out unless `keep_special`."""
    with lock_of(tokenizer):
        text = tokenizer.decode(list(ids), skip_special_tokens=not keep_special, clean_up_tokenization_spaces=False)
    return str(text)


def prompt_text(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> tuple[str, bool]:
    """Return the text of a prompt, and whether it still needs the tokenizer's leading special tokens.

    Messages are rendered by the model's template, which includes special tokens. Plain text is read unchanged, after
    the tokenizer's usual leading tokens, as in a `PromptTemplate | HuggingFacePipeline` chain; text that begins with a
    special token is already rendered and gets no leading tokens.
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

    Both are tokenised together, because a tokenizer may split a text differently at its beginning. If this does not
    reproduce the prompt's ids (a token would span the border), the answer is tokenised alone.

    Args:
        tokenizer: the model's tokenizer.
        prompt_ids: the prompt's ids as the model read them.
        prompts: possible forms of the prompt; the decoded `prompt_ids` are tried last.
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

    They come from the chat template, the tokenizer and the model's generation settings, because each of these may name
    only some of them.
    """
    settings = getattr(model, "generation_config", None)
    listed = getattr(settings, "eos_token_id", None)
    ends = [*turn_end_ids(tokenizer), tokenizer.eos_token_id, *(listed if isinstance(listed, list) else [listed])]
    return tuple(dict.fromkeys(end for end in ends if isinstance(end, int)))


def can_wrap(tokenizer: PreTrainedTokenizerBase, text: str) -> bool:
    """Tell whether a plain text can be read as a user's message: for a chat model, and if it is not rendered yet."""
    return has_template(tokenizer) and not starts_special(tokenizer, text)


UNFINISHED = "\ufffd"
"""Character that a tokenizer shows where only some bytes of a character have been decoded."""
_OVERLAP = 8
"""How many tokens are decoded again before each piece: enough that its first token is decoded as it is in the text."""


def text_ends(decode: Callable[[Sequence[int]], str], ids: Sequence[int]) -> list[int]:
    """Return for each token how many characters the text has up to and including it.

    The text is decoded in short pieces, so that the work grows with its length and not with its square.

    Args:
        decode: ids -> their text.
        ids: the token ids.
    """

    def length(start: int, end: int) -> int:
        return len(decode(ids[start:end]).rstrip(UNFINISHED))

    ends, start, known, offset = list[int](), 0, 0, 0
    for n in range(1, len(ids) + 1):
        if n - start > 2 * _OVERLAP:
            start = n - 1 - _OVERLAP
            known, offset = ends[-1], length(start, n - 1)
        ends.append(known + length(start, n) - offset)
    whole = length(0, len(ids))
    return ends if not ends or ends[-1] == whole else [length(0, n) for n in range(1, len(ids) + 1)]


def prompt_offsets(
    tokenizer: PreTrainedTokenizerBase, prompt_ids: Sequence[int], prompts: Sequence[Prompt]
) -> tuple[str, list[tuple[int, int]]]:
    """Return a prompt's text, and the first character and the end of each of its tokens in it.

    Args:
        tokenizer: the model's tokenizer.
        prompt_ids: the prompt's ids as the model read them.
        prompts: possible forms of the prompt; the decoded ids are tried last.
    """
    ids = list(prompt_ids)
    known = (prompt_text(tokenizer, prompt) for prompt in prompts if prompt)
    from_ids = ((decode(tokenizer, ids, keep_special=True), False) for _ in range(1))
    for text, special in chain(known, from_ids) if tokenizer.is_fast else ():
        clean = clean_text(text)
        with lock_of(tokenizer):
            found = tokenizer(clean, add_special_tokens=special, return_offsets_mapping=True, verbose=False)
        if found["input_ids"][: len(ids)] == ids:
            return clean, [(start, end) for start, end in found["offset_mapping"][: len(ids)]]
    ends = text_ends(lambda some: decode(tokenizer, some, keep_special=True), ids)
    return decode(tokenizer, ids, keep_special=True), list(zip([0, *ends], ends, strict=False))
