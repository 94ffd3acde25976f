"""Looking at an answer while it is written: stop sequences, streaming, cancelling."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import torch
from transformers import StoppingCriteria
from typing_extensions import override

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Sequence

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
