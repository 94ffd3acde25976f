"""Writing answers, and keeping the KV cache of it for scoring."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

from semgrad_guard.errors import ContextTooLongError, EmptyPromptError, ModelSettingError
from semgrad_guard.models.cache import KeptCache, full_cache, pad_left, prompt_cache, recorded, recorded_outputs
from semgrad_guard.models.device import evaluating, held, plain_tensors
from semgrad_guard.models.sampling import Sampler
from semgrad_guard.models.tokens import special_tokens
from semgrad_guard.models.watch import AnswerWatch, first_stop

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import nn
    from transformers.cache_utils import Cache

    from semgrad_guard.models.cache import Recorded, RecordedOutputs
    from semgrad_guard.models.local import LocalModel

FinishReason = Literal["stop", "length", "stop_sequence", "cancelled"]
"""Why an answer ended: the model ended its turn, token limit, stop sequence, cancelled or out of time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Generated:
    """An answer as the model wrote it."""

    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]
    """With the end-of-turn token when the model produced it. At a stop sequence: the fewest tokens that hold `text`."""
    text: str
    """Without special tokens and without the stop sequence."""
    finish_reason: FinishReason
    nlls: tuple[float, ...] | None = field(default=None, compare=False)
    """Negative log-likelihood of each answer token in nats, where tokens were drawn at random; rounding may differ."""
    kept: KeptCache | None = None
    """`None` when it was not asked for, or when the model has no cache that can be cropped."""


class Row(NamedTuple):
    """One prompt of a batch."""

    number: int
    """Its place among all prompts that share the seed."""
    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Keep:
    """Keep the KV cache; where blocks are named, the states that enter them and the head's outputs too."""

    states_of: tuple[nn.Module, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationSettings:
    """How to write; nothing else of the model's own generation settings has a say in which token comes next."""

    max_new_tokens: int = 256
    temperature: float = 0.0
    """0 takes the likeliest token each time."""
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int | None = None

    def __post_init__(self) -> None:
        """Refuse values that mean nothing."""
        if self.max_new_tokens < 1:
            raise ModelSettingError("max_new_tokens", self.max_new_tokens, "1 or more")
        if not self.temperature >= 0:
            raise ModelSettingError("temperature", self.temperature, "0 (no sampling) or more")
        if not 0 < self.top_p <= 1:
            raise ModelSettingError("top_p", self.top_p, "more than 0 and at most 1")
        if not all(self.stop):
            raise ModelSettingError("stop", self.stop, "texts of at least one character")


def generate(
    local: LocalModel,
    rows: Sequence[Row],
    settings: GenerationSettings,
    *,
    on_text: Callable[[str], None] | None = None,
    should_end: Callable[[], bool] = lambda: False,
    memory: Keep | KeptCache | None = None,
) -> list[Generated]:
    """Return one answer for each prompt, written together as one batch; equal prompts are read once.

    Args:
        local: the model; its lock is held for the whole time.
        rows: the prompts.
        settings: how to write.
        on_text: gets the text piece by piece; for a single prompt only.
        should_end: asked after each token; True ends the writing.
        memory: what to keep for scoring, for a single prompt only; or what the writing of an earlier answer left, so
            that a prompt that it covers is not read again.

    Raises:
        EmptyPromptError: a prompt has no tokens.
        ContextTooLongError: a prompt leaves no room for an answer.
    """
    prompts = [row.ids for row in rows]
    room = _room(local, prompts)
    ends = _endings(local, settings.stop)
    longest = max(len(ids) for ids in prompts)
    watch = AnswerWatch(local.decode, n_prompt=longest, stop=ends.texts, on_text=on_text, should_end=should_end)
    states_of = memory.states_of if isinstance(memory, Keep) else ()
    with held(local.lock, should_end) as owned:
        if not owned or should_end():
            return [Generated(prompt_ids=ids, answer_ids=(), text="", finish_reason="cancelled") for ids in prompts]
        with (
            evaluating(local.model),
            plain_tensors(),
            recorded(states_of) as states,
            recorded_outputs(local, wanted=bool(states_of)) as outputs,
        ):
            cache = _cache(local, prompts, memory) if _takes_cache(local) else None
            config = _config(local, ends.ids, max_new_tokens=min(settings.max_new_tokens, room))
            pickers = _pickers(settings, [row.number for row in rows])
            output = _run(local, prompts, config, pickers, watch, cache)
    answers = [
        _answer(local, ids, _written(row[longest:], watch.n_written(n), ends.ids), ends, ended_early=watch.ended_early)
        for n, (ids, row) in enumerate(zip(prompts, output, strict=True))
    ]
    watch.finish(answers[0].text)
    for sampler in pickers:
        answers = [replace(one, nlls=sampler.nlls(n, len(one.answer_ids))) for n, one in enumerate(answers)]
    if cache is None or not isinstance(memory, Keep):
        return answers
    return [replace(answers[0], kept=_kept(output[0], cache, states, states_of, outputs))]


def _room(local: LocalModel, prompts: Sequence[tuple[int, ...]]) -> int:
    """Return how many answer tokens fit behind the longest prompt."""
    if not all(prompts):
        raise EmptyPromptError
    longest = max(len(ids) for ids in prompts)
    limit = local.context_limit
    if limit is None:
        return 2**31
    if longest >= limit:
        raise ContextTooLongError(longest + 1, limit)
    return limit - longest


@dataclass(frozen=True, slots=True)
class _Endings:
    """What ends an answer: token ids and texts."""

    ids: frozenset[int]
    texts: tuple[str, ...]


def _endings(local: LocalModel, stop: Sequence[str]) -> _Endings:
    """Return what ends an answer; a stop sequence that is a special token is an id, since texts do not show it."""
    special = special_tokens(local.tokenizer)
    ids = frozenset(special[text] for text in stop if text in special)
    return _Endings(local.end_ids | ids, tuple(text for text in stop if text not in special))


def _takes_cache(local: LocalModel) -> bool:
    """Tell whether the caller left the kind of cache open; a static one, say, excludes ours."""
    settings = getattr(local.model, "generation_config", None)
    return getattr(settings, "cache_implementation", None) in {None, "hybrid"}  # an old default that means nothing now


def _cache(local: LocalModel, prompts: Sequence[tuple[int, ...]], memory: Keep | KeptCache | None) -> Cache | None:
    return full_cache(local.model) if isinstance(memory, Keep) else prompt_cache(local, prompts, memory)


def _config(local: LocalModel, end_ids: frozenset[int], *, max_new_tokens: int) -> GenerationConfig:
    """Return settings that leave nothing to the checkpoint's own: transformers fills in whatever is not said here."""
    config: Any = GenerationConfig
    made: GenerationConfig = config(
        max_new_tokens=max_new_tokens,
        eos_token_id=sorted(end_ids) or None,
        pad_token_id=local.pad_id,
        do_sample=False,
        num_beams=1,
        num_return_sequences=1,
        temperature=1.0,
        top_k=50,
        top_p=1.0,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        min_new_tokens=0,
        use_cache=True,
        return_dict_in_generate=False,
        output_attentions=False,
        output_hidden_states=False,
    )
    return made


def _pickers(settings: GenerationSettings, numbers: Sequence[int]) -> list[Sampler]:
    if settings.temperature == 0:
        return []
    return [Sampler(settings.temperature, settings.top_p, settings.seed, numbers)]


def _run(
    local: LocalModel,
    prompts: Sequence[tuple[int, ...]],
    config: GenerationConfig,
    pickers: Sequence[Sampler],
    watch: AnswerWatch,
    cache: Cache | None,
) -> list[list[int]]:
    """Return the ids of padded prompt and answer of each row."""
    ids, mask = pad_left(prompts, local.pad_id, local.device)
    model: Any = local.model
    output = model.generate(
        input_ids=ids,
        attention_mask=mask,
        generation_config=config,
        logits_processor=LogitsProcessorList(pickers),
        stopping_criteria=StoppingCriteriaList([watch]),
        tokenizer=local.tokenizer,  # for a checkpoint that comes with stop strings of its own
        **({} if cache is None else {"past_key_values": cache}),
    )
    rows: list[list[int]] = output.tolist()
    return rows


def _written(row: list[int], n_stopped: int | None, end_ids: frozenset[int]) -> tuple[int, ...]:
    """Return what a row really holds of an answer, without the padding behind it."""
    n_ended = next((n for n, token in enumerate(row, start=1) if token in end_ids), None)
    return tuple(row[: min(n for n in (n_stopped, n_ended, len(row)) if n is not None)])


def _answer(
    local: LocalModel, prompt_ids: tuple[int, ...], ids: tuple[int, ...], ends: _Endings, *, ended_early: bool
) -> Generated:
    """Return the answer in the ids that were written."""
    text = local.decode(ids)
    at = first_stop(text, ends.texts)
    reason: FinishReason
    if at is not None:
        text, reason = text[:at], "stop_sequence"
        ids = _holding(local, ids, text)
    elif ids and ids[-1] in ends.ids:
        reason = "stop"
    else:
        reason = "cancelled" if ended_early else "length"
    return Generated(prompt_ids=prompt_ids, answer_ids=ids, text=text, finish_reason=reason)


def _holding(local: LocalModel, ids: tuple[int, ...], text: str) -> tuple[int, ...]:
    """Return the fewest leading ids whose text holds all of `text`."""
    n = len(ids)
    while n > 0 and local.decode(ids[: n - 1]).startswith(text):
        n -= 1
    return ids[:n]


def _kept(
    row: list[int],
    cache: Cache,
    seen: Sequence[Recorded],
    states_of: tuple[nn.Module, ...],
    outputs: RecordedOutputs,
) -> KeptCache:
    """Return the cache of what was read and written, as far as it really reaches."""
    n_tokens = cache.get_seq_length()
    by_block = [one.states() for one in seen]
    states = torch.cat([one.to(by_block[0].device) for one in by_block]) if by_block else None
    return KeptCache(cache, tuple(row[:n_tokens]), states=states, states_of=states_of, outputs=outputs.outputs())
