"""Answers of thousands of tokens: memory that grows little with them, and a time limit that holds."""

from __future__ import annotations

import gc
import threading
import time
from itertools import pairwise

import pytest
import torch

from semgrad_guard.errors import ScoringEndedError
from semgrad_guard.flow import Exchange, Passage, Status
from semgrad_guard.guard import Guard
from semgrad_guard.guard.question_run import SCORER_GRACE_S
from semgrad_guard.scoring import SemGradScorer
from semgrad_guard.scoring.layout import Tokens
from semgrad_guard.scoring.measure import batches
from tests.differential.test_plain_definition import WHOLE
from tests.models_for_tests import local_model
from tests.tensor_memory import peak_bytes

SIZES = {
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 12,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "max_position_embeddings": 8192,
}
KEPT_A_TOKEN = 12 * 2 * 128 * 4 + 6 * 128 * 4
"""Bytes of a token's keys and values in all blocks, and of its states in the band."""
BLOCK_A_TOKEN = (4 * (128 + 128) + 3 * (128 + 512)) * 4
"""About the bytes of a token's recording in one block; all six of the band are six times that."""
LONGEST = 0.15
"""Largest share of the work between two looks at the clock: one block of twelve, and what is read of its attention."""


@pytest.fixture(name="local", scope="module", params=["llama", "gpt2"])
def _local(request):
    """A model whose gradient is written out, and one whose blocks are left to autograd."""
    return local_model(request.param, **SIZES)


@pytest.fixture(name="scorer", scope="module")
def _scorer(local):
    return SemGradScorer(local)


def exchange(n_tokens: int) -> Exchange:
    """Return an answer of so many tokens to a prompt of twenty."""
    return Exchange(
        prompt_ids=tuple(range(40, 60)), answer_ids=tuple(40 + i * i % 97 for i in range(n_tokens)), on_policy=True
    )


def test_memory_grows_by_little_with_each_token(local, scorer):
    """Recorded as a whole, the band took several times as much, and an answer of 6,000 tokens several gigabytes."""
    if "GPT2" in type(local.model).__name__:
        pytest.skip("torch keeps more of blocks that are left to it, about 100 kB a token")
    assert peak_bytes(lambda: scorer.score(exchange(4500))) / 4500 < KEPT_A_TOKEN + 4 * BLOCK_A_TOKEN


@pytest.mark.parametrize("arch", WHOLE)
def test_blocks_that_run_again_give_the_same_score(arch):
    """Models whose cache cannot be kept are recorded as a whole; of a long answer each block is held by itself."""
    local, parts = local_model(arch), (Passage("It says so. " * 3),)
    whole = SemGradScorer(local, passage_gradients=True)
    lean = SemGradScorer(local, passage_gradients=True, max_extra_mb=0.01)
    for asked in (exchange(40), Exchange(prompt="It says so. " * 3, answer="So it says.", passages=parts)):
        expected, found = whole.score(asked), lean.score(asked)
        assert found.signals == pytest.approx(expected.signals, rel=1e-4, abs=1e-7)
        assert found.passage_gradients == pytest.approx(expected.passage_gradients, rel=1e-4)


def test_blocks_that_run_again_are_held_one_at_a_time():
    """The recording of a whole band grows with its depth."""
    local = local_model("falcon_h1", **SIZES, mamba_d_ssm=256, mamba_n_heads=32)
    whole, lean = SemGradScorer(local), SemGradScorer(local, max_extra_mb=1)
    assert peak_bytes(lambda: lean.score(exchange(200))) < 0.5 * peak_bytes(lambda: whole.score(exchange(200)))


class Looked(threading.Event):
    """A cancellation that notes when it is looked at, and is set from the `n`-th look on."""

    def __init__(self, n: int | None = None) -> None:
        super().__init__()
        self._n, self.looks = n, list[float]()

    def is_set(self) -> bool:
        self.looks.append(time.process_time())
        return self._n is not None and len(self.looks) > self._n


@pytest.mark.parametrize("n_tokens", [1500, 4500])  # recorded as a whole, and by blocks
def test_the_clock_is_looked_at_often(scorer, n_tokens):
    """In the passes, the head, the gradients and the texts; so a limit is exceeded by one piece of work at most."""
    clock, started = Looked(), time.process_time()
    scorer.score(exchange(n_tokens), cancel=clock)
    looks = [started, *clock.looks, time.process_time()]
    longest = max(after - before for before, after in pairwise(looks))
    assert longest < LONGEST * (looks[-1] - looks[0])


@pytest.mark.parametrize("granularity", ["answer", "sentence"])
def test_the_first_look_ends_the_work_and_nothing_is_held(local, granularity):
    """Wherever a caller gives up: the error goes up from there, and no tensor or lock stays behind."""
    scorer, clock = SemGradScorer(local, granularity=granularity), Looked()
    text = " ".join(f"Sentence {n} says so." for n in range(8))
    long = Exchange(prompt="Why?", question="Why?", answer=text, passages=(Passage("It says so. " * 20),))
    expected = scorer.score(long, cancel=clock).signals
    alone, n_looks = _tensors(), len(clock.looks)
    for at in range(0, n_looks, max(1, n_looks // 12)):
        ending = Looked(at)
        with pytest.raises(ScoringEndedError):
            scorer.score(long, cancel=ending)
        assert len(ending.looks) == at + 1
        assert _tensors() == alone
    assert scorer.score(long).signals == pytest.approx(expected, rel=1e-6)


def _tensors():
    gc.collect()
    return sorted(one.numel() for one in gc.get_objects() if type(one) is torch.Tensor)


def test_a_long_answer_has_a_batch_of_its_own():
    """Padded answers are recorded together: short ones many at a time, long ones alone."""
    short, long = Tokens((1, 2, 3), tuple(range(10))), Tokens((1, 2, 3), tuple(range(500)))
    assert list(batches([short] * 4 + [long] * 2, 5, 8192, 600)) == [[0, 1, 2, 3], [4], [5]]
    assert list(batches([short] * 4 + [long] * 2, 5, 8192)) == [[0, 1, 2, 3, 4, 5]]


def test_the_time_of_a_policy_holds_for_a_long_answer(local, scorer, tmp_path):
    """The caller gets what `on_error` says in time, and the model is free again at once."""
    path = tmp_path / "policy.yaml"
    path.write_text("version: 1\naccept: 0.5\notherwise: abstain\non_error: abstain\nbudget: {seconds: 0.3}\n")
    guard = Guard.from_yaml(path, scorer=scorer)
    started = time.monotonic()
    outcome = guard.run(exchange(4500))
    took_s = time.monotonic() - started
    assert took_s < 0.3 + SCORER_GRACE_S + 2.0  # another program may have its turn
    assert outcome.status is Status.ABSTAINED
    assert outcome.decision.failure.type in {"ScoringEndedError", "TimeoutError"}
    assert local.lock.acquire(timeout=60)
    local.lock.release()
