"""Where tokens lie in padded batches, and which exchanges come together."""

from __future__ import annotations

import pytest
import torch

from semgrad_guard.errors import EmptyAnswerError, EmptyPromptError
from semgrad_guard.scoring import measure as measure_module
from semgrad_guard.scoring.layout import Tokens, lay_out
from semgrad_guard.scoring.measure import GradientSpec, batches, measure
from semgrad_guard.scoring.model_parts import Band
from tests.models_for_tests import tiny_lm

CPU = torch.device("cpu")


def _tokens(prompt, answer=(90,)) -> Tokens:
    return Tokens(tuple(prompt), tuple(answer))


def test_rests_begin_together_between_two_paddings():
    """Prefixes are filled up on the left and rests on the right, so one cut serves all."""
    layout = lay_out([_tokens((1, 2, 3, 4, 5), (9, 8)), _tokens((6, 7, 8), (9, 8, 7))], 2, CPU)
    assert layout.starts == (3, 1)
    assert layout.prefix.ids.tolist() == [[1, 2, 3], [0, 0, 6]]
    assert layout.prefix.mask.tolist() == [[1, 1, 1], [0, 0, 1]]
    assert layout.prefix.positions.tolist() == [[0, 1, 2], [0, 0, 0]]
    assert layout.rest.ids.tolist() == [[4, 5, 9, 0], [7, 8, 9, 8]]
    assert layout.rest.mask.tolist() == [[1, 1, 1, 1, 1, 1, 0], [0, 0, 1, 1, 1, 1, 1]]
    assert layout.rest.positions.tolist() == [[3, 4, 5, 5], [1, 2, 3, 4]]
    assert layout.recorded.tolist() == [[0, 1], [0, 1]]


def test_a_common_beginning_is_one_row():
    """Several answers to one prompt need one prefill."""
    prompt = tuple(range(1, 31))
    layout = lay_out([_tokens(prompt, (9,)), _tokens(prompt, (8, 7))], 5, CPU)
    assert layout.prefix.ids.tolist() == [list(range(1, 26))]
    assert layout.starts == (25, 25)


def test_a_few_differing_tokens_join_the_rest():
    """The same passages with another question: only the question is run for each."""
    passages = tuple(range(1, 41))
    layout = lay_out([_tokens((*passages, 50, 51, 52, 53)), _tokens((*passages, 60, 61))], 2, CPU)
    assert layout.prefix.ids.shape == (1, 40)
    assert layout.rest.ids.tolist() == [[50, 51, 52, 53], [60, 61, 0, 0]]
    assert layout.recorded.tolist() == [[2, 3], [0, 1]]


@pytest.mark.parametrize("arch", ["llama", "gpt2", "gemma2", "mpt"])
def test_shared_beginnings_change_no_number(arch, monkeypatch):
    """Run once, and still every exchange's own."""
    model, spec = tiny_lm(arch), GradientSpec(Band(2, 3), 5)
    beginning = tuple(torch.randint(3, 80, (40,), generator=torch.Generator().manual_seed(2)).tolist())
    family = [_tokens((*beginning, *range(10, 10 + n)), range(20, 20 + n)) for n in (2, 5, 2)]
    rows = []
    real = measure_module.forward_no_grad
    monkeypatch.setattr(
        measure_module,
        "forward_no_grad",
        lambda m, a, segment, cache: rows.append(len(segment.ids)) or real(m, a, segment, cache),
    )
    together = measure(model, family, spec)
    assert rows == [1]
    for tokens, one in zip(family, together, strict=True):
        (alone,) = measure(model, [tokens], spec)
        assert one.parts[0].semgrad == pytest.approx(alone.parts[0].semgrad, rel=2e-4)
        assert one.parts[0].by_weight.paragrad == pytest.approx(alone.parts[0].by_weight.paragrad, rel=2e-4)


def test_batches_keep_to_the_budget_and_lose_nobody():
    """Padded tokens are what fills memory."""
    exchanges = [_tokens(range(1, 1 + n)) for n in (3, 50, 4, 2, 100, 60)]
    found = list(batches(exchanges, 5, 120))
    assert sorted(i for group in found for i in group) == list(range(6))
    for group in found:
        padded = len(group) * max(len(exchanges[i]) for i in group)
        assert padded <= 120 or len(group) == 1


def test_families_come_into_one_batch():
    """Answers to one prompt are spread over the input; together they need one prefill."""
    long = tuple(range(1, 60))
    exchanges = [_tokens(long, (1,)), _tokens((7, 8, 9)), _tokens(long, (2, 3)), _tokens((4, 5))]
    assert list(batches(exchanges, 5, 1000)) == [[0, 2], [3, 1]]


def test_nothing_to_predict_or_to_predict_from_is_refused():
    """There would be no gradient, only zeros that look like certainty."""
    with pytest.raises(EmptyAnswerError):
        _tokens((1, 2), ())
    with pytest.raises(EmptyPromptError):
        _tokens((), (1,))
