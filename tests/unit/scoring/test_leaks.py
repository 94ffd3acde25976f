"""A service that scores day and night must not grow."""

from __future__ import annotations

import gc
import threading
from itertools import islice, pairwise

import pytest

from semgrad_guard.errors import ScoringError
from semgrad_guard.evaluation.cost import resident_mb
from semgrad_guard.flow import Exchange
from semgrad_guard.scoring import SemGradScorer
from tests.models_for_tests import local_model

WINDOW = 1_500
"""Scores between two looks at the memory."""
MARGIN_MB = 0.3
"""A fifth of a kilobyte a score: less than any tensor that could stay behind."""
N_TOGETHER = 64


def scores(local):
    """Yield scores without end, of every way to get one; each of them is of another text."""
    scorer, ended = SemGradScorer(local, granularity="sentence"), threading.Event()
    ended.set()
    number = 0
    while True:
        number += 1
        shift = number % 150
        prompt = tuple(range(3 + shift, 13 + shift))
        exchanges = [
            Exchange(prompt_ids=prompt, answer_ids=(5, 6, n), on_policy=True) for n in range(3, 3 + N_TOGETHER)
        ]
        yield from scorer.score_batch(exchanges)
        written = local.generate(prompt_ids=prompt * 3, max_new_tokens=3, states_of=scorer.band_blocks[number % 2 :])
        yield scorer.score_generated(written)
        yield scorer.score(Exchange(prompt_ids=prompt * 3, answer="One. Two.", on_policy=True))
        for bad in (Exchange(prompt_ids=prompt, answer_ids=()), Exchange(prompt_ids=prompt, answer="cancelled")):
            with pytest.raises(ScoringError) as caught:
                scorer.score(bad, cancel=ended)
            yield caught.value


def test_ten_thousand_scores_leave_nothing_behind():
    """What leaks grows in every window; what the allocator does now and then does not."""
    local = local_model(hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2)
    endless = scores(local)
    seen = [_resident_after(endless, 4_000), *(_resident_after(endless, WINDOW) for _ in range(4))]
    assert min(after - before for before, after in pairwise(seen)) < MARGIN_MB, seen


def _resident_after(endless, n):
    assert sum(1 for _ in islice(endless, n)) == n
    gc.collect()
    resident = resident_mb()
    if resident is None:
        pytest.skip("this system does not tell its resident memory")
    return resident
