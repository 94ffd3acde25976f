"""The scan on hand-made hidden states, where the position that carries the meaning is known."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from semgrad_guard.evaluation.position.choice import choose
from semgrad_guard.evaluation.position.find import Paraphrased, find_position, last_word, read_states
from semgrad_guard.evaluation.position.preservation import States, scan
from tests.models_for_tests import local_model
from tests.pages import too_wide

N_QUESTIONS, N_WORDINGS, N_LAYERS, WIDTH = 12, 4, 4, 24
BAND = (2, 3)


def made(meaning: dict[int, float], *, shared_words: tuple[int, ...] = (), constant: tuple[int, ...] = ()) -> States:
    """Return states of four positions: -1 and -2 are the template's, -3 and -4 the question's.

    Args:
        meaning: how much of each position's state follows the question; the rest is noise of size 1.
        shared_words: question positions whose token, and so state, paraphrases share.
        constant: positions whose state never changes.
    """
    rng = np.random.default_rng(0)
    n = N_QUESTIONS * N_WORDINGS
    questions = np.repeat(np.arange(N_QUESTIONS), N_WORDINGS)
    of_question = rng.normal(size=(N_QUESTIONS, WIDTH))[questions]
    hidden = rng.normal(size=(N_LAYERS, n, 4, WIDTH))
    tokens = np.tile(np.array([0, 0, 7, 8]), (n, 1))
    tokens[:, :2] = 100 + rng.permutation(2 * n).reshape(n, 2)
    for position, size in meaning.items():
        hidden[:, :, position] += size * of_question
    for position in shared_words:
        hidden[:, :, position] = of_question + 0.01 * hidden[:, :, position]
        tokens[:, position] = questions
    for position in constant:
        hidden[:, :, position] = 1.0
    words = [f"word{i}" for i in range(n)]
    return States(hidden=hidden.astype(np.float32), tokens=tokens, questions=questions, last_words=words)


def chosen(states: States, *, default: int = -1, is_published: bool = False):
    return choose(scan(states), band=BAND, default=default, is_published=is_published, draws=200)


def test_the_position_that_follows_the_question_is_found():
    """The plain case: one template token carries the meaning, and the scan is sure."""
    choice = chosen(made({-2: 2.0}))
    assert (choice.found, choice.recommended, choice.is_sure) == (-2, -2, True)
    assert choice.shares[-2] == 1.0
    assert choice.held_out_auc.value > 0.9


def test_a_tiny_change_that_is_all_meaning_counts():
    """Template tokens barely change with the question: the published difference is all but 0 there."""
    states = made({-2: 2.0})
    hidden = states.hidden.copy()
    hidden[:, :, -2] = 1.0 + 0.01 * hidden[:, :, -2]
    sps = scan(replace(states, hidden=hidden))
    assert abs(sps.raw[:, -2]).max() < 1e-3
    assert sps.auc[:, -2].min() > 0.9
    assert choose(sps, band=BAND, default=-1, is_published=False, draws=200).recommended == -2


def test_a_word_that_paraphrases_share_does_not_win():
    """The trap of the raw scan: equal words make equal states, whatever they mean."""
    states = made({-2: 0.5}, shared_words=(-3,))
    sps = scan(states)
    assert sps.raw.mean(0).argmax() == 1  # -3
    assert np.isnan(sps.auc[:, -3]).all()  # no other question has the same word: nothing to compare with
    assert chosen(states).found == -2


def test_pairs_that_end_in_the_same_word_are_left_out():
    """A shared ending colours every later state, so such pairs teach nothing."""
    states = made({-2: 2.0})
    words = [f"word{q}" if i % N_WORDINGS < 2 else f"other{i}" for i, q in enumerate(states.questions)]
    assert scan(replace(states, last_words=words)).n_same_ending == N_QUESTIONS
    every = [f"word{q}" for q in states.questions]
    nothing = scan(replace(states, last_words=every))
    assert nothing.comparisons.sum() == 0
    choice = choose(nothing, band=BAND, default=-3, is_published=True, draws=50)
    assert (choice.found, choice.recommended, choice.is_sure) == (None, -3, False)


def test_a_state_that_never_changes_is_no_candidate():
    """All its similarities tie, which is chance and no evidence."""
    states = made({-1: 2.0}, constant=(-2,))
    sps = scan(states)
    assert sps.auc[:, -2] == pytest.approx(0.5)
    choice = chosen(states)
    assert (choice.found, choice.runner_up, choice.shares[-2]) == (-1, None, 0.0)


def test_question_tokens_are_told_apart_and_never_recommended():
    """Another question has another word there."""
    states = made({-4: 3.0, -1: 1.0})
    choice = chosen(states)
    assert scan(states).is_template.tolist() == [False, False, True, True]
    assert (choice.best_question_position, choice.found) == (-4, -1)


@pytest.mark.parametrize(("is_published", "recommended"), [(True, -1), (False, -1)])
def test_without_certainty_the_default_is_kept(is_published, recommended):
    """Two positions that are equally good decide nothing."""
    choice = chosen(made({-1: 0.8, -2: 0.8}), is_published=is_published)
    assert not choice.is_sure
    assert choice.recommended == recommended


def test_a_better_band_is_reported_but_the_upper_half_is_kept():
    """The method was tried with the upper half; a map of meaning says nothing of gradients."""
    states = made({-2: 0.4})
    hidden = states.hidden.copy()
    hidden[0, :, -2] += 3 * hidden[0].mean() + 3 * made({-2: 50.0}).hidden[0, :, -2] / 50
    choice = chosen(replace(states, hidden=hidden))
    assert choice.better_band is not None
    assert (choice.better_band.band, choice.better_band.is_better) == ((0, 0), True)
    assert choice.band == BAND


def groups(n: int = 8) -> list[Paraphrased]:
    return [Paraphrased((f"What is item {i}?", f"Explain number {i} to me", f"{i}: define")) for i in range(n)]


def test_states_are_those_that_enter_the_blocks_whatever_the_padding():
    """Batches mix lengths; a state that depended on its neighbours would be noise."""
    local = local_model()
    together, alone = (read_states(local, groups(2), n_positions=5, batch_size=size) for size in (6, 1))
    np.testing.assert_allclose(together.hidden, alone.hidden, atol=1e-4)
    assert together.hidden.shape == (4, 6, 5, 32)
    embedded = local.model.get_input_embeddings().weight.detach().numpy()[together.tokens]
    np.testing.assert_allclose(together.hidden[0], embedded, atol=1e-5)
    assert together.last_words[1] == last_word("Explain number 0 to me")


@pytest.mark.parametrize("template", ["chatml", None])
def test_a_scan_from_model_to_report_and_policy(tmp_path, template):
    """What the command prints and writes, without the program around it."""
    from semgrad_guard.evaluation.position.report import save_sps_plot
    from semgrad_guard.policy import load_policy

    local = local_model() if template else local_model(template=None)
    seen: list[int] = []
    report = find_position(local, groups(), n_positions=26, advance=seen.append)
    assert sum(seen) == 24
    assert (report.published is not None) == bool(template)
    assert report.tokens[-1] == ("\\n" if template else ":")
    assert "(question)" in report.tokens
    assert len(json.loads(json.dumps(report.to_json(), allow_nan=False))["map"]["auc"]) == 4
    assert report.table().row_count == 26
    assert report.map_table().row_count == 4
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(report.table())
    assert too_wide(console.export_text()) == []
    (tmp_path / "policy.yaml").write_text(report.policy_text("some/model", "float32"))
    scorer = load_policy(tmp_path / "policy.yaml").scorer
    assert (scorer.position, scorer.band) == (report.choice.recommended, (2, 3))
    save_sps_plot(tmp_path / "sps.svg", report.sps, report.choice, report.tokens, title="tiny")
    assert (tmp_path / "sps.svg").stat().st_size > 1000
