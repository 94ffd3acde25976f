"""Paraphrases -> the hidden states that a model holds at the end of their prompts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch  # noqa: TID253 - this module is reached only to run a model

from semgrad_guard.errors import NonFiniteScoreError
from semgrad_guard.evaluation.paraphrases import last_word
from semgrad_guard.evaluation.position.preservation import TIE, States
from semgrad_guard.evaluation.rows import question_prompt
from semgrad_guard.models.device import evaluating, plain_tensors

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from semgrad_guard.evaluation.paraphrases import Paraphrased
    from semgrad_guard.models import LocalModel

N_POSITIONS = 12
"""Prompt positions looked at, from the prompt's end."""


def read_states(
    local: LocalModel,
    paraphrased: Sequence[Paraphrased],
    *,
    n_positions: int = N_POSITIONS,
    batch_size: int = 16,
    advance: Callable[[int], None] = lambda _: None,
) -> States:
    """Return the states entering every block at the last positions of each text's prompt.

    Args:
        local: the model; its lock is held for one batch at a time.
        paraphrased: questions with their paraphrases.
        n_positions: positions from the prompt's end; fewer when a prompt is shorter.
        batch_size: texts read together.
        advance: told how many more texts were read.

    Raises:
        NonFiniteScoreError: a state holds NaN or infinity.
    """
    texts = [text for group in paraphrased for text in group.texts]
    prompts = [local.encode_prompt(question_prompt(text, chat=local.is_chat)) for text in texts]
    n_last = min(n_positions, *map(len, prompts))
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))  # like lengths share a batch: little padding
    read = dict[int, "NDArray[np.float32]"]()
    for start in range(0, len(order), batch_size):
        numbers = order[start : start + batch_size]
        read |= zip(numbers, _read(local, [prompts[i] for i in numbers], n_last), strict=True)
        advance(len(numbers))
    hidden = np.stack([read[i] for i in range(len(prompts))], axis=1)
    if not np.isfinite(hidden).all():
        raise NonFiniteScoreError("a hidden state")
    return States(
        hidden=hidden,
        tokens=np.array([ids[-n_last:] for ids in prompts], dtype=np.int64),
        questions=np.repeat(np.arange(len(paraphrased)), [len(group.texts) for group in paraphrased]),
        last_words=[last_word(text) for text in texts],
        tie=max(TIE, torch.finfo(local.model.dtype).eps ** 2),  # a cosine moves by the square of a state's rounding
    )


def _read(local: LocalModel, prompts: Sequence[tuple[int, ...]], n_last: int) -> list[NDArray[np.float32]]:
    """Return ``(layer, position, hidden)`` of each prompt; padding stands behind it, where no causal model looks."""
    longest = max(map(len, prompts))
    ids = [list(ids) + [local.pad_id] * (longest - len(ids)) for ids in prompts]
    mask = [[1] * len(ids) + [0] * (longest - len(ids)) for ids in prompts]
    model: Any = local.model
    with local.lock, evaluating(local.model), plain_tensors():
        output = model(
            input_ids=torch.tensor(ids, device=local.device),
            attention_mask=torch.tensor(mask, device=local.device),
            output_hidden_states=True,
            use_cache=False,
        )
        entering = output.hidden_states[:-1]  # the last one leaves the last block
        return [
            np.stack([state[row, len(p) - n_last : len(p)].float().cpu().numpy() for state in entering])
            for row, p in enumerate(prompts)
        ]
