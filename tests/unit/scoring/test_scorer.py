"""The scorer's promises, on a tiny random chat model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from semgrad_guard.errors import (
    ContextTooLongError,
    EmptyAnswerError,
    EmptyPromptError,
    ForeignTokensError,
    ModelFailedError,
    NonFiniteScoreError,
    OutOfMemoryError,
    PositionOutsidePromptError,
    ScoringSettingError,
)
from semgrad_guard.flow import Exchange, Message, Passage
from semgrad_guard.ports import Scorer
from semgrad_guard.scoring import SIGNALS, SemGradScorer
from semgrad_guard.scoring import measure as measure_module
from semgrad_guard.scoring.forward_signals import passage_signals
from semgrad_guard.signals import FREE, METHODS, PASSAGE_HELP
from tests.models_for_tests import local_model

CLOSE = 2e-4


def _assert_same(one, other):
    assert one.signals.keys() == other.signals.keys()
    for name, value in one.signals.items():
        assert value == pytest.approx(other.signals[name], rel=CLOSE, abs=1e-9), name


def test_it_is_a_scorer(scorer):
    """The guard knows scorers only by the protocol."""
    assert isinstance(scorer, Scorer)


def test_a_score_holds_every_free_signal_and_nothing_unlisted(scorer, exchange):
    """The table of signals is the only list; what a score holds must be explained there."""
    signals = scorer.score(exchange).signals
    unknown_scores = {"retrieval_gap", "retrieval_spread", "retrieval_agreement"}  # one passage
    assert set(signals) == set(FREE) - unknown_scores


@pytest.mark.parametrize("method", METHODS)
def test_any_method_can_be_the_value_and_is_not_negative(local, exchange, method):
    """A policy may name any of them; a score is >= 0 by definition."""
    score = SemGradScorer(local, method=method).score(exchange)
    assert score.method == method
    assert score.value == score.signals[method] >= 0
    assert SIGNALS[method].higher == "less sure"


@pytest.mark.parametrize("method", METHODS)
def test_a_method_asked_for_alone_is_the_same_number(local, scorer, exchange, method):
    """What is left out to save time is never part of what was asked for."""
    alone = SemGradScorer(local, method=method, signals=()).score(exchange)
    assert alone.signals == {method: pytest.approx(scorer.score(exchange).signals[method], rel=1e-9)}


def test_an_answer_that_was_just_written_scores_the_same_from_its_cache(local, scorer):
    """The single pass saves work, not accuracy."""
    written = local.generate("Say something.", max_new_tokens=20)
    reused = scorer.score_generated(written)
    cold = scorer.score(
        Exchange(prompt_ids=written.prompt_ids, answer_ids=written.answer_ids, answer=written.text, on_policy=True)
    )
    assert (reused.path, cold.path) == ("reused", "cold")
    _assert_same(reused, cold)


def test_a_cache_of_another_prompt_is_not_used(local, scorer):
    """A wrong cache would give a wrong number without any sign of it."""
    written = local.generate("Say something.", max_new_tokens=5)
    other = local.generate("Say nothing at all!", max_new_tokens=5)
    score = scorer.score_generated(replace(written, kept=other.kept))
    assert score.path == "cold"
    _assert_same(score, scorer.score_generated(written))


def test_the_score_taken_while_writing_is_completed_and_not_taken_again(scorer, exchange, monkeypatch):
    """A second scoring of the same answer would cost as much as the first."""
    first = scorer.score(replace(exchange, passages=(), question=None))
    monkeypatch.setattr(SemGradScorer, "_score", None)
    again = scorer.score(replace(exchange, score=first))
    assert again.value == first.value
    # of `Eiffel`, `done` and `1889`, the passage lacks `done`
    assert again.signals["grounding"] == pytest.approx(2 / 3)


def test_a_score_of_other_settings_is_not_taken_over(local, scorer, exchange):
    """Scores of different positions are not comparable."""
    other = SemGradScorer(local, position=-1).score(exchange)
    assert scorer.score(replace(exchange, score=other)).fingerprint == scorer.fingerprint()


def test_an_answer_by_another_model_is_flagged_as_proxy(scorer, exchange):
    """Proxy scores must never meet a calibration on the model's own answers."""
    assert scorer.score(replace(exchange, on_policy=False)).proxy
    assert not scorer.score(exchange).proxy
    assert scorer.fingerprint(proxy=True) != scorer.fingerprint()


def test_retokenised_answers_end_their_turn_unless_they_were_cut_off(scorer, exchange):
    """The end-of-turn token is part of what a model says; a cut-off answer did not say it."""
    whole = scorer.score(exchange)
    cut = scorer.score(replace(exchange, metadata={"finish_reason": "length"}))
    assert whole.n_answer_tokens == cut.n_answer_tokens + 1 == len(exchange.answer) + 1


def test_a_base_model_reads_plain_text_and_uses_the_last_token(exchange):
    """Without a template there is no known position, and no turn to end."""
    scorer = SemGradScorer(local_model(template=None))
    score = scorer.score(exchange)
    assert scorer.position == -1
    assert score.n_answer_tokens == len(exchange.answer)
    assert score.signals["semgrad"] == score.signals["semgrad@-1"]


def test_a_batch_gives_each_exchange_its_own_score_or_error(scorer, exchange):
    """One bad exchange must not spoil the others, nor change their order."""
    bad = replace(exchange, answer="", id="other")
    short = replace(exchange, prompt=(Message("user", "Hi"),), answer="Yes", passages=())
    scores = scorer.score_batch([exchange, bad, short, replace(exchange, answer="No")])
    assert isinstance(scores[1], EmptyAnswerError)
    for score, alone in zip([scores[0], *scores[2:]], [exchange, short, replace(exchange, answer="No")], strict=True):
        _assert_same(score, scorer.score(alone))


def test_sentences_get_their_own_scores_at_their_place(local, exchange):
    """A long answer may be right in one sentence and wrong in the next."""
    score = SemGradScorer(local, granularity="sentence").score(exchange)
    assert [exchange.answer[s.start : s.end] for s in score.spans] == ["Eiffel built it.", "It was done in 1889."]
    first, second = score.spans
    # 16 bytes; then a space, 20 bytes and the end of the turn
    assert (first.signals["n_answer_tokens"], second.signals["n_answer_tokens"]) == (16, 21)
    whole = (first.signals["sum_nll"] + second.signals["sum_nll"], score.signals["sum_nll"])
    assert whole[0] < whole[1] or whole[0] == pytest.approx(whole[1], rel=CLOSE)
    assert 0 < first.signals["semgrad"] != second.signals["semgrad"]


def test_a_span_of_the_whole_answer_scores_like_the_answer(local, exchange):
    """Spans use the same objective as the answer, over their own tokens."""
    cut = replace(exchange, metadata={"finish_reason": "length"})
    score = SemGradScorer(local).score_spans(cut, [(0, len(cut.answer))])
    for name, value in score.spans[0].signals.items():
        assert value == pytest.approx(score.signals[name], rel=1e-6), name


@pytest.mark.parametrize("span", [(3, 3), (-1, 2), (0, 999)])
def test_a_span_outside_the_answer_is_refused(scorer, exchange, span):
    """Offsets that mean nothing are the caller's mistake, not ours to guess at."""
    with pytest.raises(ScoringSettingError) as caught:
        scorer.score_spans(exchange, [span])
    assert caught.value.value == span


def test_costly_signals_come_when_they_are_named(local, exchange):
    """Another forward pass is paid for only on request."""
    scorer = SemGradScorer(local, signals=["context_gain", "p_true", "grounding"])
    signals = scorer.score(exchange).signals
    assert set(signals) == {"hybridgrad", "context_gain", "p_true", "grounding"}
    assert 0 <= signals["p_true"] <= 1


def test_context_gain_is_the_difference_of_two_likelihoods(local, scorer, exchange):
    """Leaving the passages out of the prompt by hand must give the same number."""
    gain = SemGradScorer(local, signals=["context_gain"]).score(exchange).signals["context_gain"]
    bare = replace(exchange, prompt=(Message("user", "Context: \nWho built the tower?"),))
    difference = scorer.score(bare).signals["mean_nll"] - scorer.score(exchange).signals["mean_nll"]
    assert gain == pytest.approx(difference, rel=1e-4)


def test_what_the_passages_do_is_read_token_by_token():
    """Gains of 4, 1, -1 and -3 nats; the last two tokens are unlikely all the same, and one was before."""
    nll, without = np.array([0.5, 1.0, 2.5, 5.0]), np.array([4.5, 2.0, 1.5, 2.0])
    found = passage_signals(nll, without)
    assert found == pytest.approx(
        {
            "context_gain": 0.25,
            "context_gain_min": 0.25,  # fewer tokens than a stretch
            "context_gain_share": 0.1,
            "context_loss": 4.0,
            "hurt_tokens": 2.0,
            "unhelped_tokens": 0.5,
        }
    )
    assert found.keys() == PASSAGE_HELP
    late = passage_signals(np.append(np.zeros(24), np.full(12, 3.0)), np.append(np.full(24, 2.0), np.full(12, 2.0)))
    assert late["context_gain_min"] == pytest.approx(-1.0)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"answer": ""}, EmptyAnswerError),
        ({"answer_ids": ()}, EmptyAnswerError),
        ({"answer_ids": (2,)}, EmptyAnswerError),
        ({"prompt_ids": ()}, EmptyPromptError),
        ({"prompt_ids": (5, 6)}, PositionOutsidePromptError),
        ({"prompt_ids": (5, 6, 7, 5000)}, ForeignTokensError),
        ({"prompt_ids": (5, 6, 7, -1)}, ForeignTokensError),
        ({"prompt_ids": (5,) * 600}, ContextTooLongError),
    ],
)
def test_what_cannot_be_scored_is_refused_by_name(scorer, exchange, change, error):
    """The policy's `on_error` acts on these; a made-up score would let the answer through."""
    with pytest.raises(error):
        scorer.score(replace(exchange, **change))


def test_passages_too_long_for_a_proxy_are_cut_and_counted_whole(local):
    """The model reads what fits its 512 tokens; the texts are compared as they are."""
    long = Passage("The tower is high. " * 1_000 + "Gustave Eiffel built it.")
    another = Exchange(answer="Gustave Eiffel", question="Who built the tower?", passages=(long,))
    score = SemGradScorer(local).score(another)
    assert 300 < score.n_prompt_tokens < 512
    assert score.signals["grounding"] == 1.0
    with pytest.raises(ContextTooLongError):
        SemGradScorer(local).score(replace(another, answer="long " * 600))


def test_passages_alone_are_read_where_nothing_was_asked(local):
    """A summary has neither question nor prompt."""
    summary = Exchange(answer="Eiffel built it.", passages=(Passage("Gustave Eiffel built the tower."),))
    signals = SemGradScorer(local, signals=["context_gain", "grounding"]).score(summary).signals
    assert signals.keys() >= {"context_gain", "grounding"}


def test_emoji_and_lone_surrogates_are_scored(local, exchange):
    """Answers are whatever a model writes."""
    odd = replace(exchange, answer="Eiffel 🗼 built \ud83d it. Ja! これは文です。")
    score = SemGradScorer(local, granularity="sentence").score(odd)
    assert "".join(odd.answer[s.start : s.end] for s in score.spans).replace(" ", "") == odd.answer.replace(" ", "")


@pytest.mark.parametrize("where", ["weights", "logits"])
def test_numbers_that_overflowed_are_named(exchange, where):
    """NaN compares false with every threshold, so it must never become a score."""
    local = local_model()
    scorer = SemGradScorer(local)
    with torch.no_grad():
        if where == "weights":
            local.model.model.layers[1].mlp.up_proj.weight[0, 0] = float("nan")
        else:
            local.model.lm_head.weight[7, 7] = float("inf")
    with pytest.raises(NonFiniteScoreError):
        scorer.score(exchange)


@pytest.mark.parametrize(
    "setting",
    [
        {"method": "hybrid"},
        {"granularity": "word"},
        {"position": 0},
        {"band": (3, 3)},
        {"band": (0, 9)},
        {"signals": ["semgard"]},
        {"max_batch_tokens": 0},
    ],
)
def test_settings_out_of_range_are_refused(local, setting):
    """A scorer that silently took another setting would not fit its profile."""
    with pytest.raises(ScoringSettingError) as caught:
        SemGradScorer(local, **setting)
    assert caught.value.setting == next(iter(setting))


def test_running_out_of_memory_halves_the_batch(scorer, exchange, monkeypatch):
    """A batch that does not fit may fit in halves."""
    sizes = []
    real = measure_module.measure

    def small_machine(model, batch, *args, **kwargs):
        sizes.append(len(batch))
        if len(batch) > 1:
            message = "[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"
            raise RuntimeError(message)
        return real(model, batch, *args, **kwargs)

    monkeypatch.setattr(measure_module, "measure", small_machine)
    scores = scorer.score_batch([exchange] * 3)
    assert sizes == [3, 1, 2, 1, 1]
    _assert_same(scores[2], scores[0])


def test_an_exchange_that_alone_does_not_fit_is_an_error_of_its_own(scorer, exchange, monkeypatch):
    """There is nothing left to halve; the caller hears how long it was."""

    def full(*_, **__):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(measure_module, "measure", full)
    with pytest.raises(OutOfMemoryError) as caught:
        scorer.score(exchange)
    assert caught.value.n_tokens > len(exchange.answer)


def test_other_runtime_errors_are_not_taken_for_memory(scorer, exchange, monkeypatch, caplog):
    """A programming mistake must show: in the error, and where it was raised in the program's log."""

    def broken(*_, **__):
        message = "shape mismatch"
        raise RuntimeError(message)

    monkeypatch.setattr(measure_module, "measure", broken)
    with pytest.raises(ModelFailedError, match="RuntimeError: shape mismatch"):
        scorer.score(exchange)
    assert "RuntimeError in test_scorer.py" in caplog.text
