"""What the scoring model reads of an exchange: the ids that it read or wrote itself, or a prompt of its own."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from semgrad_guard.errors import ContextTooLongError, EmptyAnswerError, ForeignTokensError
from semgrad_guard.flow import Message
from semgrad_guard.scoring.layout import Tokens
from semgrad_guard.suspicious import gives_orders

if TYPE_CHECKING:
    from collections.abc import Sequence

    from semgrad_guard.flow import Exchange, Passage, Prompt
    from semgrad_guard.models import LocalModel

CUT_OFF = frozenset({"length", "max_tokens", "stop_sequence", "cancelled", "content_filter"})
"""Values of the metadata key `finish_reason` for answers that the model did not end by itself."""


def proxy_prompt(question: str, passages: Sequence[Passage]) -> Prompt:
    """Return what a proxy reads of an exchange: the passages and the question, whatever prompt the other model had.

    So an answer has one confidence wherever in a chain, agent or engine it is judged. Passages that give orders are
    left out: they support nothing.
    """
    parts = [passage.text.strip() for passage in passages if not gives_orders(passage.text)] + [question.strip()]
    return (Message("user", "\n\n".join(part for part in parts if part)),)


def is_read_by_proxy(exchange: Exchange) -> bool:
    """Return whether question and passages are read in place of the prompt: another model's answer to a known one.

    Passages alone are read where neither a question nor a prompt is known, as for a summary.
    """
    if exchange.on_policy or exchange.prompt_ids is not None:
        return False
    if (exchange.question or "").strip():
        return True
    return bool(exchange.passages) and (not exchange.prompt or exchange.prompt == proxy_prompt("", exchange.passages))


def as_read(exchange: Exchange) -> Exchange:
    """Return the exchange with the prompt that the scoring model reads."""
    if not is_read_by_proxy(exchange):
        return exchange
    return replace(exchange, prompt=proxy_prompt(exchange.question or "", exchange.passages))


def read_exchange(model: LocalModel, exchange: Exchange) -> Tokens:
    """Return the token ids of an exchange: the given ones, or those of its texts.

    A re-tokenised answer of a chat model gets the end-of-turn token, because complete answers end with it, unless the
    exchange's metadata has a `finish_reason` that says otherwise. A base model's answer gets none: it was cut by a stop
    text or a limit; nor does the answer of another model, of which only the text is known. A prompt that this model
    read is used unchanged; of another model's exchange, passages and question are read, or where the question is not
    known its prompt, in the scoring model's chat template. Passages that are too long for a proxy's context are cut.

    Raises:
        EmptyAnswerError, EmptyPromptError, ContextTooLongError, ForeignTokensError: the exchange cannot be scored.
    """
    tokens = _tokens_of(model, exchange)
    limit = model.context_limit
    if limit is not None and _length(tokens) > limit and is_read_by_proxy(exchange):
        tokens = _cut_to_fit(model, exchange, limit)
    if limit is not None and _length(tokens) > limit:
        raise ContextTooLongError(_length(tokens), limit)
    return tokens


def _length(tokens: Tokens) -> int:
    return len(tokens.prompt) + len(tokens.answer)


def _tokens_of(model: LocalModel, exchange: Exchange) -> Tokens:
    prompt = exchange.prompt_ids
    if prompt is None:
        prompt = model.encode_prompt(exchange.prompt, as_chat=not exchange.on_policy)
    _require_known(model, prompt)
    answer = exchange.answer_ids
    if answer is None:
        if not exchange.answer:
            raise EmptyAnswerError
        ended = model.is_chat and exchange.on_policy and exchange.metadata.get("finish_reason") not in CUT_OFF
        answer = model.encode_answer(prompt, exchange.prompt, exchange.answer, ended=ended)
    _require_known(model, answer)
    tokens = Tokens(tuple(prompt), tuple(answer))
    if all(token in model.end_ids for token in tokens.answer):
        raise EmptyAnswerError
    return tokens


N_CUTS, CUT = 10, 0.8
"""How often passages are cut until they fit, and what is left of them each time."""


def _cut_to_fit(model: LocalModel, exchange: Exchange, limit: int) -> Tokens:
    """Return the tokens of an exchange with every passage cut alike, so that a proxy can read it.

    Signals of texts are computed from the whole passages all the same.
    """
    tokens = _tokens_of(model, exchange)
    share = limit / _length(tokens)
    for _ in range(N_CUTS):
        share *= CUT
        cut = [replace(passage, text=passage.text[: int(share * len(passage.text))]) for passage in exchange.passages]
        tokens = _tokens_of(model, replace(exchange, prompt=proxy_prompt(exchange.question or "", cut)))
        if _length(tokens) <= limit:
            break
    return tokens


def _require_known(model: LocalModel, ids: Sequence[int]) -> None:
    n_vocabulary: int = model.model.config.get_text_config(decoder=True).vocab_size
    foreign = next((token for token in ids if not 0 <= token < n_vocabulary), None)
    if foreign is not None:
        raise ForeignTokensError(foreign, n_vocabulary)
