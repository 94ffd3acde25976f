"""A score that nobody waits for any more ends, and leaves nothing in memory or on the model."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from contextlib import contextmanager

import pytest
import torch

from semgrad_guard.errors import ScoringEndedError
from semgrad_guard.flow import Exchange, Score
from semgrad_guard.scoring import SemGradScorer
from tests.models_for_tests import in_use, local_model

EXCHANGE = Exchange(prompt_ids=tuple(range(3, 243)) * 2, answer_ids=tuple(range(9, 29)), on_policy=True)


@pytest.fixture(name="local", scope="module")
def _local():
    return local_model()


@pytest.fixture(name="scorer", scope="module")
def _scorer(local):
    return SemGradScorer(local)


@contextmanager
def calls_at(module, call, *, after):
    """Call something when a module is about to run for the n-th time."""
    n = 0

    def look(*_):
        nonlocal n
        n += 1
        if n == after:
            call()

    hook = module.register_forward_pre_hook(look)
    yield
    hook.remove()


def tensors():
    """Return the sizes of all live tensors that are no weights."""
    gc.collect()
    alive = [one for one in gc.get_objects() if type(one) is torch.Tensor]
    return sorted(one.numel() for one in alive)


def hooks_on(model):
    return sum(len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.modules())


@pytest.mark.parametrize("after", [1, 2])  # the prefix is read without gradients, then the rest is recorded
def test_a_cancelled_score_ends_at_the_next_block_and_frees_its_memory(local, scorer, after):
    """The error that says so must not hold on to the tensors either, as long as somebody keeps it."""
    scorer.score(EXCHANGE)
    before, cancel, caught = tensors(), threading.Event(), []
    with calls_at(local.model.model.layers[3], cancel.set, after=after):
        try:
            scorer.score(EXCHANGE, cancel=cancel)
        except ScoringEndedError as error:
            caught.append(error)
    assert caught
    assert tensors() == before
    assert hooks_on(local.model) == 0
    assert not any("forward" in vars(block) for block in local.model.model.layers)


def test_a_score_behind_the_writing_can_be_cancelled_too(local, scorer):
    """The kept cache stays whole, so that the same answer can be scored later."""
    written = local.generate(prompt_ids=range(3, 60), max_new_tokens=6, states_of=scorer.band_blocks)
    expected, cancel = scorer.score_generated(written).signals, threading.Event()
    with calls_at(local.model.model.layers[3], cancel.set, after=1), pytest.raises(ScoringEndedError):
        scorer.score_generated(written, cancel=cancel)
    assert scorer.score_generated(written).signals == expected


def test_a_batch_keeps_what_was_done_before_it_was_cancelled(local):
    """The rest says why it has no score."""
    small = SemGradScorer(local, max_batch_tokens=600)
    cancel = threading.Event()
    with calls_at(local.model.model.layers[3], cancel.set, after=3):  # two forward passes for each exchange
        found = small.score_batch([EXCHANGE, _other(1), _other(2)], cancel=cancel)
    assert [type(one) for one in found] == [ScoringEndedError, ScoringEndedError, Score]  # shorter ones come first
    assert found[2].signals == pytest.approx(small.score(_other(2)).signals, rel=1e-5)


def _other(n):
    return Exchange(prompt_ids=tuple(range(3 + n, 243)) * 2, answer_ids=(5, 6), on_policy=True)


def test_waiting_for_a_model_that_another_thread_uses_ends_too(local, scorer):
    """Somebody else's long answer must not hold up a caller whose time is limited."""
    with in_use(local):
        started = time.monotonic()
        with pytest.raises(ScoringEndedError, match="more time"):
            scorer.score(EXCHANGE, timeout_s=0.1)
        unwritten = local.generate(prompt_ids=(5, 6, 7), max_time_s=0.1)
        waited = time.monotonic() - started
    assert waited < 20
    assert (unwritten.finish_reason, unwritten.answer_ids) == ("cancelled", ())
    assert scorer.score(EXCHANGE, timeout_s=600).signals == scorer.score(EXCHANGE).signals


def test_a_waiting_caller_leaves_the_event_loop_free(local, scorer):
    """The model stays taken until the loop has turned twenty times: a blocked loop would never get there."""
    turned = threading.Event()

    async def turn():
        for _ in range(20):
            await asyncio.sleep(0.005)
        turned.set()

    async def both():
        _, score = await asyncio.gather(turn(), scorer.ascore(EXCHANGE))
        return score

    taken, freed_by_loop = threading.Event(), []

    def use():
        with local.lock:
            taken.set()
            freed_by_loop.append(turned.wait(timeout=30))

    other = threading.Thread(target=use)
    other.start()
    taken.wait(timeout=30)
    score = asyncio.run(both())
    other.join()
    assert freed_by_loop == [True]
    assert score.signals == scorer.score(EXCHANGE).signals


def test_cancelling_the_task_ends_the_work(local, scorer):
    """The thread must not go on with a model that others wait for."""
    begun, ended = threading.Event(), []

    async def cancelled():
        task = asyncio.create_task(scorer.ascore(EXCHANGE))
        while not begun.is_set():
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    def hold():  # in the scoring thread, inside a block: go on only when the task was cancelled
        begun.set()
        time.sleep(0.2)

    with (
        calls_at(local.model.model.layers[0], hold, after=1),
        calls_at(local.model.model.layers[3], lambda: ended.append("too late"), after=2),
    ):
        asyncio.run(cancelled())  # waits for the thread too
    assert not ended
