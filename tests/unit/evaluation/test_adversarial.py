"""Answers that must lose are made from labelled rows, each wrong in the way that its kind says."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from semgrad_guard.evaluation.adversarial import KINDS, Honest, adversarial, write_adversarial
from semgrad_guard.evaluation.rows import read_rows
from semgrad_guard.flow import Exchange, Passage
from semgrad_guard.scoring.texts.text_signals import grounding_signals

if TYPE_CHECKING:
    from pathlib import Path

TOWNS = {"Tarn": ("1846", "Anna Berg"), "Sund": ("1901", "Olaf Lund"), "Vik": ("1777", "Mia Holm")}


def rows(*, in_sentences: bool = False) -> list[Honest]:
    """Return right answers, in one word or in a sentence of their own."""
    found = []
    for town, (year, builder) in TOWNS.items():
        text = (
            f"The lighthouse of {town} was built in {year} by {builder}. It is painted red and white. "
            f"The harbour of {town} is deep."
        )
        question = f"In which year was the lighthouse of {town} built?"
        other = Passage("Many ships passed the coast with Peter Falk aboard. Storms were frequent in those winters.")
        said = f"According to what I read, the lighthouse of {town} was put there in {year} by {builder}, a local."
        exchange = Exchange(
            question=question,
            passages=(Passage(text), other),
            answer=said if in_sentences else year,
            prompt=f"{text}\n{question}",
        )
        found.append(Honest(exchange, correct=True, answers=(year,), fields={"group": town, "set": "towns"}))
    return found


OF_SENTENCES = ("denied answer", "changed answer")
"""Kinds that are made from right answers of a sentence or more."""


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_made_and_is_wrong(kind: str) -> None:
    """What is made never is an accepted answer, and says something else than the row's own."""
    from_rows = rows(in_sentences=kind in OF_SENTENCES)
    made = list(adversarial(from_rows, kinds=[kind]))
    assert [one.row for one in made] == [0, 1, 2]
    for one in made:
        source = from_rows[one.row]
        assert one.kind == kind
        assert one.exchange.answer not in source.right
        assert one.exchange.question == source.exchange.question


def test_a_right_answer_in_its_own_words_is_changed_in_one_place() -> None:
    """A verb denied, or a number or name changed; the rest stays."""
    first = rows(in_sentences=True)[0].exchange.answer
    made = adversarial(rows(in_sentences=True), kinds=OF_SENTENCES, per_row=2)
    by_kind = {one.kind: one.exchange.answer for one in made if one.row == 0}
    assert by_kind["denied answer"].replace(" not", "").split()[:5] == first.split()[:5]
    assert len(set(by_kind["changed answer"].split()) - set(first.split())) <= 2


@pytest.mark.parametrize("kind", KINDS)
def test_a_wrong_answer_without_accepted_ones_gives_what_it_can(kind: str) -> None:
    """Rows of logs have one answer and a label; of a wrong one nothing right is known."""
    first, second, _ = rows()
    made = list(adversarial([Honest(first.exchange, correct=False), second], kinds=[kind]))
    assert all(one.exchange.answer.strip() for one in made)


def test_the_parts_are_where_the_kind_says() -> None:
    """A copied passage before or behind another row's year; a denied verb; an order among the passages."""
    by_kind = {one.kind: one.exchange for one in adversarial(rows()[:2], per_row=len(KINDS)) if one.row == 0}
    passage, wrong = rows()[0].exchange.passages[0].text, "1901"
    assert by_kind["copied then wrong"].answer.startswith(passage)
    assert by_kind["copied then wrong"].answer.endswith(f"{wrong}.")
    assert by_kind["wrong then padding"].answer.startswith(f"{wrong}. {passage}")
    assert by_kind["wrong then sentence"].answer.startswith(f"{wrong}. The lighthouse")
    assert "not" in by_kind["negated copy"].answer
    assert "1846" not in by_kind["swapped"].answer
    assert by_kind["other sentence"].answer in f"{passage} {rows()[0].exchange.passages[1].text}"
    assert "1846" not in by_kind["other sentence"].answer
    assert by_kind["orders"].answer == wrong
    assert grounding_signals(by_kind["orders"])["suspicious_passages"] == 1.0
    assert len(by_kind["orders"].prompt) > len(rows()[0].exchange.prompt)


def test_the_kinds_take_turns() -> None:
    """So that one answer a row gives some of every kind."""
    assert [one.kind for one in adversarial(rows())] == list(KINDS)[:3]


def test_equal_seeds_make_equal_answers() -> None:
    """A run that is cut off continues with the same."""
    first, again = ([one.exchange.answer for one in adversarial(rows(), per_row=3, seed=5)] for _ in range(2))
    assert first == again


def test_without_passages_nothing_can_be_copied() -> None:
    """Such rows are passed over."""
    bare = [
        Honest(Exchange(question="Who?", answer="Anna", passages=passages), correct=True)
        for passages in ((), (Passage(" "),))
    ]
    assert list(adversarial([*bare, *bare])) == []


def test_written_rows_are_rows(tmp_path: Path) -> None:
    """`calibrate` reads them as any others, and keeps them with the question that they came from."""
    path = tmp_path / "made.jsonl"
    assert write_adversarial(rows(), path) == 3
    read = list(read_rows(path))
    assert [row.correct for row in read] == [False] * 3
    assert [row.group for row in read] == list(TOWNS)
    assert [row.fields["adversarial"] for row in read] == list(KINDS)[:3]
    assert {row.fields["set"] for row in read} == {"towns"}
    assert all(json.dumps(row.fields) for row in read)
