"""One model that writes and scores in one pass, for the chat models of all frameworks."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from semgrad_guard.adapter_kit.single_pass import AnswerSettings, ScoredAnswer, SinglePass
from semgrad_guard.errors import ModelSettingError
from semgrad_guard.flow import Exchange, Message, Passage
from semgrad_guard.models import Generated, LocalModel
from semgrad_guard.scoring import SemGradScorer
from tests.models_for_tests import fail_while_scoring, local_model, note_kept_states, refuse_to_score

if TYPE_CHECKING:
    from collections.abc import Sequence

PROMPT = (Message("user", "Capital?"),)
SETTINGS = AnswerSettings(max_tokens=12)


@pytest.fixture(name="local", scope="module")
def _local() -> LocalModel:
    return local_model("llama")


@pytest.fixture(name="single_pass")
def _single_pass(local: LocalModel) -> SinglePass:
    return SinglePass(local)


async def _all_ways(single_pass: SinglePass, settings: AnswerSettings = SETTINGS) -> list[Sequence[str | ScoredAnswer]]:
    """Return what each way of asking gives; the scored answer comes last."""
    return [
        [single_pass.write(PROMPT, settings)],
        [await single_pass.awrite(PROMPT, settings)],
        list(single_pass.stream(PROMPT, settings)),
        [item async for item in single_pass.astream(PROMPT, settings)],
    ]


async def test_every_way_of_asking_gives_the_same_answer_and_score(single_pass: SinglePass, local: LocalModel) -> None:
    """Sync, async and streaming are one model."""
    written = local.generate(PROMPT, max_new_tokens=12)
    score = SemGradScorer(local).score_generated(written)
    for *pieces, answer in await _all_ways(single_pass):
        assert isinstance(answer, ScoredAnswer)
        assert answer.generated.text == written.text
        assert not pieces or "".join(map(str, pieces)) == written.text
        assert answer.score is not None
        assert answer.score.path == "reused"
        assert answer.score.value == pytest.approx(score.value, rel=2e-4)
        assert answer.error is None


def test_passages_that_the_prompt_shows_are_read_while_the_answer_is_written(
    single_pass: SinglePass, local: LocalModel
) -> None:
    """Who judges the answer later finds the same ones, and nothing is read again."""
    text = "The tower was built in 1889 by Eiffel."
    prompt = (Message("user", f"Context: {text}\n\nQuestion: Who built the tower?"),)
    answer = single_pass.write(prompt, SETTINGS)
    exchange = Exchange(
        prompt=prompt,
        prompt_ids=answer.generated.prompt_ids,
        answer_ids=answer.generated.answer_ids,
        answer=answer.generated.text,
        question="Who built the tower?",
        passages=(Passage(text),),
        on_policy=True,
        score=answer.score,
    )
    scorer = SemGradScorer(local)
    completed, cold = scorer.score(exchange), scorer.score(replace(exchange, score=None))
    assert (completed.path, cold.path) == ("reused", "cold")
    assert completed.signals == pytest.approx(cold.signals, rel=2e-4, abs=1e-6)
    assert completed.passage_attention == pytest.approx(cold.passage_attention, rel=2e-4)


async def test_a_stream_comes_in_pieces(single_pass: SinglePass) -> None:
    """What has been written is there before the rest."""
    _, _, streamed, astreamed = await _all_ways(single_pass)
    assert len(streamed) > 3
    assert streamed[:-1] == astreamed[:-1]


async def test_any_error_while_scoring_costs_the_score_only(
    single_pass: SinglePass, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The answer is worth more than its score."""
    text = single_pass.write(PROMPT, SETTINGS).generated.text
    fail_while_scoring(monkeypatch)
    for *_, answer in await _all_ways(single_pass):
        assert isinstance(answer, ScoredAnswer)
        assert (answer.generated.text, answer.score, answer.error) == (text, None, "RuntimeError: out of memory")
    warnings = [record for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 4
    assert all("RuntimeError in " in record.message for record in warnings)  # its words may hold an answer


async def test_a_scorer_that_cannot_be_made_costs_the_score_only(
    single_pass: SinglePass, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scorer is made before the writing."""
    refuse_to_score(monkeypatch)
    for *_, answer in await _all_ways(single_pass):
        assert isinstance(answer, ScoredAnswer)
        assert answer.generated.text
        assert answer.score is None
        assert answer.error is not None
        assert answer.error.startswith("GradientsUnavailableError: ")


def test_an_interruption_while_scoring_is_no_failed_score(
    single_pass: SinglePass, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Someone who presses Ctrl-C wants the program to end."""

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(SemGradScorer, "score_generated", interrupted)
    with pytest.raises(KeyboardInterrupt):
        single_pass.write(PROMPT, SETTINGS)


async def test_an_error_while_writing_reaches_the_caller(single_pass: SinglePass) -> None:
    """A cut-off answer must not look whole."""
    settings = replace(SETTINGS, max_tokens=-1)
    with pytest.raises(ModelSettingError):
        single_pass.write(PROMPT, settings)
    with pytest.raises(ModelSettingError):
        await single_pass.awrite(PROMPT, settings)
    with pytest.raises(ModelSettingError):
        list(single_pass.stream(PROMPT, settings))
    with pytest.raises(ModelSettingError):
        [item async for item in single_pass.astream(PROMPT, settings)]


def test_an_answer_without_tokens_has_no_score(single_pass: SinglePass, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is nothing to score, and that is no error."""
    empty = Generated(prompt_ids=(1,), answer_ids=(), text="", finish_reason="cancelled")
    monkeypatch.setattr(LocalModel, "generate", lambda *_, **__: empty)
    fail_while_scoring(monkeypatch)
    assert single_pass.write(PROMPT, SETTINGS) == ScoredAnswer(generated=empty)


async def test_with_scoring_switched_off_nothing_is_kept_or_scored(
    single_pass: SinglePass, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rewriter must not pay for scores that it does not read."""
    refuse_to_score(monkeypatch)
    for *_, answer in await _all_ways(single_pass, replace(SETTINGS, scoring=False)):
        assert isinstance(answer, ScoredAnswer)
        assert (answer.score, answer.error, answer.generated.kept) == (None, None, None)


async def test_the_states_that_scoring_needs_are_kept_while_writing(
    single_pass: SinglePass, local: LocalModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scoring then begins at the band instead of walking to it."""
    kept = note_kept_states(monkeypatch)
    await _all_ways(single_pass)
    assert kept == [SemGradScorer(local).band_blocks] * 4


def test_the_tokens_are_counted(single_pass: SinglePass) -> None:
    """Frameworks report them to their users."""
    answer = single_pass.write(PROMPT, SETTINGS)
    assert answer.n_prompt_tokens == len(answer.generated.prompt_ids) > 0
    assert answer.n_answer_tokens == len(answer.generated.answer_ids) > 0


def test_the_position_reaches_the_scorer(local: LocalModel) -> None:
    """Scores of different positions are not compared."""
    score = SinglePass(local, position=-2).write(PROMPT, SETTINGS).score
    assert score is not None
    assert score.fingerprint == SemGradScorer(local, position=-2).fingerprint()
    assert score.fingerprint != SemGradScorer(local).fingerprint()


def test_the_model_is_loaded_at_the_first_use_only(local: LocalModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that sets up a chat model does not wait for it."""
    loaded: list[tuple[object, dict[str, object]]] = []

    def load(source: object, **how: object) -> LocalModel:
        loaded.append((source, how))
        return local

    monkeypatch.setattr("semgrad_guard.models.load_model", load)
    single_pass = SinglePass("a-name", dtype="float32", device="cpu")
    assert loaded == []
    single_pass.write(PROMPT, SETTINGS)
    assert single_pass.local_model is local
    assert loaded == [("a-name", {"dtype": "float32", "device": "cpu"})]


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_closing_a_stream_ends_the_writing(
    single_pass: SinglePass, monkeypatch: pytest.MonkeyPatch, asynchronous: bool
) -> None:
    """A user who left must not keep the model busy."""
    reasons: list[str] = []
    generate = LocalModel.generate

    def watched(*args: object, **kwargs: object) -> Generated:
        written = generate(*args, **kwargs)
        reasons.append(written.finish_reason)
        return written

    monkeypatch.setattr(LocalModel, "generate", watched)
    settings = AnswerSettings(max_tokens=480)
    if asynchronous:
        items = single_pass.astream(PROMPT, settings)
        await anext(items)
        await items.aclose()
    else:
        pieces = single_pass.stream(PROMPT, settings)
        next(pieces)
        pieces.close()
    for thread in threading.enumerate():
        if thread.name == "semgrad-guard stream":
            await asyncio.to_thread(thread.join, 20)
    assert reasons == ["cancelled"]


class TestAnswerSettings:
    """The settings of a chat model with those of a call."""

    USUAL = AnswerSettings(max_tokens=9, temperature=0.5, top_p=0.9, stop=("usual",), seed=1, scoring=False)

    def test_a_call_that_changes_nothing_takes_the_usual_ones(self) -> None:
        """Keys that mean nothing to a local model are ignored."""
        assert AnswerSettings.for_call(self.USUAL, {"user": "ann", "stop": None}) == self.USUAL

    def test_those_of_the_call_come_first(self) -> None:
        """Also a value that reads as false."""
        changes = {"max_tokens": 2, "temperature": 0.0, "top_p": 1.0, "stop": ["now"], "seed": 0}
        want = AnswerSettings(max_tokens=2, temperature=0.0, top_p=1.0, stop=["now"], seed=0, scoring=False)
        assert AnswerSettings.for_call(self.USUAL, changes) == want
