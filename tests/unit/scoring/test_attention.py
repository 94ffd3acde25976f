"""Attention signals by hand, and the watch as a guest in transformers' attention interface."""

from __future__ import annotations

import math
import sys
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, flash_attention_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from semgrad_guard.flow import Passage
from semgrad_guard.models import LocalModel
from semgrad_guard.scoring import SemGradScorer
from semgrad_guard.scoring import attention as attention_module
from semgrad_guard.scoring.attention import watched_blocks
from semgrad_guard.scoring.attention_signals import (
    OF_PASSAGES,
    OF_QUESTION,
    AttentionUse,
    attention_signals,
    passage_shares,
    rauq,
)
from semgrad_guard.scoring.layout import Tokens
from semgrad_guard.scoring.measure import GradientSpec, measure
from semgrad_guard.scoring.model_parts import Band
from semgrad_guard.scoring.prompt_parts import PromptParts
from semgrad_guard.signals import ATTENTION
from tests.models_for_tests import build, tiny_lm

TOKENS = Tokens((5, 9, 13, 40, 7, 8, 61), (20, 33, 2), PromptParts((0, 2, 2, 3, 0, 1, 0), 2))
SPEC = GradientSpec(Band(2, 3), 5, attention=True)


def test_doubt_is_passed_on_by_the_attention_on_the_token_before():
    """Probabilities 1/2 and 1/4, attention 1/2 in one block and 0 in the other; alpha is 0.2.

    First block: c = 0.5, then 0.2 x 0.25 + 0.8 x 0.5 x 0.5 = 0.25; mean -log c = (ln 2 + ln 4) / 2.
    Second: c = 0.5, then 0.05: (ln 2 + ln 20) / 2, which is larger and so the answer's.
    """
    nll = np.log([2.0, 4.0])
    assert rauq(nll, np.array([[0.0, 0.5]])) == pytest.approx((math.log(2) + math.log(4)) / 2)
    assert rauq(nll, np.array([[0.0, 0.5], [0.0, 0.0]])) == pytest.approx((math.log(2) + math.log(20)) / 2)


def test_of_a_single_token_only_its_likelihood_counts():
    """There is no token before it."""
    assert rauq(np.array([0.7]), np.array([[0.3], [0.9]])) == pytest.approx(0.7)


# first token, own, rest, question, two passages; two blocks and heads together, so each row adds up to 4
USE = AttentionUse(
    sums=np.array([[2.0, 0.0, 0.5, 0.5, 0.75, 0.25], [3.0, 0.2, 0.1, 0.1, 0.5, 0.1], [0.0, 2.0, 0.0, 1.0, 0.8, 0.2]]),
    to_previous=np.zeros((1, 3)),
    strongest=0.9,
    by_head=np.zeros(4),
    has_question=True,
    shown=(True, True),
)


def test_shares_are_of_what_does_not_rest_on_the_first_token():
    """By row: on passages 1/2, 0.6/1 and 1/4; on the question 1/4, 0.1 and 1/4; on itself 0, 0.2 and 1/2."""
    found = attention_signals(USE, np.zeros(3), slice(0, 3), [0, 2])
    assert found["context_attention"] == pytest.approx((0.5 + 0.6 + 0.25) / 3)
    assert found["context_attention_min"] == pytest.approx(0.25)
    assert found["context_attention_first"] == pytest.approx(0.25)
    assert found["question_attention"] == pytest.approx((0.25 + 0.1 + 0.25) / 3)
    assert found["own_attention"] == pytest.approx((0 + 0.2 + 0.5) / 3)
    assert found["context_attention_heads"] == 0.9
    # first passage: 0.375 + 0.5 + 0.2 of 1.35 in all
    assert found["passage_focus"] == pytest.approx(1.075 / 1.35)


def test_a_part_of_an_answer_is_told_by_its_own_tokens():
    """Claims that begin elsewhere do not count, and the heads were chosen for the whole."""
    found = attention_signals(USE, np.zeros(3), slice(0, 2), [0, 2])
    assert found["context_attention_first"] == pytest.approx(0.5)
    assert found["context_attention_min"] == pytest.approx(0.5)
    assert "context_attention_heads" not in found


def test_what_the_prompt_does_not_show_has_no_signal():
    """A share of something that is not there would be a made-up number."""
    use = AttentionUse(USE.sums, USE.to_previous, 0.9, USE.by_head, has_question=False, shown=(False, False))
    assert attention_signals(use, np.zeros(3), slice(0, 3), []).keys() == {"rauq", "own_attention"}
    assert attention_signals(None, np.zeros(3), slice(0, 3), []) == {}


def test_each_passage_has_its_share():
    """By hand: (0.375 + 0.5 + 0.2) / 3; one that the prompt does not show has none."""
    assert passage_shares(USE) == (pytest.approx(1.075 / 3), pytest.approx(0.275 / 3))
    partly = AttentionUse(USE.sums, USE.to_previous, 0.9, USE.by_head, has_question=True, shown=(True, False))
    assert passage_shares(partly)[1] is None
    assert passage_shares(None) == ()


@pytest.mark.parametrize(
    ("n_blocks", "band", "watched"),
    [
        (30, Band(15, 29), range(15, 21)),
        (32, Band(16, 31), range(16, 23)),
        (4, Band(2, 3), range(2, 4)),
        (1, Band(0, 0), range(1)),
        (30, Band(25, 29), range(25, 30)),
        (30, Band(0, 29), range(10, 21)),
    ],
)
def test_the_middle_third_is_watched_as_far_as_it_is_in_the_band(n_blocks, band, watched):
    """Only the band is run on every path; a band above the middle third is watched as a whole."""
    assert watched_blocks(n_blocks, band) == watched


@pytest.mark.parametrize("fails", [False, True])
def test_the_interface_is_left_as_it_was(monkeypatch, fails):
    """It belongs to all models of the process; also after an error."""
    model, before = tiny_lm("llama"), dict(vars(ALL_ATTENTION_FUNCTIONS))
    if fails:
        monkeypatch.setattr(attention_module, "_weights", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            measure(model, [TOKENS], SPEC)
    else:
        assert measure(model, [TOKENS], SPEC)[0].attention is not None
    assert vars(ALL_ATTENTION_FUNCTIONS) == before
    assert ALL_ATTENTION_FUNCTIONS.get_interface.__func__ is AttentionInterface.get_interface


def test_nothing_is_read_unless_it_is_asked_for():
    """It has a price."""
    assert measure(tiny_lm("llama"), [TOKENS], GradientSpec(Band(2, 3), 5))[0].attention is None


def test_the_gradients_do_not_depend_on_it():
    """Reading changes nothing of what is read."""
    plain = measure(tiny_lm("gemma3_text"), [TOKENS], GradientSpec(Band(2, 3), 5))[0].parts
    assert measure(tiny_lm("gemma3_text"), [TOKENS], SPEC)[0].parts == plain


@pytest.mark.parametrize("arch", ["llama", "gpt2"])
def test_an_attention_function_that_does_something_unknown_gives_no_signal(arch, monkeypatch):
    """Here it looks closer than its scaling says: sums of the usual weights would be wrong numbers."""
    model = build(arch)

    def sharper(module, query, key, value, mask, **kwargs):
        return AttentionInterface._global_mapping["sdpa"](module, 3 * query, key, value, mask, **kwargs)

    monkeypatch.setitem(AttentionInterface._global_mapping, "sharper", sharper)
    model.config._attn_implementation_internal = "sharper"
    (found,) = measure(model, [TOKENS], SPEC)
    assert found.attention is None


def _like_flash(module, query, key, value, mask, *, sliding_window=None, **kwargs):
    """Attend as the flash kernels are asked to: no matrix as a mask, but what is no padding, and the window."""
    n_new, n_all = query.shape[2], key.shape[2]
    keys = torch.arange(n_all, device=query.device)
    own = keys[n_all - n_new :, None]
    allowed = (keys <= own) & (keys > own - (sliding_window or n_all))
    whole = allowed[None, None] if mask is None else allowed[None, None] & mask.bool()[:, None, None, :]
    return AttentionInterface._global_mapping["sdpa"](module, query, key, value, whole, **kwargs)


@pytest.mark.parametrize("arch", ["llama", "mistral", "qwen2"])
def test_masks_without_a_matrix_are_understood(arch, monkeypatch):
    """Flash kernels get the padding and the window instead; here windows of 7 tokens, and a padded batch."""
    batch = [TOKENS, Tokens(tuple(range(5, 30)), (20, 33, 2, 9, 8))]
    expected = [one.attention.sums for one in measure(build(arch), batch, SPEC)]
    model = build(arch)
    monkeypatch.setitem(AttentionInterface._global_mapping, "like_flash", _like_flash)
    monkeypatch.setitem(AttentionMaskInterface._global_mapping, "like_flash", flash_attention_mask)
    model.config._attn_implementation_internal = "like_flash"
    found = [one.attention for one in measure(model, batch, SPEC)]
    for one, sums in zip(found, expected, strict=True):
        assert one.sums == pytest.approx(sums, abs=5e-5)


def test_threads_with_models_of_their_own_do_not_disturb_each_other():
    """They share the interface, and one of them leaves it first."""
    models = [build(arch) for arch in ("llama", "qwen2", "gpt2")]
    expected = [measure(model, [TOKENS], SPEC)[0].attention.sums for model in models]
    found = [[] for _ in models]

    def work(number):
        for _ in range(8):
            found[number].append(measure(models[number], [TOKENS], SPEC)[0].attention.sums)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, sums in enumerate(expected):
        assert len(found[number]) == 8
        assert all(np.array_equal(one, sums) for one in found[number])
    assert "get_interface" not in vars(ALL_ATTENTION_FUNCTIONS)


def test_long_answers_go_by_pieces(monkeypatch):
    """The weights of a few tokens at a time give the same sums."""
    whole = measure(tiny_lm("llama"), [TOKENS], SPEC)[0].attention
    monkeypatch.setattr(attention_module, "_ROOM", 1)
    pieces = measure(tiny_lm("llama"), [TOKENS], SPEC)[0].attention
    assert pieces.sums == pytest.approx(whole.sums, abs=1e-6)
    assert pieces.to_previous == pytest.approx(whole.to_previous, abs=1e-6)


def test_a_model_in_double_precision_is_read_in_double_precision():
    """Rows of weights add up to the number of blocks and heads, to the last digits."""
    (found,) = measure(build("gpt2", dtype=torch.float64), [TOKENS], SPEC)
    assert found.attention.sums.sum(axis=1) == pytest.approx([8.0] * 3, rel=1e-12)


def test_a_score_tells_how_much_each_passage_was_read(scorer, exchange):
    """With one passage its share is that of all, and the attention on it has no choice."""
    score = scorer.score(exchange)
    assert score.passage_attention == (pytest.approx(score.signals["context_attention"]),)
    assert score.signals["passage_focus"] == pytest.approx(1.0)
    assert 0 < score.signals["context_attention_min"] <= score.signals["context_attention"] < 1


def test_passages_that_the_prompt_does_not_show_have_no_share(scorer, exchange):
    """The signals of the rest are there."""
    score = scorer.score(replace(exchange, passages=(Passage("Something else."),)))
    assert score.passage_attention == ()
    assert set(ATTENTION) & score.signals.keys() == {"rauq", "own_attention", "question_attention"}


def test_gradients_by_passage_are_reported_where_they_are_asked_for(local, scorer, exchange):
    """Of one passage a share between none and all; the rest is the template's and the question's."""
    with_them, without = SemGradScorer(local, passage_gradients=True).score(exchange), scorer.score(exchange)
    (share,) = with_them.passage_gradients
    assert 0 < share < 1
    assert without.passage_gradients == ()
    assert with_them.signals == without.signals


def test_an_earlier_score_keeps_what_was_read_for_the_same_passages(local, exchange):
    """As one that was taken while the answer was written, where the prompt shows them."""
    scorer = SemGradScorer(local, passage_gradients=True)
    first = scorer.score(exchange)
    again = scorer.score(replace(exchange, score=first))
    assert again.signals == first.signals
    assert again.passage_attention == first.passage_attention
    assert again.passage_gradients == first.passage_gradients


def test_an_earlier_score_loses_what_was_read_for_other_passages(local, exchange):
    """A number about other texts would be a wrong number; that of the question stays."""
    scorer = SemGradScorer(local, granularity="sentence", passage_gradients=True)
    first = scorer.score(exchange)
    again = scorer.score(replace(exchange, passages=(Passage("Something else."),), score=first))
    assert first.signals.keys() & OF_PASSAGES
    for signals in (again.signals, *(span.signals for span in again.spans)):
        assert not signals.keys() & OF_PASSAGES
        assert signals.keys() >= {"rauq", *OF_QUESTION}
    assert (again.passage_attention, again.passage_gradients) == ((), ())


def test_an_earlier_score_loses_what_was_read_for_another_question(scorer, exchange):
    """Passages are still those that were read."""
    first = scorer.score(exchange)
    again = scorer.score(replace(exchange, question="Where is it?", score=first))
    assert not again.signals.keys() & OF_QUESTION
    assert again.signals.keys() >= OF_PASSAGES
    assert again.passage_attention == first.passage_attention


def test_a_vector_of_attention_to_other_passages_is_read_again(local, exchange):
    """A profile's probe would take it for one about these."""
    scorer = SemGradScorer(local, signals=("attention_probe", "state_probe"))
    first, other = scorer.score(exchange), replace(exchange, question="Where is it?")
    vectors = scorer.score(replace(other, score=first)).vectors
    assert vectors == scorer.score(other).vectors
    assert vectors["attention_probe"] != first.vectors["attention_probe"]


def test_each_sentence_has_attention_signals(local, exchange):
    """A claim that reads nothing stands out among others that do."""
    score = SemGradScorer(local, granularity="sentence").score(exchange)
    lowest = [span.signals["context_attention_min"] for span in score.spans]
    assert len(lowest) == 2
    assert min(lowest) == pytest.approx(score.signals["context_attention_min"])


def test_attention_is_not_read_for_a_scorer_that_reports_none_of_it(local, exchange, monkeypatch):
    """It has a price, and so has finding the passages."""
    monkeypatch.setattr(LocalModel, "prompt_offsets", lambda *_: 1 / 0)
    scorer = SemGradScorer(local, signals=["mean_nll"])
    assert scorer.score(exchange).passage_attention == ()


def test_an_interface_of_another_kind_is_left_alone(monkeypatch: pytest.MonkeyPatch):
    """Transformers 5.0 fetches attention functions by subscript: no attention is read, and nothing fails."""
    model = tiny_lm("llama")
    (module,) = {type(one).__module__ for one in model.modules() if type(one).__name__ == "LlamaAttention"}

    class Subscripted(AttentionInterface):
        @property
        def get_interface(self):
            raise AttributeError

    monkeypatch.setattr(sys.modules[module], "ALL_ATTENTION_FUNCTIONS", Subscripted())
    opened = [one for one in attention_module._interfaces(model.modules()) if isinstance(one, Subscripted)]
    assert opened == []
