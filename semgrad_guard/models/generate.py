"""Generate answers, singly or in padded batches, and keep the KV cache for scoring."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList
from typing_extensions import override

from semgrad_guard.errors import ContextTooLongError, EmptyPromptError, ModelSettingError, NonFiniteScoreError
from semgrad_guard.models.cache import KeptCache, full_cache, pad_left, prompt_cache, recorded, recorded_outputs
from semgrad_guard.models.device import evaluating, held, plain_tensors, uncompiled
from semgrad_guard.models.tokens import UNFINISHED, special_tokens

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Sequence

    from torch import nn
    from transformers.cache_utils import Cache

    from semgrad_guard.models.cache import ModelView, Recorded, RecordedOutputs


class Sampler(LogitsProcessor):
    """Draws each row's next token and leaves it as the only possible one.

    Every row has its own generator, so an answer depends only on the seed and its row, not on the rest of the batch or
    on other threads that sample at the same time.
    """

    def __init__(self, temperature: float, top_p: float, seed: int | None, rows: Sequence[int]) -> None:
        """Take the settings, and the number of each row among all rows that share the seed.

        Without a seed, torch's global random state is used.
        """
        self._temperature, self._top_p = temperature, top_p
        start = int(torch.randint(2**62, (1,)).item()) if seed is None else seed
        self._generators = [torch.Generator().manual_seed(_row_seed(start, row)) for row in rows]
        self._nlls: list[torch.Tensor] = []

    def nlls(self, row: int, n_tokens: int) -> tuple[float, ...]:
        """Return the negative log-likelihoods of a row's first tokens in nats, under the model's own distribution.

        Temperature and `top_p` change which tokens are drawn, not these numbers.
        """
        return tuple(float(step[row]) for step in self._nlls[:n_tokens])

    @override
    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.FloatTensor:
        """Return scores that are minus infinity except for the drawn tokens."""
        probabilities = torch.softmax(scores.float() / self._temperature, dim=-1).cpu()
        if not torch.isfinite(probabilities).all():
            raise NonFiniteScoreError("the distribution of the next token")
        if self._top_p < 1:
            probabilities = nucleus(probabilities, self._top_p)
        drawn = [
            torch.multinomial(row, 1, generator=generator)
            for row, generator in zip(probabilities, self._generators, strict=True)
        ]
        tokens = torch.stack(drawn).to(scores.device)
        self._nlls.append(-torch.log_softmax(scores.float(), dim=-1).gather(-1, tokens)[:, 0].cpu())
        chosen = torch.full_like(scores, -torch.inf)
        return chosen.scatter_(-1, tokens, 0.0)  # type: ignore[return-value] # torch types it as Tensor


def nucleus(probabilities: torch.Tensor, top_p: float) -> torch.Tensor:
    """Return the probabilities, set to 0 outside the smallest set of tokens whose sum reaches `top_p`."""
    ranked, order = probabilities.sort(dim=-1, descending=True)
    before = ranked.cumsum(dim=-1) - ranked
    ranked = ranked.masked_fill(before >= top_p, 0.0)
    return torch.zeros_like(probabilities).scatter_(-1, order, ranked)


def _row_seed(seed: int, row: int) -> int:
    """Return a seed for one row, unrelated to those of neighbouring seeds and rows."""
    digest = hashlib.sha256(f"{seed}:{row}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


class AnswerWatch(StoppingCriteria):
    """Ends a row at its stop sequence, or all rows when `should_end` says so."""

    def __init__(
        self,
        decode: Callable[[Sequence[int]], str],
        *,
        n_prompt: int,
        stop: Sequence[str] = (),
        on_text: Callable[[str], None] | None = None,
        should_end: Callable[[], bool] = lambda: False,
    ) -> None:
        """Take the stop sequences and callbacks.

        Args:
            decode: converts the ids of an answer to its text.
            n_prompt: length of the (padded) prompt in tokens.
            stop: texts that end an answer.
            on_text: gets each piece of text that can no longer change, in order; for a single row only.
            should_end: called after each token; True ends every row.
        """
        self._decode, self._n_prompt, self._stop = decode, n_prompt, tuple(stop)
        self._on_text, self._should_end = on_text, should_end
        self._n_sent = 0
        self._n_tokens: dict[int, int] = {}
        self.ended_early = False

    @override
    def __call__(self, input_ids: torch.Tensor, scores: object, **_: object) -> torch.BoolTensor:
        """Return which rows are done."""
        if self._stop or self._on_text:
            for row in range(input_ids.shape[0]):
                self._look(row, input_ids)
        self.ended_early = self.ended_early or self._should_end()  # last, because `on_text` may have cancelled
        done = [self.ended_early or row in self._n_tokens for row in range(input_ids.shape[0])]
        return torch.tensor(done, device=input_ids.device)  # type: ignore[return-value] # torch types it as Tensor

    def n_written(self, row: int) -> int | None:
        """Return after how many tokens a row met its stop sequence, or `None` if it did not."""
        return self._n_tokens.get(row)

    def finish(self, text: str) -> None:
        """Send the rest of the final text."""
        if self._on_text and len(text) > self._n_sent:
            self._on_text(text[self._n_sent :])
            self._n_sent = len(text)

    def _look(self, row: int, input_ids: torch.Tensor) -> None:
        if row in self._n_tokens:
            return
        ids = input_ids[row, self._n_prompt :].tolist()
        text = self._decode(ids)
        if first_stop(text, self._stop) is not None:
            self._n_tokens[row] = len(ids)
        elif self._on_text:
            self._send(text)

    def _send(self, text: str) -> None:
        end = certain_length(text, self._stop)
        if self._on_text and end > self._n_sent:
            self._on_text(text[self._n_sent : end])
            self._n_sent = end


def first_stop(text: str, stop: Sequence[str]) -> int | None:
    """Return where the earliest stop sequence begins in a text, or `None` if there is none."""
    starts = [start for start in map(text.find, stop) if start >= 0]
    return min(starts, default=None)


def certain_length(text: str, stop: Sequence[str]) -> int:
    """Return how many characters can no longer change.

    An incomplete character at the end may change, and an ending that could become a stop sequence may be cut.
    """
    end = len(text.rstrip(UNFINISHED))
    text = text[:end]
    for sequence in stop:
        n_begun = next((n for n in range(len(sequence) - 1, 0, -1) if text.endswith(sequence[:n])), 0)
        end = min(end, len(text) - n_begun)
    return end


def ending(
    cancel: threading.Event | None, max_time_s: float | None, clock: Callable[[], float] = time.monotonic
) -> Callable[[], bool]:
    """Return a function that returns True once `cancel` is set or `max_time_s` seconds have passed."""
    deadline = None if max_time_s is None else clock() + max_time_s

    def should_end() -> bool:
        return (cancel is not None and cancel.is_set()) or (deadline is not None and clock() >= deadline)

    return should_end


FinishReason = Literal["stop", "length", "stop_sequence", "cancelled"]
"""Why an answer ended: the model ended its turn, the token limit, a stop sequence, or cancelled or out of time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Generated:
    """An answer as the model generated it."""

    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]
    """With the end-of-turn token if the model produced it; at a stop sequence, the fewest tokens that give `text`."""
    text: str
    """The answer without special tokens and without the stop sequence."""
    finish_reason: FinishReason
    nlls: tuple[float, ...] | None = field(default=None, compare=False)
    """Negative log-likelihood of each answer token in nats, if tokens were drawn at random; rounding may differ."""
    kept: KeptCache | None = None
    """`None` if it was not requested, or if the model has no cache that can be cropped."""


class Row(NamedTuple):
    """One prompt of a batch."""

    number: int
    """Its position among all prompts that share the seed."""
    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Keep:
    """Request to keep the KV cache and, if blocks are given, their input states and the head's outputs."""

    states_of: tuple[nn.Module, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationSettings:
    """How to generate an answer; the model's own generation settings have no influence on the next token."""

    max_new_tokens: int = 256
    temperature: float = 0.0
    """0 always takes the likeliest token."""
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int | None = None

    def __post_init__(self) -> None:
        """Refuse values that are out of range."""
        if self.max_new_tokens < 1:
            raise ModelSettingError("max_new_tokens", self.max_new_tokens, "1 or more")
        if not self.temperature >= 0:
            raise ModelSettingError("temperature", self.temperature, "0 (no sampling) or more")
        if not 0 < self.top_p <= 1:
            raise ModelSettingError("top_p", self.top_p, "more than 0 and at most 1")
        if not all(self.stop):
            raise ModelSettingError("stop", self.stop, "texts of at least one character")


def generate(
    local: ModelView,
    rows: Sequence[Row],
    settings: GenerationSettings,
    *,
    on_text: Callable[[str], None] | None = None,
    should_end: Callable[[], bool] = lambda: False,
    memory: Keep | KeptCache | None = None,
) -> list[Generated]:
    """Return one answer for each prompt, generated together as one batch; equal prompts are read once.

    Args:
        local: the model; its lock is held for the whole time.
        rows: the prompts.
        settings: how to generate.
        on_text: gets the text piece by piece; for a single prompt only.
        should_end: called after each token; True ends all answers.
        memory: what to keep for scoring, for a single prompt only; or the kept cache of an earlier answer, so that a
            prompt that it covers is not read again.

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
            uncompiled(local.model),
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
        answers = [replace(answer, nlls=sampler.nlls(n, len(answer.answer_ids))) for n, answer in enumerate(answers)]
    if cache is None or not isinstance(memory, Keep):
        return answers
    with plain_tensors():  # what is kept is joined here, and must suit a later backward pass
        return [replace(answers[0], kept=_kept(output[0], cache, states, states_of, outputs))]


def _room(local: ModelView, prompts: Sequence[tuple[int, ...]]) -> int:
    """Return how many answer tokens fit after the longest prompt."""
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
    """Token ids and texts that end an answer."""

    ids: frozenset[int]
    texts: tuple[str, ...]


def _endings(local: ModelView, stop: Sequence[str]) -> _Endings:
    """Return what ends an answer; a stop sequence that is a special token becomes an id, since texts omit it."""
    special = special_tokens(local.tokenizer)
    ids = frozenset(special[text] for text in stop if text in special)
    return _Endings(local.end_ids | ids, tuple(text for text in stop if text not in special))


def _takes_cache(local: ModelView) -> bool:
    """Tell whether the model's settings leave the kind of cache open; a static cache, for example, rules ours out."""
    settings = getattr(local.model, "generation_config", None)
    return getattr(settings, "cache_implementation", None) in {None, "hybrid"}  # "hybrid" is an old, unused default


def _cache(local: ModelView, prompts: Sequence[tuple[int, ...]], memory: Keep | KeptCache | None) -> Cache | None:
    return full_cache(local.model) if isinstance(memory, Keep) else prompt_cache(local, prompts, memory)


def _config(local: ModelView, end_ids: frozenset[int], *, max_new_tokens: int) -> GenerationConfig:
    """Return complete settings, because transformers takes missing ones from the checkpoint."""
    make: Any = GenerationConfig
    config: GenerationConfig = make(
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
    return config


def _pickers(settings: GenerationSettings, numbers: Sequence[int]) -> list[Sampler]:
    if settings.temperature == 0:
        return []
    return [Sampler(settings.temperature, settings.top_p, settings.seed, numbers)]


def _run(
    local: ModelView,
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
        tokenizer=local.tokenizer,  # for a checkpoint that has its own stop strings
        **({} if cache is None else {"past_key_values": cache}),
    )
    rows: list[list[int]] = output.tolist()
    return rows


def _written(row: list[int], n_stopped: int | None, end_ids: frozenset[int]) -> tuple[int, ...]:
    """Return the answer's ids in a row, without the padding after them."""
    n_ended = next((n for n, token in enumerate(row, start=1) if token in end_ids), None)
    return tuple(row[: min(n for n in (n_stopped, n_ended, len(row)) if n is not None)])


def _answer(
    local: ModelView, prompt_ids: tuple[int, ...], ids: tuple[int, ...], ends: _Endings, *, ended_early: bool
) -> Generated:
    """Return the answer that the generated ids contain."""
    text = local.decode(ids)
    stop_at = first_stop(text, ends.texts)
    reason: FinishReason
    if stop_at is not None:
        text, reason = text[:stop_at], "stop_sequence"
        ids = _holding(local, ids, text)
    elif ids and ids[-1] in ends.ids:
        reason = "stop"
    else:
        reason = "cancelled" if ended_early else "length"
    return Generated(prompt_ids=prompt_ids, answer_ids=ids, text=text, finish_reason=reason)


def _holding(local: ModelView, ids: tuple[int, ...], text: str) -> tuple[int, ...]:
    """Return the fewest leading ids whose text includes all of `text`."""
    n = len(ids)
    while n > 0 and local.decode(ids[: n - 1]).startswith(text):
        n -= 1
    return ids[:n]


def _kept(
    row: list[int],
    cache: Cache,
    records: Sequence[Recorded],
    states_of: tuple[nn.Module, ...],
    outputs: RecordedOutputs,
) -> KeptCache:
    """Return the cache of prompt and answer, for as many tokens as it covers."""
    n_tokens = cache.get_seq_length()
    by_block = [record.states() for record in records]
    states = torch.cat([block.to(by_block[0].device) for block in by_block]) if by_block else None
    return KeptCache(cache, tuple(row[:n_tokens]), states=states, states_of=states_of, outputs=outputs.outputs())


def generate_batches(
    local: ModelView,
    prompts: Sequence[tuple[int, ...]],
    settings: GenerationSettings,
    *,
    batch_size: int,
    should_end: Callable[[], bool],
    kept: KeptCache | None = None,
) -> list[Generated]:
    """Return one answer for each prompt, in order.

    Prompts of similar length share a batch, which keeps padding small, and equal prompts are read once. A model whose
    state cannot ignore padding (recurrent layers) generates one answer at a time.
    """
    size = batch_size if full_cache(local.model) is not None else 1
    rows = sorted(map(Row._make, enumerate(prompts)), key=lambda row: (len(row.ids), row.ids))
    answers: dict[int, Generated] = {}
    for start in range(0, len(rows), size):
        answers |= _write(local, rows[start : start + size], settings, should_end, kept)
    return [answers[number] for number in range(len(prompts))]


def _write(
    local: ModelView,
    rows: Sequence[Row],
    settings: GenerationSettings,
    should_end: Callable[[], bool],
    kept: KeptCache | None,
) -> dict[int, Generated]:
    """Return the answers of one batch by row number; a batch that does not fit in memory is halved and tried again."""
    try:
        answers = generate(local, rows, settings, should_end=should_end, memory=kept)
        return {row.number: answer for row, answer in zip(rows, answers, strict=True)}
    except torch.OutOfMemoryError:
        if len(rows) == 1:
            raise
    half = len(rows) // 2
    first = _write(local, rows[:half], settings, should_end, kept)
    return first | _write(local, rows[half:], settings, should_end, kept)
