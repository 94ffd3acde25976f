"""What an answer's tokens attend to: read while the blocks run for the gradients, without another pass.

Transformers lets a model fetch the function that computes its attention, by name (`attn_implementation`). While a
score is taken, that function is called as before, and besides the attention weights of the answer's tokens are
computed from the same queries and keys, for some blocks, and summed: over the first token, each passage, the question,
the rest of the prompt, and the answer's own words. Whatever the model's function adds (masks, windows, caps, sinks) has
to lead to the model's own output; where it does not, there are no sums. Models that do not fetch a function have none.

The row of a token is that of the place that predicts it. Its first own token has nothing of the answer to attend to.
"""

from __future__ import annotations

import logging
import math
import sys
import threading
from collections import Counter
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface

from semgrad_guard.models.device import widest_float
from semgrad_guard.scoring.attention_signals import AttentionUse
from semgrad_guard.scoring.prompt_parts import FIRST_PASSAGE, IN_PROMPT, OWN, QUESTION

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence

    from numpy.typing import NDArray
    from torch import Tensor, nn

    from semgrad_guard.scoring.layout import Layout, Tokens
    from semgrad_guard.scoring.model_parts import Band
    from semgrad_guard.scoring.passage_gradients import CacheGradients

_log = logging.getLogger("semgrad_guard")

STRONGEST = 0.1
"""Share of the heads that count as those that read the passages most."""
_TOLERANCE, _HALF_TOLERANCE = 1e-3, 3e-2
"""Largest difference from the model's own output, relative to its largest number; more has another cause than rounding
of single, or of half precision."""
ATTENTION_BYTES = 2**26
"""Most memory for the attention of new tokens at a time; those of a longer answer go by runs."""
MATRICES = 3
"""Matrices as large as the attention that are alive at a time."""
_ROOM = 2**24
"""Most attention weights at a time (64 MB in float32); longer answers go by pieces."""


def watched_blocks(n_blocks: int, band: Band) -> range:
    """Return the blocks whose attention is read: those of the model's middle third that are in the band, or the band.

    Behind the writing only the blocks of the band are run, and a score must not depend on how it was computed.

    Source: RAUQ (arXiv 2505.20045) reads the middle third, as its authors' code counts it; here its upper part.
    """
    middle = range(max(band.first, n_blocks // 3), min(band.last + 1, math.ceil(n_blocks * 2 / 3) + 1))
    return middle or range(band.first, band.last + 1)


class AttentionWatch:
    """Sums the attention of the answers of one batch while its blocks run."""

    def __init__(
        self,
        blocks: Sequence[nn.Module],
        layout: Layout,
        batch: Sequence[Tokens],
        gradients: CacheGradients | None = None,
    ) -> None:
        """Prepare for a batch.

        Args:
            blocks: the blocks whose attention is read.
            layout: layout of the batch.
            batch: its exchanges.
            gradients: what notes the gradients by keys and values, where those are wanted.
        """
        self.gradients = gradients
        self._blocks, self._batch = blocks, batch
        self._number = {id(module): number for number, block in enumerate(blocks) for module in block.modules()}
        self._n_columns = IN_PROMPT + FIRST_PASSAGE + max(_n_passages(tokens) for tokens in batch)
        self._rows = _Rows.of(layout, self._n_columns)
        n_new = layout.rest.ids.shape[1]
        self._shape = (len(batch), n_new, self._rows.columns.shape[1])
        self._sets: dict[torch.device, _Rows] = {}
        self._found: dict[int, _Sums] = {}

    @property
    def modules(self) -> Iterator[nn.Module]:
        """The modules in which attention may be computed."""
        return (module for block in self._blocks for module in block.modules())

    def note_call(
        self,
        attend: Callable[..., Any],
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Call a model's attention function as transformers does, and sum the weights of the answer's tokens."""
        if self.gradients is not None:
            key, value = self.gradients.listen(module, key, value)
        output = attend(module, query, key, value, attention_mask, *args, **kwargs)
        number = self._number.get(id(module))
        n_all = key.shape[2] if key.dim() == 4 else -1
        if number is None or args or (*query.shape[::2], n_all) != self._shape:
            return output
        call = _Call(module, query, key, value, attention_mask, kwargs)
        with torch.no_grad(), torch.autocast(query.device.type, enabled=False):
            sums = _sums_of(call, self._rows_on(query.device), output[0])
        if sums is not None:
            self._found[number] = sums
        return output

    def note_weights(self, module: nn.Module, weights: Tensor, start: int = 0) -> None:
        """Sum attention weights that somebody else computed for a single exchange.

        Args:
            module: the attention module that they are of.
            weights: weights of a run of new tokens, ``(head, new token, token)``; the runs come in order.
            start: the first new token of the run. Tokens that the run cannot see may be missing at the end.
        """
        number = self._number.get(id(module))
        n_rows, n_new = self._rows.places.shape[1], self._shape[1]
        first, end = max(0, start - (n_new - n_rows)), start + weights.shape[1] - (n_new - n_rows)
        if number is None or self._shape[0] != 1 or end > n_rows or end <= first:
            return
        rows = self._rows_on(weights.device)
        chosen = weights.detach()[:, first - end :][None]  # the answer's rows are the last
        found = rows.sums(chosen, rows.own_keys[:, first:end], weights.new_zeros(()))
        self._found[number] = found if first == 0 else self._found[number].followed_by(found)

    def numbers(self) -> Tensor | None:
        """Return all sums as one row of numbers, on the device of the input; `None` where there are none."""
        if not self._found:
            return None
        found = [self._found[number] for number in sorted(self._found)]
        device = self._rows.places.device
        n_heads = max(one.by_column.shape[1] for one in found)
        by_column = torch.stack([_with_heads(one.by_column.to(device), n_heads) for one in found])
        to_previous = torch.stack([_with_heads(one.to_previous.to(device), n_heads) for one in found])
        errors = torch.stack([one.error.to(device) for one in found])
        valid = self._rows.valid.to(by_column.dtype)
        pairs = valid * (torch.arange(valid.shape[1], device=device) > 0)
        head = (to_previous * pairs[:, None, :]).sum(dim=-1).argmax(dim=-1)
        previous = to_previous.gather(2, head[:, :, None, None].expand(-1, -1, 1, valid.shape[1]))[:, :, 0]
        passages = by_column[..., IN_PROMPT + FIRST_PASSAGE :].sum(dim=-1)
        by_head = (passages * valid[:, None, :]).sum(dim=-1) / valid.sum(dim=1)[:, None]
        n_strongest = max(1, round(STRONGEST * sum(one.by_column.shape[1] for one in found)))
        strongest = by_head.transpose(0, 1).flatten(1).topk(n_strongest, dim=1).values.mean(dim=1)
        pieces = (by_column.sum(dim=(0, 2)), previous, strongest, errors, self._by_head(by_column))
        return torch.cat([piece.flatten().to(widest_float(device)) for piece in pieces])

    def by_passage(self) -> Tensor | None:
        """Return the gradients by keys and values summed by column, ``(exchange, column)``; `None` without any."""
        return None if self.gradients is None else self.gradients.numbers(self._rows.by_column)

    def _by_head(self, by_column: Tensor) -> Tensor:
        """Return the mean weight on each group of columns, ``(exchange, block, head, group)``."""
        valid = self._rows.valid.to(by_column.dtype)
        mean = torch.einsum("bnhtc,nt->nbhc", by_column, valid / valid.sum(dim=1, keepdim=True))
        passages = mean[..., IN_PROMPT + FIRST_PASSAGE :].sum(dim=-1, keepdim=True)
        return torch.cat([mean[..., : OWN + 1], mean[..., IN_PROMPT + QUESTION, None], passages], dim=-1)

    def understood(self, numbers: NDArray[np.float64]) -> list[AttentionUse | None]:
        """Return what each exchange attends to, from what `numbers` returned; `None` where it cannot be told."""
        n, length = self._rows.valid.shape
        n_found = len(self._found)
        sizes = [n * length * self._n_columns, n_found * n * length, n, n_found]
        sums, previous, strongest, errors, by_head = np.split(numbers, np.cumsum(sizes))
        tolerance = max(one.tolerance for one in self._found.values())
        if not np.isfinite(numbers).all() or errors.max() > tolerance:
            _log.info("attention is left out: what was computed does not lead to the model's own output")
            return [None] * n
        by_token = sums.reshape(n, length, self._n_columns)
        by_block = previous.reshape(n_found, n, length)
        return [
            AttentionUse(
                sums=by_token[i, : len(tokens.answer), : IN_PROMPT + FIRST_PASSAGE + _n_passages(tokens)],
                to_previous=by_block[:, i, : len(tokens.answer)],
                strongest=float(strongest[i]),
                by_head=by_head.reshape(n, -1)[i],
                has_question=tokens.parts is not None and tokens.parts.has_question,
                shown=tokens.parts.shown if tokens.parts else (),
            )
            for i, tokens in enumerate(self._batch)
        ]

    def _rows_on(self, device: torch.device) -> _Rows:
        if device not in self._sets:
            self._sets[device] = self._rows.to(device)
        return self._sets[device]


def _n_passages(tokens: Tokens) -> int:
    return tokens.parts.n_passages if tokens.parts else 0


@dataclass(frozen=True, slots=True)
class _Sums:
    """Sums of one block, on its device."""

    by_column: Tensor
    """``(exchange, head, token, column)``"""
    to_previous: Tensor
    """``(exchange, head, token)``"""
    error: Tensor
    """Largest difference from the model's own output, relative to its largest number."""
    tolerance: float

    def followed_by(self, next_rows: _Sums) -> _Sums:
        """Return the sums of these rows and the next ones."""
        by_column = torch.cat([self.by_column, next_rows.by_column], dim=2)
        return replace(self, by_column=by_column, to_previous=torch.cat([self.to_previous, next_rows.to_previous], 2))


class _Rows:
    """Where the rows of the answers' tokens are, and what their keys belong to, on one device."""

    def __init__(self, places: Tensor, valid: Tensor, columns: Tensor, own_keys: Tensor, n_columns: int) -> None:
        self.places, self.valid, self.columns, self.own_keys = places, valid, columns, own_keys
        self._n_columns = n_columns
        self.exchanges = torch.arange(len(places), device=places.device)[:, None]
        self.by_column = (columns[..., None] == torch.arange(n_columns, device=places.device)).to(torch.float32)

    @classmethod
    def of(cls, layout: Layout, n_columns: int) -> _Rows:
        """Return the rows of a batch; those of a shorter answer repeat its last."""
        columns, answers = layout.columns, layout.answers
        if columns is None:
            msg = "lay_out was not asked to tell what each token belongs to (with_columns)"
            raise TypeError(msg)
        device = columns.device
        exchanges = torch.arange(len(columns), device=device)[:, None]
        lengths = (answers.exchanges == exchanges).sum(dim=1, keepdim=True)
        row = torch.arange(max(answers.lengths), device=device)
        places = layout.recorded[:, -1:] + torch.minimum(row, lengths - 1)
        n_prefix = columns.shape[1] - layout.rest.ids.shape[1]
        return cls(places, row < lengths, columns, places + n_prefix, n_columns)

    def to(self, device: torch.device) -> _Rows:
        if device == self.places.device:
            return self
        places, valid, columns, own_keys = (
            one.to(device) for one in (self.places, self.valid, self.columns, self.own_keys)
        )
        return _Rows(places, valid, columns, own_keys, self._n_columns)

    def sums(self, weights: Tensor, own_keys: Tensor, error: Tensor, tolerance: float = 0.0) -> _Sums:
        """Return the sums of attention weights, ``(exchange, head, token, key)``."""
        by_column = torch.matmul(weights, self.by_column[:, None, : weights.shape[3]].to(weights.dtype))
        own = own_keys[:, None, :, None].expand(-1, weights.shape[1], -1, 1)
        return _Sums(by_column, weights.gather(3, own)[..., 0], error, tolerance)


@dataclass(frozen=True, slots=True)
class _Call:
    """The arguments of an attention function."""

    module: nn.Module
    query: Tensor
    key: Tensor
    value: Tensor
    mask: object
    """A matrix, what is no padding, nothing, or whatever else the model's kind of attention takes."""
    kwargs: dict[str, Any]

    @property
    def scaling(self) -> float:
        given: float | None = self.kwargs.get("scaling")
        return self.query.shape[-1] ** -0.5 if given is None else given


def _sums_of(call: _Call, rows: _Rows, output: Tensor) -> _Sums | None:
    """Return the sums of one block; `None` where its kind of mask or output is not understood."""
    allowed = _mask_rows(call, rows)
    if allowed is None or output.dim() != 4 or output.shape[1:3] != (call.query.shape[2], call.query.shape[1]):
        return None
    wide = torch.promote_types(call.query.dtype, torch.float32)
    key = call.key.to(wide)
    n, n_heads, n_keys = len(rows.places), call.query.shape[1], key.shape[2]
    length = max(1, _ROOM // (n * n_heads * n_keys))
    pieces, weights = list[_Sums](), key
    for start in range(0, rows.places.shape[1], length):
        some = slice(start, start + length)
        query = call.query[rows.exchanges, :, rows.places[:, some]].transpose(1, 2).to(wide)
        weights = _weights(call, query, key, allowed[:, :, some])
        pieces.append(rows.sums(weights, rows.own_keys[:, some], weights))
    # of an exchange with a shorter answer, the last row is repeated
    last = weights[:, :, -1].reshape(n, key.shape[1], -1, n_keys) @ call.value.to(wide)
    expected = output[rows.exchanges[:, 0], rows.places[:, -1]].to(wide)
    width = min(last.shape[-1], expected.shape[-1])
    difference = (last.reshape(n, n_heads, -1)[..., :width] - expected[..., :width]).abs().amax()
    used = (call.query, call.key, call.value, output)
    error = difference / expected.abs().amax().clamp(min=torch.finfo(wide).tiny)
    return _Sums(
        torch.cat([piece.by_column for piece in pieces], dim=2),
        torch.cat([piece.to_previous for piece in pieces], dim=2),
        error,
        _HALF_TOLERANCE if any(one.dtype.itemsize < 4 for one in used) else _TOLERANCE,
    )


def _weights(call: _Call, query: Tensor, key: Tensor, allowed: Tensor) -> Tensor:
    """Return the attention weights of some rows, ``(exchange, head, token, key)``."""
    n, n_heads, length, width = query.shape
    shared = query.reshape(n, key.shape[1], -1, width)
    scores = (shared @ key.transpose(2, 3)).mul_(call.scaling).view(n, n_heads, length, -1)
    cap: float | None = call.kwargs.get("softcap")
    if cap is not None:
        scores = scores.div_(cap).tanh_().mul_(cap)
    scores = scores.masked_fill_(~allowed, -torch.inf) if allowed.dtype == torch.bool else scores + allowed
    sinks: Tensor | None = call.kwargs.get("s_aux")
    if sinks is None:
        return scores.softmax(dim=-1)
    column = sinks.to(scores).view(1, -1, 1, 1).expand(n, n_heads, length, 1)
    return torch.cat([scores, column], dim=-1).softmax(dim=-1)[..., :-1]


def _mask_rows(call: _Call, rows: _Rows) -> Tensor | None:
    """Return the mask's rows of the answers' tokens, to be added or true where allowed; `None` for an unknown kind."""
    n_new, n_all = call.query.shape[2], call.key.shape[2]
    mask = call.mask
    if isinstance(mask, torch.Tensor) and mask.dim() == 4:
        whole = mask[..., :n_all].expand(len(rows.places), -1, -1, -1)
        return whole[rows.exchanges, :, rows.places].transpose(1, 2)
    if mask is not None and not (isinstance(mask, torch.Tensor) and mask.shape == (len(rows.places), n_all)):
        return None
    keys = torch.arange(n_all, device=rows.places.device)
    own = (rows.places + (n_all - n_new))[:, None, :, None]
    allowed = keys <= own
    window: int | None = call.kwargs.get("sliding_window")
    if window is not None:
        allowed &= keys > own - window
    return allowed if mask is None else allowed & mask.bool()[:, None, None, :]


def _with_heads(by_head: Tensor, n_heads: int) -> Tensor:
    """Return sums with as many heads as wanted; the added ones attend to nothing."""
    missing = n_heads - by_head.shape[1]
    if not missing:
        return by_head
    return torch.cat([by_head, by_head.new_zeros(len(by_head), missing, *by_head.shape[2:])], dim=1)


_present: ContextVar[AttentionWatch | None] = ContextVar("semgrad_guard_attention", default=None)
"""Who reads attention in this thread."""
_lock, _opened = threading.Lock(), Counter[int]()


@contextmanager
def watching(watch: AttentionWatch | None) -> Generator[None]:
    """Let a watch read the attention that is computed in this thread and context; `None` reads nothing."""
    if watch is None:
        yield
        return
    token = _present.set(watch)
    with ExitStack() as undo:
        undo.callback(_present.reset, token)
        for interface in {id(one): one for one in _interfaces(watch.modules)}.values():
            undo.enter_context(_opened_interface(interface))
        yield


@contextmanager
def unwatched() -> Generator[None]:
    """Read no attention within the context: the tokens that run are not those of the answer."""
    token = _present.set(None)
    try:
        yield
    finally:
        _present.reset(token)


def note_weights(module: nn.Module, weights: Tensor, start: int = 0) -> None:
    """Hand attention weights of one exchange to who reads in this thread; see `AttentionWatch.note_weights`."""
    watch = _present.get()
    if watch is not None:
        watch.note_weights(module, weights, start)


def noted_gradients(module: nn.Module) -> CacheGradients | None:
    """Return who, in this thread, wants the gradients by a module's keys and values."""
    watch = _present.get()
    found = None if watch is None else watch.gradients
    return found if found is not None and found.wants(module) else None


def _interfaces(modules: Iterator[nn.Module]) -> Iterator[AttentionInterface]:
    """Yield the interfaces from which some modules fetch their attention function."""
    for file in {type(module).__module__ for module in modules}:
        interface = getattr(sys.modules.get(file), "ALL_ATTENTION_FUNCTIONS", None)
        if isinstance(interface, AttentionInterface) and hasattr(interface, "get_interface"):  # transformers before 5.1
            yield interface


@contextmanager
def _opened_interface(interface: AttentionInterface) -> Generator[None]:
    """Let functions that are fetched from an interface be watched; those of other threads are handed out unchanged."""
    with _lock:
        _opened[id(interface)] += 1
        if _opened[id(interface)] == 1:
            vars(interface)["get_interface"] = partial(_fetched, interface.get_interface)
    try:
        yield
    finally:
        with _lock:
            _opened[id(interface)] -= 1
            if not _opened[id(interface)]:
                vars(interface).pop("get_interface", None)


def _fetched(fetch: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    function, watch = fetch(*args, **kwargs), _present.get()
    if _goes_by_runs.get():
        function = partial(_by_runs, function)
    return function if watch is None else partial(watch.note_call, function)


_goes_by_runs: ContextVar[bool] = ContextVar("semgrad_guard_attention_by_runs", default=False)
"""Whether attention goes by runs of tokens in this thread and context."""


@contextmanager
def by_runs(blocks: Sequence[nn.Module]) -> Generator[None]:
    """Compute the attention of long answers by runs of tokens, so that no matrix of all tokens is kept for a gradient.

    Args:
        blocks: the decoder blocks in which it is computed.
    """
    token = _goes_by_runs.set(True)
    with ExitStack() as undo:
        undo.callback(_goes_by_runs.reset, token)
        modules = (module for block in blocks for module in block.modules())
        for interface in {id(one): one for one in _interfaces(modules)}.values():
            undo.enter_context(_opened_interface(interface))
        yield


def _by_runs(
    attend: Callable[..., Any],
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Call a model's attention function for a run of tokens at a time; a gradient computes its run again."""
    n_new = query.shape[2] if query.dim() == 4 else 0
    length = max(1, ATTENTION_BYTES // max(1, query.shape[:2].numel() * key.shape[-2] * 4 * MATRICES))
    is_plain = isinstance(attention_mask, torch.Tensor) and attention_mask.shape[-2:-1] == (n_new,) and not args
    if (
        n_new <= length
        or not is_plain
        or any(isinstance(one, torch.Tensor) and one.dim() > 2 for one in kwargs.values())
    ):
        return attend(module, query, key, value, attention_mask, *args, **kwargs)
    whole_mask: Any = attention_mask

    def run(start: int) -> Tensor:
        some = slice(start, start + length)
        output: Tensor = attend(module, query[:, :, some], key, value, whole_mask[..., some, :], **kwargs)[0]
        return output

    starts = range(0, n_new, length)
    if torch.is_grad_enabled() and query.requires_grad:
        outputs = [checkpoint(run, start, use_reentrant=False, preserve_rng_state=False) for start in starts]
    else:
        outputs = [run(start) for start in starts]
    return torch.cat(outputs, dim=1), None
