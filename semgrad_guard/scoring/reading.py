"""Exchange -> token ids as the scoring model reads them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from semgrad_guard.errors import ContextTooLongError, EmptyAnswerError, ForeignTokensError
from semgrad_guard.scoring.layout import Tokens

if TYPE_CHECKING:
    from collections.abc import Sequence

    from semgrad_guard.flow import Exchange
    from semgrad_guard.models import LocalModel

CUT_OFF = frozenset({"length", "max_tokens", "stop_sequence", "cancelled", "content_filter"})
"""Values of the metadata key `finish_reason` that say that the model did not end its turn by itself."""


def read_exchange(model: LocalModel, exchange: Exchange) -> Tokens:
    """Return the ids of an exchange: the given ones, else those of its texts.

    A re-tokenised answer of a chat model ends with the end-of-turn token, because that is how answers that reached a
    caller usually ended, unless the exchange's metadata has a `finish_reason` that says otherwise. A base model's
    answer gets none: it was cut by a stop text or a limit. Text that another model was asked is put into the scoring
    model's own chat template; text that this model read stands as it is.

    Raises:
        EmptyAnswerError, EmptyPromptError, ContextTooLongError, ForeignTokensError: the exchange cannot be scored.
    """
    prompt = exchange.prompt_ids
    if prompt is None:
        prompt = model.encode_prompt(exchange.prompt, as_chat=not exchange.on_policy)
    _require_known(model, prompt)
    answer = exchange.answer_ids
    if answer is None:
        if not exchange.answer:
            raise EmptyAnswerError
        ended = model.is_chat and exchange.metadata.get("finish_reason") not in CUT_OFF
        answer = model.encode_answer(prompt, exchange.prompt, exchange.answer, ended=ended)
    _require_known(model, answer)
    tokens = Tokens(tuple(prompt), tuple(answer))
    if all(token in model.end_ids for token in tokens.answer):
        raise EmptyAnswerError
    n_tokens, limit = len(tokens.prompt) + len(tokens.answer), model.context_limit
    if limit is not None and n_tokens > limit:
        raise ContextTooLongError(n_tokens, limit)
    return tokens


def _require_known(model: LocalModel, ids: Sequence[int]) -> None:
    n_vocabulary: int = model.model.config.get_text_config(decoder=True).vocab_size
    foreign = next((token for token in ids if not 0 <= token < n_vocabulary), None)
    if foreign is not None:
        raise ForeignTokensError(foreign, n_vocabulary)
