"""Writes answers: one, several to one prompt, or padded batches, and keeps the cache for scoring."""

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
from semgrad_guard.models.device import evaluating, held, plain_tensors
from semgrad_guard.models.tokens import special_tokens

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Sequence

    from torch import nn
    from transformers.cache_utils import Cache

    from semgrad_guard.models.cache import ModelView, Recorded, RecordedOutputs


class Sampler(LogitsProcessor):
    """Draws each row's next token and leaves it as the only possible one.

    Every row has its own generator, so an answer depends on the seed and its row alone: not on the batch it shares,
    nor on other threads that draw at the same time.
    """

    def __init__(self, temperature: float, top_p: float, seed: int | None, rows: Sequence[int]) -> None:
        """Take the settings and the number of each row among all that share the seed.

        Without a seed, torch's global random state decides.
        """
        self._temperature, self._top_p = temperature, top_p
        start = int(torch.randint(2**62, (1,)).item()) if seed is None else seed
        self._generators = [torch.Generator().manual_seed(_row_seed(start, row)) for row in rows]
        self._nlls: list[torch.Tensor] = []

    def nlls(self, row: int, n_tokens: int) -> tuple[float, ...]:
        """Return the negative log-likelihoods of a row's first tokens in nats, by the model's own distribution.

        Temperature and `top_p` change what is drawn, not how likely the model finds it.
        """
        return tuple(float(step[row]) for step in self._nlls[:n_tokens])

    @override
    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.FloatTensor:
        """Return scores of minus infinity everywhere but at the drawn tokens."""
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
    """Return the probabilities with all but the smallest set of tokens that reaches `top_p` set to 0."""
    ranked, order = probabilities.sort(dim=-1, descending=True)
    before = ranked.cumsum(dim=-1) - ranked
    ranked = ranked.masked_fill(before >= top_p, 0.0)
    return torch.zeros_like(probabilities).scatter_(-1, order, ranked)


def _row_seed(seed: int, row: int) -> int:
    """Return a seed for one row; neighbouring seeds and rows share nothing."""
    digest = hashlib.sha256(f"{seed}:{row}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


UNFINISHED = "\ufffd"
"""What a tokenizer shows for a character of which only some bytes have been written."""


class AnswerWatch(StoppingCriteria):
    """Ends the generation of each row at its stop sequence, or of all rows when told to or out of time."""

    def __init__(
        self,
        decode: Callable[[Sequence[int]], str],
        *,
        n_prompt: int,
        stop: Sequence[str] = (),
        on_text: Callable[[str], None] | None = None,
        should_end: Callable[[], bool] = lambda: False,
    ) -> None:
        """Take what to look for.

        Args:
            decode: ids of an answer -> its text.
            n_prompt: length of the (padded) prompt in tokens.
            stop: texts that end an answer.
            on_text: gets each piece of text that is certain to stay, in order; for a single row only.
            should_end: asked after each token; True ends every row.
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
        self.ended_early = self.ended_early or self._should_end()  # last: who listens to the text may have cancelled
        done = [self.ended_early or row in self._n_tokens for row in range(input_ids.shape[0])]
        return torch.tensor(done, device=input_ids.device)  # type: ignore[return-value] # torch types it as Tensor

    def n_written(self, row: int) -> int | None:
        """Return after how many tokens a row met its stop sequence, `None` when it did not."""
        return self._n_tokens.get(row)

    def finish(self, text: str) -> None:
        """Send what of the final text has not been sent."""
        if self._on_text and len(text) > self._n_sent:
            self._on_text(text[self._n_sent :])
            self._n_sent = len(text)

    def _look(self, row: int, input_ids: torch.Tensor) -> None:
        if row in self._n_tokens:
            return
        written = input_ids[row, self._n_prompt :].tolist()
        text = self._decode(written)
        if first_stop(text, self._stop) is not None:
            self._n_tokens[row] = len(written)
        elif self._on_text:
            self._send(text)

    def _send(self, text: str) -> None:
        end = certain_length(text, self._stop)
        if self._on_text and end > self._n_sent:
            self._on_text(text[self._n_sent : end])
            self._n_sent = end


def first_stop(text: str, stop: Sequence[str]) -> int | None:
    """Return where the earliest stop sequence begins in a text, `None` when it holds none."""
    found = [at for at in map(text.find, stop) if at >= 0]
    return min(found, default=None)


def certain_length(text: str, stop: Sequence[str]) -> int:
    """Return how many characters will stay whatever comes next.

    An unfinished character at the end may change, and an ending that could grow into a stop sequence may be cut.
    """
    end = len(text.rstrip(UNFINISHED))
    text = text[:end]
    for sequence in stop:
        held = next((n for n in range(len(sequence) - 1, 0, -1) if text.endswith(sequence[:n])), 0)
        end = min(end, len(text) - held)
    return end


def ending(
    cancel: threading.Event | None, max_time_s: float | None, clock: Callable[[], float] = time.monotonic
) -> Callable[[], bool]:
    """Return a question that is answered with True once `cancel` is set or `max_time_s` seconds have passed."""
    deadline = None if max_time_s is None else clock() + max_time_s

    def should_end() -> bool:
        return (cancel is not None and cancel.is_set()) or (deadline is not None and clock() >= deadline)

    return should_end


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
    local: ModelView,
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


def _room(local: ModelView, prompts: Sequence[tuple[int, ...]]) -> int:
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


def _endings(local: ModelView, stop: Sequence[str]) -> _Endings:
    """Return what ends an answer; a stop sequence that is a special token is an id, since texts do not show it."""
    special = special_tokens(local.tokenizer)
    ids = frozenset(special[text] for text in stop if text in special)
    return _Endings(local.end_ids | ids, tuple(text for text in stop if text not in special))


def _takes_cache(local: ModelView) -> bool:
    """Tell whether the caller left the kind of cache open; a static one, say, excludes ours."""
    settings = getattr(local.model, "generation_config", None)
    return getattr(settings, "cache_implementation", None) in {None, "hybrid"}  # an old default that means nothing now


def _cache(local: ModelView, prompts: Sequence[tuple[int, ...]], memory: Keep | KeptCache | None) -> Cache | None:
    return full_cache(local.model) if isinstance(memory, Keep) else prompt_cache(local, prompts, memory)


def _config(local: ModelView, end_ids: frozenset[int], *, max_new_tokens: int) -> GenerationConfig:
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
    local: ModelView, prompt_ids: tuple[int, ...], ids: tuple[int, ...], ends: _Endings, *, ended_early: bool
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


def _holding(local: ModelView, ids: tuple[int, ...], text: str) -> tuple[int, ...]:
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

    Prompts of like length share a batch, so little is padded, and equal ones are read once. A model whose state can't
    ignore padding (recurrent layers) writes one answer at a time.
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
    """Return the answers of one batch by their number; halved and tried again when it does not fit the memory."""
    try:
        answers = generate(local, rows, settings, should_end=should_end, memory=kept)
        return {row.number: answer for row, answer in zip(rows, answers, strict=True)}
    except torch.OutOfMemoryError:
        if len(rows) == 1:
            raise
    half = len(rows) // 2
    first = _write(local, rows[:half], settings, should_end, kept)
    return first | _write(local, rows[half:], settings, should_end, kept)
