"""One measurement of an exchange, or of a padded batch: gradients, likelihoods and entropies of its answer."""

from __future__ import annotations

import logging
import math
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np
import torch

from semgrad_guard.errors import ModelFailedError, NonFiniteScoreError, OutOfMemoryError, ScoringError, in_log
from semgrad_guard.models.cache import full_cache
from semgrad_guard.models.device import missing_weight, widest_float
from semgrad_guard.scoring.attention import AttentionWatch, by_runs, watched_blocks, watching
from semgrad_guard.scoring.blockwise import known_outputs, record_cold_by_blocks, record_from_cache
from semgrad_guard.scoring.budget import LEAN, MemoryBudget, unhurried
from semgrad_guard.scoring.head import WEIGHT_NORMS, run_head
from semgrad_guard.scoring.layout import lay_out, shared_start
from semgrad_guard.scoring.model_lease import borrowed
from semgrad_guard.scoring.model_parts import model_parts_of
from semgrad_guard.scoring.passage_gradients import CacheGradients, shares_of_gradients
from semgrad_guard.scoring.recording import band_bytes, computed_again, forward_no_grad, record, state_norms
from semgrad_guard.signals import POSITIONS, semgrad_at

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from numpy.typing import NDArray
    from torch import Tensor
    from transformers import PreTrainedModel

    from semgrad_guard.flow import ScorePath
    from semgrad_guard.models.cache import KeptCache
    from semgrad_guard.scoring.attention_signals import AttentionUse
    from semgrad_guard.scoring.head import HeadNumbers, HeadPass, WeightNorm, WeightNorms
    from semgrad_guard.scoring.layout import Layout, Tokens
    from semgrad_guard.scoring.model_lease import ModelLease
    from semgrad_guard.scoring.model_parts import Band, ModelParts
    from semgrad_guard.scoring.recording import Recorded


_log = logging.getLogger("semgrad_guard")


@dataclass(frozen=True, slots=True)
class GradientSpec:
    """Which gradients to compute."""

    band: Band
    n_recorded: int
    """How many of the last prompt tokens are recorded: -t* or more."""
    norms: tuple[WeightNorm, ...] = WEIGHT_NORMS
    """Gradients by the head's weight to compute in addition to those by the states."""
    budget: MemoryBudget = LEAN
    """Memory that may be taken to save time."""
    attention: bool = False
    """Whether to read what the answer attends to."""
    passages: bool = False
    """Whether to read also the gradients by the cached keys and values of passages; only where attention is read."""
    state: bool = False
    """Whether to keep the mean state that the answer is predicted from."""
    most_recorded: int | None = None
    """Most tokens that a batch of several exchanges records, padding included; `None` does not limit them."""


@dataclass(frozen=True, slots=True)
class PartMeasure:
    """Gradients of the objective over one run of answer tokens."""

    tokens: slice
    semgrad: tuple[float, ...]
    """Mean absolute gradient by the band's states at position -1, -2, ... of the prompt, as far as recorded."""
    by_weight: WeightNorms


@dataclass(frozen=True, slots=True)
class Measure:
    """Results of one measurement of an answer; arrays are ``(answer token,)``."""

    nll: NDArray[np.float64]
    """Negative log-likelihoods, in nats."""
    entropy: NDArray[np.float64]
    """Entropies of the predicting distributions, in nats."""
    top: NDArray[np.float64]
    """Largest probabilities."""
    is_top: NDArray[np.bool_]
    """True where the answer's token was the likeliest."""
    parts: tuple[PartMeasure, ...]
    """The whole answer first, then the requested parts."""
    path: ScorePath
    attention: AttentionUse | None = None
    """What its tokens attend to, where that was asked for and can be told."""
    passage_gradients: tuple[float | None, ...] = ()
    """Share of each passage in the gradients by cached keys and values, where that was asked for and can be told."""
    state: NDArray[np.float64] | None = None
    """Mean state from which its tokens are predicted, ``(hidden,)``, at `STATE_DEPTH`; where that was asked for."""


STATE_DEPTH = 0.6
"""Share of a model's blocks below the state that a probe reads."""


def measure(
    model: PreTrainedModel,
    batch: Sequence[Tokens],
    spec: GradientSpec,
    *,
    parts: Sequence[Sequence[slice]] = (),
    kept: KeptCache | None = None,
    check: Callable[[], None] = unhurried,
) -> list[Measure]:
    """Return one measure for each exchange. The caller holds the model's lock.

    All numbers stay on the device until they are read together, at the end.

    Args:
        model: any causal language model of transformers.
        batch: the exchanges, run together.
        spec: which gradients to compute.
        parts: for each exchange, runs of answer tokens to measure in addition to the whole answer.
        kept: KV cache of the generation of the answer, for a single exchange.
        check: called between pieces of work; what it raises ends the measurement.

    Raises:
        NonFiniteScoreError: hidden states, likelihoods or gradients are NaN or infinite.
        GradientsUnavailableError: no gradients can be taken through this model.
    """
    anatomy = model_parts_of(model)
    runs = [[slice(0, len(t.answer)), *own] for t, own in zip(batch, parts or [()] * len(batch), strict=True)]
    with borrowed(model), ExitStack() as watched:
        split = anatomy.has_cache
        layout = lay_out(batch, spec.n_recorded, anatomy.device, split=split, with_columns=spec.attention)
        watch = _watch(anatomy, layout, batch, spec)
        watched.enter_context(watching(watch))
        watched.enter_context(by_runs(anatomy.blocks))
        shares = _shares(runs, layout)
        once, reused = len(shares) == 1, None
        if kept is not None:
            reused = record_from_cache(model, layout, batch[0].read, spec.band, kept, once=once, budget=spec.budget)
        recording = reused or _record_cold(model, anatomy, layout, batch, spec, once=once)
        known = known_outputs(kept, batch[0]) if kept and reused else None
        run = partial(run_head, anatomy.head, known=known, norms=spec.norms, budget=spec.budget, check=check)
        groups = _groups(layout.answers.lengths, spec.budget.stored_logits // anatomy.head.n_vocabulary)
        heads = list(_heads(run, recording.z, layout, runs, groups))
        mean_states = _mean_states(recording, layout, len(anatomy.blocks), spec)
        norms = _state_norms(recording, layout, heads, shares, check)
        numbers = _read(heads, norms, watch, mean_states)
    path: ScorePath = "reused" if reused else "cold" if anatomy.has_cache else "full"
    return _measures(batch, runs, groups, numbers, path)


def _watch(anatomy: ModelParts, layout: Layout, batch: Sequence[Tokens], spec: GradientSpec) -> AttentionWatch | None:
    """Return what reads the attention of a batch, if it is asked for."""
    if not spec.attention:
        return None
    blocks = [anatomy.blocks[i] for i in watched_blocks(len(anatomy.blocks), spec.band)]
    band = spec.band.of(anatomy.blocks)
    shows_passages = any(tokens.parts and any(tokens.parts.shown) for tokens in batch)
    wanted = spec.passages and shows_passages
    return AttentionWatch(
        blocks, layout, batch, CacheGradients(band, layout, batch, spec.n_recorded) if wanted else None
    )


def _record_cold(
    model: PreTrainedModel,
    anatomy: ModelParts,
    layout: Layout,
    batch: Sequence[Tokens],
    spec: GradientSpec,
    *,
    once: bool,
) -> Recorded:
    """Run the prefix without gradients, then record the rest; or one exchange by blocks, where that is better."""
    if len(batch) == 1:
        found = record_cold_by_blocks(model, layout, batch[0].read, spec.band, once=once, budget=spec.budget)
        if found is not None:
            return found
    cache = full_cache(model) if layout.prefix else None
    if layout.prefix:
        forward_no_grad(model, anatomy, layout.prefix, cache)
        if cache is not None and len(layout.prefix.ids) < len(layout.rest.ids):
            cache.batch_repeat_interleave(len(layout.rest.ids))
    if cache is None and band_bytes(model, anatomy, spec.band, layout.rest.ids.numel()) > spec.budget.recorded_bytes:
        with computed_again(spec.band.of(anatomy.blocks)):
            return record(model, anatomy, layout.rest, cache, spec.band)
    return record(model, anatomy, layout.rest, cache, spec.band)


def _shares(runs: Sequence[Sequence[slice]], layout: Layout) -> Tensor:
    """Return by how much each answer token counts in each round of backward passes, ``(round, token)``.

    In a round, every exchange that has so many runs of tokens has one of them differentiated, as their mean.
    """
    shares = np.zeros((max(len(own) for own in runs), sum(layout.answers.lengths)))
    for own, end, length in zip(runs, accumulate(layout.answers.lengths), layout.answers.lengths, strict=True):
        for number, part in enumerate(own):
            shares[number, _moved(part, end - length)] = 1.0 / (part.stop - part.start)
    device = layout.answers.ids.device
    return torch.from_numpy(shares).to(widest_float(device)).to(device)


def _heads(
    run: Callable[[Tensor, Tensor, Sequence[slice]], HeadPass],
    z: Tensor,
    layout: Layout,
    runs: Sequence[Sequence[slice]],
    groups: Sequence[Sequence[int]],
) -> Iterator[HeadPass]:
    """Yield the head's results for each group of exchanges, whose logits fit in memory together.

    `run` is `run_head` with the model's head and settings filled in.
    """
    answers = layout.answers
    inputs = z[answers.exchanges.to(z.device), answers.places.to(z.device)].detach()
    start = 0
    for group in groups:
        ends = list(accumulate(answers.lengths[i] for i in group))
        parts = [_moved(part, end - answers.lengths[i]) for i, end in zip(group, ends, strict=True) for part in runs[i]]
        own = slice(start, start + ends[-1])
        yield run(inputs[own], answers.ids[own], parts)
        start = own.stop


def _state_norms(
    recording: Recorded, layout: Layout, heads: Sequence[HeadPass], shares: Tensor, check: Callable[[], None]
) -> list[Tensor]:
    """Return the mean absolute gradients by the band's states for each round, ``(exchange, place)``."""
    z, answers = recording.z, layout.answers
    where = answers.exchanges.to(z.device), answers.places.to(z.device)
    pull = torch.cat([head.pull for head in heads]) if len(heads) > 1 else heads[0].pull
    entropy = torch.cat([head.entropy for head in heads]) if len(heads) > 1 else heads[0].entropy
    found = list[torch.Tensor]()
    for number, share in enumerate(shares.to(entropy.device)):
        at_head = torch.zeros_like(z, dtype=torch.promote_types(z.dtype, pull.dtype)).detach()
        at_head[where] = (pull * (entropy * share).to(pull.dtype)[:, None]).to(at_head)
        found.append(state_norms(recording, at_head, layout.recorded, keep=number + 1 < len(shares), check=check))
    return found


def _mean_states(recording: Recorded, layout: Layout, n_blocks: int, spec: GradientSpec) -> Tensor | None:
    """Return the mean state from which each answer's tokens are predicted, ``(exchange, hidden)``, if asked for."""
    if not spec.state:
        return None
    number = min(max(round(STATE_DEPTH * n_blocks), spec.band.first), spec.band.last) - spec.band.first
    states, answers = recording.state(number), layout.answers
    exchanges, places = (one.to(states.device) for one in (answers.exchanges, answers.places))
    chosen = states[exchanges, places].to(torch.promote_types(states.dtype, torch.float32))
    sums = chosen.new_zeros(len(answers.lengths), chosen.shape[-1]).index_add_(0, exchanges, chosen)
    return sums / torch.bincount(exchanges, minlength=len(answers.lengths))[:, None]


@dataclass(frozen=True, slots=True)
class _Numbers:
    """What was read from the device."""

    heads: tuple[HeadNumbers, ...]
    """One for each group of exchanges."""
    by_state: NDArray[np.float64]
    """``(round, exchange, place)``"""
    attention: Sequence[AttentionUse | None]
    """One for each exchange, or none at all."""
    by_passage: NDArray[np.float64] | None
    """Gradients by keys and values, ``(exchange, column)``."""
    states: NDArray[np.float64] | None
    """``(exchange, hidden)``"""


def _read(
    heads: Sequence[HeadPass], norms: Sequence[Tensor], watch: AttentionWatch | None, mean_states: Tensor | None
) -> _Numbers:
    """Read all results in one transfer, and check them.

    Raises:
        NonFiniteScoreError: hidden states, likelihoods or gradients are NaN or infinite.
    """
    pieces = [piece for head in heads for piece in head.pieces()]
    sizes = [sum(piece.numel() for piece in head.pieces()) for head in heads]
    by_state = [norm.to(pieces[0].device, pieces[0].dtype).flatten() for norm in norms]
    attention, by_passage = (None, None) if watch is None else (watch.numbers(), watch.by_passage())
    kept, gradients, seen = (
        [] if one is None else [one.to(pieces[0].device, pieces[0].dtype).flatten()]
        for one in (mean_states, by_passage, attention)
    )
    numbers = np.array(torch.cat([*pieces, *by_state, *kept, *gradients, *seen]).tolist())
    sizes += [sum(one.numel() for one in some) for some in (norms, kept, gradients)]
    *own, rest, of_states, of_passages, of_attention = np.split(numbers, list(accumulate(sizes)))
    understood = tuple(head.understood(values) for head, values in zip(heads, own, strict=True))
    if not np.isfinite(rest).all():
        raise NonFiniteScoreError("the gradient by the hidden states")
    uses = [] if watch is None or attention is None else watch.understood(of_attention)
    states = None if mean_states is None else of_states.reshape(mean_states.shape)
    passages = None if by_passage is None else of_passages.reshape(by_passage.shape)
    return _Numbers(understood, rest.reshape(len(norms), *norms[0].shape), uses, passages, states)


def _measures(
    batch: Sequence[Tokens],
    runs: Sequence[Sequence[slice]],
    groups: Sequence[Sequence[int]],
    numbers: _Numbers,
    path: ScorePath,
) -> list[Measure]:
    """Return each exchange's measure from the numbers of all."""
    found = list[Measure]()
    for group, head in zip(groups, numbers.heads, strict=True):
        norms, end = iter(head.norms), 0
        for i in group:
            own = slice(end, end := end + len(batch[i].answer))
            n_prompt = len(batch[i].prompt)
            parts = tuple(
                PartMeasure(part, tuple(numbers.by_state[number, i, ::-1][:n_prompt].tolist()), next(norms))
                for number, part in enumerate(runs[i])
            )
            use = numbers.attention[i] if numbers.attention else None
            state = None if numbers.states is None else numbers.states[i]
            by_passage = () if numbers.by_passage is None else shares_of_gradients(numbers.by_passage[i], batch[i])
            likelihoods = (head.nll[own], head.entropy[own], head.top[own], head.is_top[own])
            found.append(Measure(*likelihoods, parts, path, use, by_passage, state))
    return found


def _groups(lengths: Sequence[int], room: int) -> list[list[int]]:
    """Return runs of indices whose lengths add up to at most `room`, or single ones."""
    groups, filled = list[list[int]](), 0
    for i, length in enumerate(lengths):
        if not groups or filled + length > room:
            groups.append([])
            filled = 0
        groups[-1].append(i)
        filled += length
    return groups


def _moved(part: slice, by: int) -> slice:
    return slice(part.start + by, part.stop + by)


_NORM_OF: Mapping[str, WeightNorm] = {"paragrad": "paragrad", "hybridgrad": "paragrad", "exgrad": "exgrad"}


def gradient_signals(measure: Measure, part: PartMeasure, position: int) -> dict[str, float]:
    """Return the measured gradient scores of a run of tokens.

    Args:
        measure: measure of the whole answer.
        part: measure of the run.
        position: t*, inside the prompt.
    """
    semgrad = part.semgrad[-position - 1]
    mean_entropy = float(measure.entropy[part.tokens].mean())
    share = math.exp(-mean_entropy)
    found = {semgrad_at(p): part.semgrad[-p - 1] for p in POSITIONS if -p <= len(part.semgrad)}
    found["semgrad"] = semgrad
    paragrad, exgrad = part.by_weight
    if paragrad is not None:
        found |= {"paragrad": paragrad, "hybridgrad": share * paragrad + (1.0 - share) * semgrad}
    if exgrad is not None:
        found["exgrad"] = exgrad
    return found


def norms_from_cache(signals: Collection[str]) -> tuple[WeightNorm, ...]:
    """Return the gradients by the head's weight that some signals need."""
    needed = {_NORM_OF.get(signal) for signal in signals}
    return tuple(norm for norm in WEIGHT_NORMS if norm in needed)


def likelihood_signals(measure: Measure, part: PartMeasure) -> dict[str, float]:
    """Return the likelihood scores of a run of tokens."""
    nll, entropy = measure.nll[part.tokens], measure.entropy[part.tokens]
    return {
        "loss": float((entropy * nll).mean()),
        "mean_nll": float(nll.mean()),
        "sum_nll": float(nll.sum()),
        "max_nll": float(nll.max()),
        "first_nll": float(nll[0]),
        "mean_entropy": float(entropy.mean()),
        "max_entropy": float(entropy.max()),
        "first_entropy": float(entropy[0]),
        "min_prob": math.exp(-float(nll.max())),
        "first_prob": math.exp(-float(nll[0])),
        "mean_top_prob": float(measure.top[part.tokens].mean()),
        "off_top_share": 1.0 - float(measure.is_top[part.tokens].mean()),
        "n_answer_tokens": float(len(nll)),
    }


_NOTHING = MemoryBudget(0)
"""The smallest pieces."""
MAX_BATCH_TOKENS = 8192
"""Most padded tokens in a batch: about 0.4 GB of KV cache for the demo model, 1 GB for a model of 8 billion."""


def measure_many(
    lease: ModelLease,
    exchanges: Sequence[Tokens],
    spec: GradientSpec,
    *,
    parts: Sequence[Sequence[slice]] = (),
    max_batch_tokens: int = MAX_BATCH_TOKENS,
    kept: KeptCache | None = None,
) -> list[Measure | ScoringError]:
    """Return one measure or error for each exchange, in order.

    The lock is released between batches, so that other threads get their turn. Exchanges whose prompts begin alike (the
    same passages, several answers or questions) are batched together, and the common part is run once. A batch that
    does not fit in memory is halved; a single exchange is tried again by the smallest pieces.

    Args:
        lease: the model, and how to wait for it.
        exchanges: the exchanges.
        spec: which gradients to compute.
        parts: for each exchange, runs of answer tokens to measure in addition to the whole answer.
        max_batch_tokens: most padded tokens in a batch.
        kept: KV cache of the generation of the answer, for a single exchange.
    """
    runs = parts or [()] * len(exchanges)
    found: dict[int, Measure | ScoringError] = {}

    def run(group: Sequence[int], with_spec: GradientSpec) -> None:
        batch = [exchanges[i] for i in group]
        measured = _tried(lease, batch, with_spec, [runs[i] for i in group], kept)
        if not isinstance(measured, ScoringError):
            found.update(zip(group, measured, strict=True))
        elif len(group) > 1:
            middle = len(group) // 2
            run(group[:middle], with_spec)
            run(group[middle:], with_spec)
        elif isinstance(measured, OutOfMemoryError) and with_spec.budget not in {LEAN, _NOTHING}:
            run(group, replace(with_spec, budget=_NOTHING))
        else:
            found[group[0]] = measured

    for group in batches(exchanges, spec.n_recorded, max_batch_tokens, spec.most_recorded):
        run(group, spec)
    return [found[i] for i in range(len(exchanges))]


def _tried(
    lease: ModelLease,
    batch: Sequence[Tokens],
    spec: GradientSpec,
    parts: Sequence[Sequence[slice]],
    kept: KeptCache | None,
) -> list[Measure] | ScoringError:
    """Return one measure for each exchange, or why there are none; an error without the tensors that did not fit."""
    try:
        with lease.hold():
            _require_weights(lease.model)
            return measure(lease.model, batch, spec, parts=parts, kept=kept, check=lease.check)
    except ScoringError as error:
        failure = error
    except Exception as error:  # noqa: BLE001 - the model may be of any kind, and was in order when it was loaded
        if _is_memory(error):
            failure = OutOfMemoryError(max(len(tokens) for tokens in batch))
        else:
            _log.warning("the scoring model failed: %s", in_log(error))
            failure = ModelFailedError(type(lease.model).__name__, f"{type(error).__name__}: {error}")
    # outside `except`, where the traceback would still hold them
    return failure.with_traceback(None)


def _require_weights(model: PreTrainedModel) -> None:
    """Refuse a model some of whose weights were removed since it was loaded.

    Raises:
        ModelFailedError: it is one.
    """
    missing = missing_weight(model)
    if missing is not None:
        raise ModelFailedError(type(model).__name__, f"its weight {missing} holds no numbers any more")


def batches(
    exchanges: Sequence[Tokens], n_recorded: int, max_tokens: int, most_recorded: int | None = None
) -> Iterator[list[int]]:
    """Yield the indices of each batch: families with a common beginning first, then the others by length.

    Args:
        exchanges: the exchanges.
        n_recorded: how many of the last prompt tokens are recorded.
        max_tokens: most padded tokens in a batch.
        most_recorded: most of them that are recorded; `None` does not limit them.
    """
    fits = partial(_fits, n_recorded=n_recorded, max_tokens=max_tokens, most_recorded=most_recorded)
    families = list(_families(exchanges, n_recorded))
    for family in families:
        if len(family) > 1:
            yield from _filled(exchanges, family, fits)
    single = [family[0] for family in families if len(family) == 1]
    yield from _filled(exchanges, sorted(single, key=lambda i: len(exchanges[i])), fits)


def _fits(group: Sequence[Tokens], *, n_recorded: int, max_tokens: int, most_recorded: int | None) -> bool:
    """Return whether some exchanges may be one batch."""
    n_rest = max(len(tokens) - max(0, len(tokens.prompt) - n_recorded) for tokens in group)
    padded = len(group) * max(len(tokens) for tokens in group)
    return padded <= max_tokens and (most_recorded is None or len(group) * n_rest <= most_recorded)


def _families(exchanges: Sequence[Tokens], n_recorded: int) -> Iterator[list[int]]:
    """Yield runs of exchanges, in order of their prompts, that have all but their last few prefix tokens in common."""
    family = list[int]()
    for i in sorted(range(len(exchanges)), key=lambda i: exchanges[i].prompt):
        if family and not shared_start([exchanges[j] for j in (family[0], family[-1], i)], n_recorded):
            yield family
            family = []
        family.append(i)
    if family:
        yield family


def _filled(
    exchanges: Sequence[Tokens], order: Sequence[int], fits: Callable[[Sequence[Tokens]], bool]
) -> Iterator[list[int]]:
    """Yield runs of exchanges that fit together; a larger exchange gets its own run."""
    group = list[int]()
    for i in order:
        if group and not fits([exchanges[j] for j in (*group, i)]):
            yield group
            group = []
        group.append(i)
    if group:
        yield group


def _is_memory(error: BaseException) -> bool:
    texts = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(text in str(error) for text in texts)
