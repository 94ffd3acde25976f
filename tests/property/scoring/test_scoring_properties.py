"""What holds for scoring whatever the exchanges are."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from semgrad_guard.scoring.layout import Tokens
from semgrad_guard.scoring.measure import GradientSpec, measure
from semgrad_guard.scoring.model_parts import Band
from semgrad_guard.scoring.texts.spans import sentence_spans
from semgrad_guard.scoring.texts.words import content_words, words
from tests.models_for_tests import N_VOCABULARY, tiny_lm

SPEC = GradientSpec(Band(2, 3), 5)
CLOSE = 2e-4

token = st.integers(3, N_VOCABULARY - 1)
exchange = st.builds(
    Tokens, st.lists(token, min_size=1, max_size=25).map(tuple), st.lists(token, min_size=1, max_size=8).map(tuple)
)
some = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)


def _assert_close(one, other) -> None:
    assert one.parts[0].semgrad == pytest.approx(other.parts[0].semgrad, rel=CLOSE, abs=1e-12)
    assert one.parts[0].by_weight.paragrad == pytest.approx(other.parts[0].by_weight.paragrad, rel=CLOSE)
    assert one.nll.tolist() == pytest.approx(other.nll.tolist(), rel=CLOSE)


@some
@given(batch=st.lists(exchange, min_size=2, max_size=5), arch=st.sampled_from(["gpt2", "llama", "qwen2", "bloom"]))
def test_company_changes_no_score(batch, arch):
    """Padding, order and size of a batch are our business, never the answer's."""
    model = tiny_lm(arch)
    together = measure(model, batch, SPEC)
    backwards = measure(model, batch[::-1], SPEC)[::-1]
    for tokens, one, other in zip(batch, together, backwards, strict=True):
        (alone,) = measure(model, [tokens], SPEC)
        _assert_close(one, alone)
        _assert_close(other, alone)


@some
@given(tokens=exchange, arch=st.sampled_from(["gpt2", "llama", "mamba"]))
def test_every_signal_is_finite_and_not_negative(tokens, arch):
    """Scores are compared with thresholds."""
    (found,) = measure(tiny_lm(arch), [tokens], SPEC)
    part = found.parts[0]
    assert None not in part.by_weight
    values = torch.tensor([*part.semgrad, *part.by_weight, *found.nll, *found.entropy, *found.top])
    assert bool(torch.isfinite(values).all())
    assert bool((values >= 0).all())


@some
@given(tokens=exchange)
def test_nothing_flows_from_after_the_last_predicting_position(tokens):
    """The answer's last token predicts nothing: what follows, or replaces it as input, cannot matter."""
    model = tiny_lm("llama")
    ids = torch.tensor([[*tokens.prompt, *tokens.answer, 5, 6]], device=model.device)
    output = model(input_ids=ids, output_hidden_states=True)
    first = len(tokens.prompt) - 1
    log_p = output.logits[0, first : first + len(tokens.answer)].log_softmax(dim=-1)
    loss = -log_p.gather(-1, ids[0, len(tokens.prompt) : len(tokens), None]).mean()
    (gradient,) = torch.autograd.grad(loss, output.hidden_states[2])
    assert bool((gradient[0, len(tokens) :] == 0).all())


@some
@given(text=st.text(max_size=200))
def test_sentences_cover_all_but_white_space(text):
    """No word of an answer may escape its sentence's score."""
    spans = sentence_spans(text)
    covered = "".join(text[start:end] for start, end in spans)
    assert all(start < end for start, end in spans)
    assert all(a[1] <= b[0] for a, b in pairwise(spans))
    assert [c for c in covered if c.isalnum()] == [c for c in text if c.isalnum()]


@some
@given(left=st.text(max_size=60), right=st.text(max_size=60))
def test_words_do_not_depend_on_their_neighbours(left, right):
    """Cut at a space, a text has the words of both sides."""
    assert words(f"{left} {right}") == words(left) + words(right)
    assert content_words(f"{left} {right}") == content_words(left) | content_words(right)
