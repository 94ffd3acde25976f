"""A thread that uses the model without asking anybody gets what it would get alone, whatever is done meanwhile."""

from __future__ import annotations

import threading
from contextlib import contextmanager

import pytest
import torch

from semgrad_guard.flow import Exchange
from semgrad_guard.scoring import SemGradScorer
from semgrad_guard.scoring.model_parts import model_parts_of
from tests.models_for_tests import DEVICE, local_model

IDS = torch.tensor([[5, 9, 13, 7, 60, 61, 62]], device=DEVICE)
PROMPT = tuple(range(20, 60))


class Foreigner:
    """Uses the model in a thread of its own each time that another thread comes by one of its blocks or its head."""

    def __init__(self, model):
        self.model, self.thread = model, threading.get_ident()
        self.logits, self.written = [], []

    def alone(self):
        """Return what it gets when nobody else is there."""
        return self._logits(), self._text()

    @contextmanager
    def about(self):
        """Let it watch for others."""
        decoder = self.model.get_decoder()
        modules = [*decoder.layers, decoder.norm, self.model.get_output_embeddings()]
        hooks = [module.register_forward_pre_hook(self._comes_by) for module in modules]
        yield
        for hook in hooks:
            hook.remove()

    def _comes_by(self, *_):
        if threading.get_ident() == self.thread:
            worker = threading.Thread(target=self._use)
            worker.start()
            worker.join()

    def _use(self):
        self.logits.append(self._logits())
        self.written.append(self._text())

    @torch.no_grad()
    def _logits(self):
        return self.model(IDS).logits

    def _text(self):
        return self.model.generate(IDS, max_new_tokens=2, do_sample=False, pad_token_id=0).tolist()


def scored_cold(local):
    SemGradScorer(local).score(Exchange(prompt_ids=PROMPT, answer_ids=(5, 6, 7), on_policy=True))


def scored_behind_the_writing(local):
    SemGradScorer(local).score_generated(local.generate(prompt_ids=PROMPT, max_new_tokens=3))


def scored_block_by_block(local):
    scorer = SemGradScorer(local)
    written = local.generate(prompt_ids=PROMPT, max_new_tokens=3, states_of=scorer.band_blocks)
    assert written.kept.states.shape[:2] == (2, 18)  # nothing of the foreigner's, only 16 + 2 tokens of our own
    scorer.score_generated(written)


def scored_above_known_states(local):
    scorer = SemGradScorer(local)
    written = local.generate(prompt_ids=PROMPT, max_new_tokens=3, states_of=scorer.band_blocks[:1])
    scorer.score_generated(written)


def looked_at(local):
    model_parts_of(local.model)


@pytest.mark.parametrize(
    "work", [looked_at, scored_cold, scored_behind_the_writing, scored_block_by_block, scored_above_known_states]
)
def test_a_foreign_thread_is_not_disturbed(work):
    """Hooks, passed-over blocks, the mode and `requires_grad` are on the model itself, where all threads meet them."""
    local = local_model()
    foreigner = Foreigner(local.model)
    logits, written = foreigner.alone()
    with foreigner.about():
        work(local)
    assert foreigner.written
    assert all(torch.equal(one, logits) for one in foreigner.logits)
    assert all(one == written for one in foreigner.written)


def test_a_foreign_thread_does_not_disturb_the_score():
    """Its states must not get among those that are differentiated."""
    local = local_model()
    scorer = SemGradScorer(local)
    generated = local.generate(prompt_ids=PROMPT, max_new_tokens=3, states_of=scorer.band_blocks)
    exchange = Exchange(prompt_ids=PROMPT, answer_ids=generated.answer_ids, on_policy=True)
    alone = scorer.score(exchange).signals, scorer.score_generated(generated).signals
    with Foreigner(local.model).about():
        again = local.generate(prompt_ids=PROMPT, max_new_tokens=3, states_of=scorer.band_blocks)
        disturbed = scorer.score(exchange).signals, scorer.score_generated(again).signals
    assert disturbed == alone
