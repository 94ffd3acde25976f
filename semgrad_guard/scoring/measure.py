"""One measurement of an exchange, or of a padded batch: gradients, likelihoods and entropies of its answer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING

import torch

from semgrad_guard.errors import OutOfMemoryError, ScoringError
from semgrad_guard.models.cache import full_cache
from semgrad_guard.scoring.head import STORED_ENTRIES, WEIGHT_NORMS, run_head
from semgrad_guard.scoring.layout import lay_out, shared_start
from semgrad_guard.scoring.model_lease import borrowed
from semgrad_guard.scoring.model_parts import model_parts_of
from semgrad_guard.scoring.recording import forward_no_grad, known_outputs, record, record_from_cache, state_norms
from semgrad_guard.signals import POSITIONS, semgrad_at

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from torch import Tensor
    from transformers import PreTrainedModel

    from semgrad_guard.flow import ScorePath
    from semgrad_guard.models.cache import KeptCache
    from semgrad_guard.scoring.head import HeadPass, WeightNorm, WeightNorms
    from semgrad_guard.scoring.layout import Layout, Tokens
    from semgrad_guard.scoring.model_lease import ModelLease
    from semgrad_guard.scoring.model_parts import ModelParts
    from semgrad_guard.scoring.recording import Band, Recorded, Recording


@dataclass(frozen=True, slots=True)
class GradientSpec:
    """Which gradients to compute."""

    band: Band
    n_recorded: int
    """How many of the last prompt tokens are recorded: -t* or more."""
    norms: tuple[WeightNorm, ...] = WEIGHT_NORMS
    """Gradients by the head's weight to compute in addition to those by the states."""


@dataclass(frozen=True, slots=True)
class PartMeasure:
    """Gradients of the objective over one run of answer tokens."""

    tokens: slice
    semgrad: tuple[float, ...]
    """Mean absolute gradient by the band's states at position -1, -2, ... of the prompt, as far as recorded."""
    by_weight: WeightNorms


@dataclass(frozen=True, slots=True)
class Measure:
    """Results of one measurement of an answer; tensors are float64, ``(answer token,)``."""

    nll: Tensor
    """Negative log-likelihoods, in nats."""
    entropy: Tensor
    """Entropies of the predicting distributions, in nats."""
    top: Tensor
    """Largest probabilities."""
    is_top: Tensor
    """True where the answer's token was the likeliest."""
    parts: tuple[PartMeasure, ...]
    """The whole answer first, then the requested parts."""
    path: ScorePath


def measure(
    model: PreTrainedModel,
    batch: Sequence[Tokens],
    spec: GradientSpec,
    *,
    parts: Sequence[Sequence[slice]] = (),
    kept: KeptCache | None = None,
) -> list[Measure]:
    """Return one measure for each exchange. The caller holds the model's lock.

    Args:
        model: any causal language model of transformers.
        batch: the exchanges, run together.
        spec: which gradients to compute.
        parts: for each exchange, runs of answer tokens to measure in addition to the whole answer.
        kept: KV cache of the generation of the answer, for a single exchange.

    Raises:
        NonFiniteScoreError: hidden states, likelihoods or gradients are NaN or infinite.
        GradientsUnavailableError: no gradients can be taken through this model.
    """
    anatomy = model_parts_of(model)
    runs = [[slice(0, len(t.answer)), *own] for t, own in zip(batch, parts or [()] * len(batch), strict=True)]
    with borrowed(model):
        layout = lay_out(batch, spec.n_recorded, anatomy.device, split=anatomy.has_cache)
        reused = None
        if kept is not None:
            once = len(runs[0]) == 1
            reused = record_from_cache(model, layout, batch[0].read, spec.band, kept, once=once)
        recording = reused or _record_cold(model, anatomy, layout, spec.band)
        known = known_outputs(kept, batch[0]) if kept and reused else None
        run = partial(run_head, anatomy.head, known=known, norms=spec.norms)
        heads = list(_heads(run, anatomy.head.n_vocabulary, recording.z, batch, layout, runs))
        norms = _state_norms(recording, layout, heads, batch, runs)
    path: ScorePath = "reused" if reused else "cold" if anatomy.has_cache else "full"
    return [
        _measure(head, own, by_part, n_prompt=len(tokens.prompt), path=path)
        for tokens, head, own, by_part in zip(batch, heads, runs, norms, strict=True)
    ]


def _record_cold(model: PreTrainedModel, anatomy: ModelParts, layout: Layout, band: Band) -> Recording:
    """Run the prefix without gradients, then record the rest."""
    cache = full_cache(model) if layout.prefix else None
    if layout.prefix:
        forward_no_grad(model, anatomy, layout.prefix, cache)
        if cache is not None and len(layout.prefix.ids) < len(layout.rest.ids):
            cache.batch_repeat_interleave(len(layout.rest.ids))
    return record(model, anatomy, layout.rest, cache, band)


def _heads(
    run: Callable[[Tensor, Tensor, Sequence[slice]], HeadPass],
    n_vocabulary: int,
    z: Tensor,
    batch: Sequence[Tokens],
    layout: Layout,
    parts: Sequence[Sequence[slice]],
) -> Iterator[HeadPass]:
    """Yield the head's results for each answer; several answers share a pass while their logits fit in memory.

    `run` is `run_head` with the model's head and settings filled in.
    """
    room = max(1, STORED_ENTRIES // n_vocabulary)
    for group in _groups([len(tokens.answer) for tokens in batch], room):
        ends = list(accumulate(len(batch[i].answer) for i in group))
        inputs = torch.cat([z[i, _predicting(batch[i], layout.starts[i])] for i in group]).detach()
        targets = torch.tensor([token for i in group for token in batch[i].answer], device=z.device)
        moved = [
            _moved(part, end - len(batch[i].answer)) for i, end in zip(group, ends, strict=True) for part in parts[i]
        ]
        together = run(inputs, targets, moved)
        norms = iter(together.norms)
        for i, end in zip(group, ends, strict=True):
            own = slice(end - len(batch[i].answer), end)
            yield together._replace(
                nll=together.nll[own].cpu(),
                entropy=together.entropy[own].cpu(),
                top=together.top[own].cpu(),
                is_top=together.is_top[own].cpu(),
                pull=together.pull[own],
                norms=tuple(next(norms) for _ in parts[i]),
            )


def _state_norms(
    recording: Recorded,
    layout: Layout,
    heads: Sequence[HeadPass],
    batch: Sequence[Tokens],
    parts: Sequence[Sequence[slice]],
) -> list[list[Tensor]]:
    """Return the mean absolute gradients by the band's states; each part of the answers takes one backward pass."""
    found: list[list[Tensor]] = [[] for _ in batch]
    n_rounds = max(len(own) for own in parts)
    for number in range(n_rounds):
        at_head = torch.zeros_like(recording.z)
        chosen = [i for i, own in enumerate(parts) if number < len(own)]
        for i in chosen:
            part = parts[i][number]
            rows = _predicting(batch[i], layout.starts[i])
            weights = heads[i].entropy[part].to(heads[i].pull) / (part.stop - part.start)
            pull = heads[i].pull[part] * weights[:, None]
            at_head[i, rows.start + part.start : rows.start + part.stop] = pull.to(at_head)
        norms = state_norms(recording, at_head, layout.recorded, keep=number + 1 < n_rounds)
        for i in chosen:
            found[i].append(norms[i])
    return found


def _measure(
    head: HeadPass, parts: Sequence[slice], norms: Sequence[Tensor], *, n_prompt: int, path: ScorePath
) -> Measure:
    measured = tuple(
        PartMeasure(part, tuple(by_position.flip(0)[:n_prompt].tolist()), by_weight)
        for part, by_weight, by_position in zip(parts, head.norms, norms, strict=True)
    )
    return Measure(head.nll, head.entropy, head.top, head.is_top, measured, path)


def _predicting(tokens: Tokens, start: int) -> slice:
    """Return the places in the rest that predict the answer's tokens."""
    first = len(tokens.prompt) - start - 1
    return slice(first, first + len(tokens.answer))


def _groups(lengths: Sequence[int], room: int) -> Iterator[list[int]]:
    """Yield runs of indices whose lengths add up to at most `room`, or single ones."""
    group, filled = list[int](), 0
    for i, length in enumerate(lengths):
        if group and filled + length > room:
            yield group
            group, filled = [], 0
        group.append(i)
        filled += length
    yield group


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
        "off_top_share": 1.0 - float(measure.is_top[part.tokens].double().mean()),
        "n_answer_tokens": float(len(nll)),
    }


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
    same passages, several answers or questions) are batched together, and the common part is run once.

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

    def run(group: Sequence[int]) -> None:
        failure = None
        try:
            with lease.hold():
                batch = [exchanges[i] for i in group]
                measured = measure(lease.model, batch, spec, parts=[runs[i] for i in group], kept=kept)
            found.update(zip(group, measured, strict=True))
        except ScoringError as error:
            failure = error
        except (MemoryError, RuntimeError) as error:
            if not _is_memory(error):
                raise
            failure = OutOfMemoryError(max(len(exchanges[i]) for i in group))
        # outside `except`, where the traceback would still hold the tensors that did not fit
        if failure is not None and len(group) == 1:
            found[group[0]] = failure.with_traceback(None)
        elif failure is not None:
            middle = len(group) // 2
            run(group[:middle])
            run(group[middle:])

    for group in batches(exchanges, spec.n_recorded, max_batch_tokens):
        run(group)
    return [found[i] for i in range(len(exchanges))]


def batches(exchanges: Sequence[Tokens], n_recorded: int, max_tokens: int) -> Iterator[list[int]]:
    """Yield the indices of each batch: families with a common beginning first, then the others by length."""
    families = list(_families(exchanges, n_recorded))
    for family in families:
        if len(family) > 1:
            yield from _filled(exchanges, family, max_tokens)
    single = [family[0] for family in families if len(family) == 1]
    yield from _filled(exchanges, sorted(single, key=lambda i: len(exchanges[i])), max_tokens)


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


def _filled(exchanges: Sequence[Tokens], order: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    """Yield runs of exchanges whose padded size is within the budget; a larger exchange gets its own run."""
    group, longest = list[int](), 0
    for i in order:
        wider = max(longest, len(exchanges[i]))
        if group and (len(group) + 1) * wider > max_tokens:
            yield group
            group, wider = [], len(exchanges[i])
        group.append(i)
        longest = wider
    if group:
        yield group


def _is_memory(error: BaseException) -> bool:
    texts = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(text in str(error) for text in texts)
