"""Measures the cost of scoring against that of writing the answer and of the plain definition, in one run."""

from __future__ import annotations

import ctypes
import gc
import re
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import torch  # noqa: TID253 - this module is reached only to measure a model
from typing_extensions import override

from semgrad_guard.errors import OutOfMemoryError
from semgrad_guard.evaluation.cost_report import BatchCost, CostReport, CostRow
from semgrad_guard.flow import Exchange
from semgrad_guard.models import LocalModel
from semgrad_guard.models.device import evaluating, widest_float
from semgrad_guard.scoring import SemGradScorer

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    from transformers.cache_utils import Cache

    from semgrad_guard.evaluation.cost_report import Way

_STATUS = Path("/proc/self/status")
_RESET = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"


@dataclass(slots=True)
class PeakMemory:
    """Filled in when the work is done."""

    extra_mb: float | None = None
    """Peak resident memory beyond that at the start, in MiB; `None` where the system does not tell (not Linux)."""


@contextmanager
def peak_memory(device: torch.device | None = None) -> Generator[PeakMemory]:
    """Measure the work inside the context. It gives freed memory back first, so that none of it hides the peak.

    Args:
        device: where the work is done; `None` is the processor.
    """
    measured = PeakMemory()
    if device is not None and device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        allocated = torch.cuda.memory_allocated(device)
        yield measured
        measured.extra_mb = (torch.cuda.max_memory_allocated(device) - allocated) / 2**20
        return
    before = resident_mb()
    knows = _reset_peak()
    yield measured
    after = _megabytes("VmHWM")
    if knows and before is not None and after is not None:
        measured.extra_mb = max(0.0, after - before)


def resident_mb() -> float | None:
    """Return the resident memory in MiB once freed memory was given back; `None` where the system does not tell."""
    gc.collect()
    _give_back()
    return _megabytes("VmRSS")


def _reset_peak() -> bool:
    try:
        _RESET.write_text(_RESET_PEAK)
    except OSError:
        return False
    return True


def _give_back() -> None:
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError, TypeError):  # not the GNU C library
        return
    trim(0)


def _megabytes(key: str) -> float | None:
    try:
        found = re.search(rf"^{key}:\s+(\d+) kB", _STATUS.read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found.group(1)) / 1024 if found else None


_NO_TARGET = -100
_SMALLEST = 1e-15


def plain_score(local: LocalModel, prompt: Sequence[int], answer: Sequence[int], position: int) -> tuple[float, float]:
    """Return SemGrad and ParaGrad of one exchange, on a model whose hidden states transformers lists in full.

    With tied embeddings ParaGrad takes in the input path, as in the published code.

    Args:
        local: the model.
        prompt: its token ids.
        answer: its token ids.
        position: t*, counted from the prompt's end.
    """
    model: Any = local.model
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    with local.lock, evaluating(model), torch.enable_grad():
        model.requires_grad_(True)  # noqa: FBT003 - torch's own signature
        try:
            return _score(model, [*prompt], [*answer], position)
        finally:
            for parameter in frozen:
                parameter.requires_grad_(False)  # noqa: FBT003


def _score(model: Any, prompt: list[int], answer: list[int], position: int) -> tuple[float, float]:
    weight = model.get_output_embeddings().weight
    ids = torch.tensor([prompt + answer], device=weight.device)
    labels = ids.clone()
    labels[:, : len(prompt)] = _NO_TARGET
    output = model(input_ids=ids, labels=labels, output_hidden_states=True)  # the model's own loss is not used
    loss = _objective(output.logits[0, :-1], labels[0, 1:])
    states = output.hidden_states
    by_states = torch.autograd.grad(loss, states, retain_graph=True)
    (by_weight,) = torch.autograd.grad(loss, weight, retain_graph=True)
    n_blocks = len(states) - 1
    upper_half = by_states[n_blocks - n_blocks // 2 : n_blocks]
    at_position = torch.stack([gradient[0, len(prompt) + position] for gradient in upper_half])
    wide = widest_float(by_weight.device)
    return float(at_position.to(wide).abs().mean()), float(by_weight.abs().mean(dtype=wide))


def _objective(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the mean of entropy times negative log-likelihood over the answer, by way of the whole text's matrix."""
    p = torch.softmax(logits.detach().clone(), dim=-1)
    entropy = -(p.clamp(min=_SMALLEST).log() * p).sum(dim=-1)
    weighted = torch.log_softmax(logits, dim=-1) * entropy[:, None]
    return torch.nn.functional.nll_loss(weighted, targets, ignore_index=_NO_TARGET)


CONTEXTS = (64, 512, 2048)
LONG_CONTEXT = 8192
"""Measured too on an accelerator, where it takes no minutes."""
ANSWERS = (8, 32, 128)
N_SAMPLES = 5
N_TOGETHER = 16
_SHORT = range(32, 32 + N_TOGETHER)
"""Prompt lengths of the short exchanges that are scored together; their answers have 8 tokens."""
_WAYS_A_CASE = 8
N_LARGE = 64
"""Exchanges of 512 + 32 tokens that are scored together on an accelerator."""


def is_accelerator(device: torch.device) -> bool:
    """Return whether work is done elsewhere, so that the host must wait for its end before it looks at the clock."""
    return device.type != "cpu"


def finish(device: torch.device) -> None:
    """Wait until a device has done all that it was asked to do."""
    if is_accelerator(device):
        torch.accelerator.synchronize(device)


@dataclass(frozen=True, slots=True)
class _Case:
    """One length of prompt and answer."""

    prompt: tuple[int, ...]
    n_answer: int


class _Endless(LocalModel):
    """A model that never ends its turn, so that every answer gets its full length."""

    @property
    @override
    def end_ids(self) -> frozenset[int]:
        return frozenset()


class _Bench:
    """Measures one case after the other."""

    def __init__(self, model: LocalModel, repeats: int, advance: Callable[[str], None]) -> None:
        self.local = _Endless(model.model, model.tokenizer, model.name)
        self.scorer = SemGradScorer(self.local)
        self.lean = SemGradScorer(self.local, method="semgrad", signals=())
        self.repeats, self.advance = repeats, advance
        self.device = model.device
        self.left_out = list[str]()
        """Measurements that did not fit in memory."""

    def case(self, case: _Case) -> list[CostRow]:
        """Return all ways of one case; they share the answer that is written first."""
        local, scorer, n = self.local, self.scorer, case.n_answer
        timed: list[tuple[Way, float, float | None]] = []

        def add(way: Way, work: Callable[[], object], repeats: int = 1) -> None:
            try:
                timed.append((way, *self._measure(way, case, work, repeats)))
            except (torch.OutOfMemoryError, OutOfMemoryError):
                self.left_out.append(f"{len(case.prompt)} + {n}: {way}")

        written = local.generate(prompt_ids=case.prompt, max_new_tokens=n, states_of=scorer.band_blocks)
        exchange = Exchange(prompt_ids=written.prompt_ids, answer_ids=written.answer_ids, on_policy=True)
        text = torch.tensor([case.prompt + written.answer_ids], device=local.device)
        add(
            "generation", lambda: local.generate(prompt_ids=case.prompt, max_new_tokens=n, states_of=scorer.band_blocks)
        )
        add("single pass", lambda: scorer.score_generated(written), self.repeats)
        add("SemGrad alone", lambda: self.lean.score_generated(written), self.repeats)
        if written.kept is not None:
            rest, kept = text[:, len(case.prompt) :], written.kept
            add("answer forward", lambda: _forward(local, rest, kept.prefix(len(case.prompt))), self.repeats)
        add("forward", lambda: _forward(local, text), self.repeats)
        add("cold", lambda: scorer.score(exchange), self.repeats)
        slow = self.repeats if is_accelerator(self.device) else 1
        add("plain", lambda: plain_score(local, case.prompt, exchange.answer_ids or (), scorer.position), slow)
        prompts = [case.prompt] * N_SAMPLES
        add(
            "five samples",
            lambda: local.generate_batch(prompt_ids=prompts, max_new_tokens=n, temperature=1.0, seed=0),
        )
        whole = timed[0][1]
        return [CostRow(len(case.prompt), n, way, s, s / whole, extra) for way, s, extra in timed]

    def together(self) -> BatchCost:
        """Return the cost of short exchanges one by one and in one batch."""
        exchanges = [
            Exchange(prompt_ids=_ids(self.local, length, seed), answer_ids=_ids(self.local, 8, -seed), on_policy=True)
            for seed, length in enumerate(_SHORT, start=1)
        ]
        one_by_one, _ = self._time(lambda: [self.scorer.score(exchange) for exchange in exchanges], self.repeats)
        together, _ = self._time(lambda: self.scorer.score_batch(exchanges), self.repeats)
        self.advance("batch")
        return BatchCost(len(exchanges), one_by_one, together, self._large() if is_accelerator(self.device) else None)

    def _large(self) -> float:
        """Return the seconds an exchange of 512 + 32 tokens takes in a large batch of different prompts."""
        exchanges = [
            Exchange(prompt_ids=_ids(self.local, 512, seed), answer_ids=_ids(self.local, 32, -seed), on_policy=True)
            for seed in range(1, N_LARGE + 1)
        ]
        return self._time(lambda: self.scorer.score_batch(exchanges), self.repeats)[0] / N_LARGE

    def _measure(self, way: Way, case: _Case, work: Callable[[], object], repeats: int) -> tuple[float, float | None]:
        measured = self._time(work, repeats)
        self.advance(f"{len(case.prompt)} + {case.n_answer}: {way}")
        return measured

    def _time(self, work: Callable[[], object], repeats: int) -> tuple[float, float | None]:
        """Return the time of one run and the peak memory of the first that is counted.

        On a processor it is the best time, because others disturb it. On an accelerator it is the median, after a run
        that is not counted, because it loads the kernels.
        """
        accelerated = is_accelerator(self.device)
        if accelerated and repeats > 1:
            work()
        times = list[float]()
        extra_mb = None
        for number in range(repeats):
            with peak_memory(self.device) as peak:
                finish(self.device)
                started = time.perf_counter()
                work()
                finish(self.device)
                times.append(time.perf_counter() - started)
            extra_mb = peak.extra_mb if number == 0 else extra_mb
        return median(times) if accelerated else min(times), extra_mb


def n_steps(contexts: Sequence[int] = CONTEXTS, answers: Sequence[int] = ANSWERS) -> int:
    """Return how often `measure_cost` reports progress."""
    return len(contexts) * len(answers) * _WAYS_A_CASE + 1


def measure_cost(
    model: LocalModel,
    contexts: Sequence[int] = CONTEXTS,
    answers: Sequence[int] = ANSWERS,
    *,
    repeats: int = 3,
    advance: Callable[[str], None] = lambda _: None,
) -> CostReport:
    """Return the cost of every way of scoring, and of writing the answer.

    Prompts are random tokens; answers are written to their full length.

    Args:
        model: the model.
        contexts: prompt lengths in tokens.
        answers: answer lengths in tokens.
        repeats: how often the short measurements are taken; the best counts, on an accelerator the median.
        advance: called after each measurement with its description.
    """
    bench = _Bench(model, repeats, advance)
    cases = [_Case(_ids(model, context, context), answer) for context in contexts for answer in answers]
    rows = [row for case in cases for row in bench.case(case)]
    return CostReport(
        model.name,
        model.dtype,
        torch.get_num_threads(),
        str(torch.__version__),
        tuple(rows),
        bench.together(),
        device=device_name(model.device),
        accelerated=is_accelerator(model.device),
        left_out=tuple(bench.left_out),
    )


def device_name(device: torch.device) -> str:
    """Return a device's name, with the card's where there is one."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _ids(model: LocalModel, n: int, seed: int) -> tuple[int, ...]:
    """Return random ordinary token ids."""
    n_vocabulary: int = model.model.config.get_text_config(decoder=True).vocab_size
    generator = torch.Generator().manual_seed(seed % 2**32)
    special = set(model.tokenizer.all_special_ids)
    drawn = torch.randint(n_vocabulary, (2 * n + 8,), generator=generator).tolist()
    return tuple(token for token in drawn if token not in special)[:n]


def _forward(local: LocalModel, ids: torch.Tensor, cache: Cache | None = None) -> None:
    with local.lock, torch.no_grad():
        local.model(input_ids=ids, past_key_values=cache, use_cache=cache is not None, logits_to_keep=1)
