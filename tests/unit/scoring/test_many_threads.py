"""32 threads that score and write with one model get the numbers that one thread gets."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from semgrad_guard.flow import Exchange
from semgrad_guard.models import LocalModel
from semgrad_guard.scoring import SemGradScorer
from tests.models_for_tests import local_model

N_THREADS = 32
PROMPTS = [tuple(range(20 + n, 50 + 2 * n)) for n in range(4)]


def the_work(local, number):
    """Return all numbers of one thread's work, which differs from its neighbours'."""
    scorer = SemGradScorer(LocalModel(local.model, local.tokenizer, local.name))  # one lock, whoever wraps the model
    prompt = PROMPTS[number % 4]
    written = local.generate(prompt_ids=prompt, max_new_tokens=4, states_of=scorer.band_blocks if number % 2 else ())
    drawn = local.generate_batch(prompt_ids=[prompt] * 2, max_new_tokens=3, temperature=1.0, seed=number)
    exchanges = [Exchange(prompt_ids=prompt, answer_ids=one.answer_ids, on_policy=True) for one in drawn]
    scores = [scorer.score_generated(written), scorer.score(exchanges[0]), *scorer.score_batch(exchanges)]
    return [written.answer_ids, *(one.answer_ids for one in drawn)], [score.signals for score in scores]


@pytest.mark.parametrize("arch", ["llama", "gemma3_text", "mixtral", "gpt2", "lfm2"])
def test_threads_get_the_numbers_of_one(arch):
    """Dense, sliding windows, experts, learned positions, and a hybrid that takes the way without a cache."""
    local = local_model(arch)
    expected = [the_work(local, number) for number in range(4)]
    together = threading.Barrier(N_THREADS)

    def work(number):
        together.wait(timeout=60)
        return the_work(local, number % 4)

    with ThreadPoolExecutor(N_THREADS) as pool:
        found = list(pool.map(work, range(N_THREADS)))
    for number, (ids, signals) in enumerate(found):
        assert ids == expected[number % 4][0]
        for one, other in zip(signals, expected[number % 4][1], strict=True):
            assert one == pytest.approx(other, rel=1e-5, abs=1e-9)
