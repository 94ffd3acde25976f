"""What repeats a withheld answer is found and left out, and what was there before it stays."""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
from pydantic import BaseModel

from semgrad_guard.adapter_kit import LEFT_OUT, Cleaner, Withheld, turn_start, withheld_by
from semgrad_guard.flow import Exchange, Message, Passage
from tests.fakes import guard_of

QUESTION = "Which city lies on the Saône?"
PASSAGE = "Lyon lies where the Rhône meets the Saône. It is a city of France with many bridges."
REFUSAL = "I do not know."
ESSAY = "The city on that river is certainly called Lyon by everyone. People go there by train."


def withheld(*answers: str, **about: Any) -> Withheld:
    """What a caller must not get of these answers."""
    return Withheld(answers or ("Lyon",), question=QUESTION, passages=[PASSAGE], instead=REFUSAL, **about)


# --- texts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "Lyon",
        " lyon.\n",
        "LYON!",
        "It must be Lyon, I think",
        "\uff2c\uff39\uff2f\uff2e",  # full-width letters
        "L\u200byon",  # an invisible sign
        '{"answer": "Ly\\u006fn"}',
        "Thought: Lyon\nAction: stop",
        f"{PASSAGE} So it is Lyon.",
    ],
)
def test_a_text_that_repeats_the_answer_is_found(text: str) -> None:
    """Copies differ in case, spacing, Unicode form and escapes."""
    assert withheld().holds(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "...",
        "Lyonnaise potatoes",
        "Paris",
        QUESTION,
        PASSAGE,
        PASSAGE.upper(),
        f"Passages: {PASSAGE}\n\nQuestion: {QUESTION}",
        "Lyon lies where the Rhône meets the Saône.",  # 8 words of a passage
    ],
)
def test_what_was_there_before_stays(text: str) -> None:
    """An answer that is a word of a passage takes no passage away."""
    assert not withheld().holds(text)


@pytest.mark.parametrize(
    ("text", "held"),
    [
        (ESSAY, True),
        ("People go there by train", True),
        ("He wrote: the city on that river is certainly called Lyon (cut)", True),
        ("The city on that river is cert...", True),
        ("by train", False),
        ("The city is elsewhere.", False),
    ],
)
def test_sentences_and_excerpts_of_a_long_answer_are_found(text: str, held: bool) -> None:
    """Programs log the first sentence or the first characters."""
    assert withheld(ESSAY).holds(text) is held


@pytest.mark.parametrize(
    ("text", "held"),
    [
        ("No", True),
        ("the answer is: no.", True),
        ("After I looked " + "at all of them again " * 5 + "my answer must be: no", True),
        ("A text about a thing that has no answer in it, " + "and it goes on " * 5, False),
        ("Nothing", False),
    ],
)
def test_an_answer_of_small_words_does_not_take_every_text(text: str, held: bool) -> None:
    """`No` is part of half of all texts."""
    assert withheld("No").holds(text) is held


def test_an_answer_in_a_script_without_spaces_is_found() -> None:
    """There a word has no edges."""
    assert withheld("里昂").holds("答案是里昂。")
    assert not withheld("里昂").holds("答案是巴黎。")


def test_an_answer_of_signs_alone_is_found() -> None:
    """Answers may be one sign."""
    assert withheld("∅").holds("∅")
    assert not withheld("∅").holds("Paris")


def test_a_text_from_before_that_is_the_answer_does_not_hide_copies() -> None:
    """A passage may consist of the answer alone: its own place tells it apart."""
    same = Withheld(["Lyon"], passages=["Lyon"])
    assert same.holds("Lyon")
    assert not same.holds("Lyon", passage=True)


def test_in_the_place_of_a_passage_a_word_is_no_copy() -> None:
    """Only the whole answer is, or more than one word of it."""
    assert not withheld().holds("A title about Lyon and its river", passage=True)
    assert withheld().holds("Lyon", passage=True)
    assert withheld("Old Lyon").holds("Draft: old Lyon", passage=True)


# --- values -----------------------------------------------------------------------------------------------------------


class Pair(NamedTuple):
    """A named tuple."""

    first: str
    second: str


class City(BaseModel):
    """An object that was parsed from an answer."""

    name: str


@dataclass(frozen=True)
class Trace:
    """A program's own object."""

    said: str
    n: int = 1


def cleaned(value: Any, *answers: str, **options: Any) -> tuple[Any, list[str]]:
    """Value without copies, and the places left out."""
    cleaner = Cleaner(withheld(*answers), **options)
    return cleaner.clean(value), cleaner.left_out


@pytest.mark.parametrize(
    ("part", "after", "place"),
    [
        ("Lyon", REFUSAL, "x"),
        ("so Lyon", LEFT_OUT, "x"),
        (["a", "so Lyon"], ["a", LEFT_OUT], "x.1"),
        (("a", "lyon"), ("a", REFUSAL), "x.1"),
        (deque(["so Lyon"]), deque([LEFT_OUT]), "x.0"),
        ({"so Lyon"}, {LEFT_OUT}, "x.0"),
        (Pair("a", "lyon"), Pair("a", REFUSAL), "x.1"),
        ({"deep": [{"er": "so Lyon"}]}, {"deep": [{"er": LEFT_OUT}]}, "x.deep.0.er"),
        ({"Lyon": 0.9, "Paris": 0.1}, {LEFT_OUT: 0.9, "Paris": 0.1}, f"x.{LEFT_OUT}"),
        (["Ly", "on"], ["", ""], "x"),
        (City(name="Lyon"), None, "x"),
        (Trace("so Lyon"), None, "x"),
        (SimpleNamespace(inner=SimpleNamespace(said="Lyon")), None, "x"),
        (b"Lyon", None, "x"),
    ],
)
def test_every_kind_of_value_is_walked(part: Any, after: Any, place: str) -> None:
    """Nothing is changed in place, types stay, and the findings can name the places."""
    before = repr(part)
    value, places = cleaned({"x": part, "y": "fine"})
    assert value == {"x": after, "y": "fine"}
    assert type(value["x"]) is type(after)
    assert places == [place]
    assert repr(part) == before


@pytest.mark.parametrize(
    "part", ["fine", ["a"], ("a",), {"a": 1}, Trace("fine"), City(name="Paris"), 7, None, True, frozenset({"a"}), b"a"]
)
def test_a_part_without_a_copy_is_the_same_object(part: Any) -> None:
    """What need not change does not."""
    value = {"x": part}
    assert cleaned(value) == (value, [])
    assert cleaned(value)[0] is value


def test_a_number_that_is_the_answer_is_left_out() -> None:
    """Structured answers repeat it as a number."""
    value = {"year": 1898, "other": 7, "as": 1898.0}
    assert cleaned(value, "1898") == ({"year": None, "other": 7, "as": None}, ["year", "as"])


def test_what_an_answer_in_json_says_is_left_out_beside_it() -> None:
    """A chain parses the text and keeps both."""
    answer = '```json\n{"city": "Lyon", "year": 1898, "by": {"river": "Rhône"}}\n```'
    value = {"obj": {"city": "Lyon", "year": 1898, "by": {"river": "Rhône"}}, "part": {"river": "Rhône"}, "c": "lyon"}
    assert cleaned(value, answer)[0] == {"obj": None, "part": None, "c": LEFT_OUT}


def test_a_mapping_keeps_its_kind() -> None:
    """Chains rely on it."""
    value, _ = cleaned({"x": OrderedDict(a="Lyon", b="fine")})
    assert value["x"] == OrderedDict(a=REFUSAL, b="fine")
    assert isinstance(value["x"], OrderedDict)


def test_the_question_stays_under_its_key_and_passages_under_theirs() -> None:
    """A question may name what the answer names."""
    value = {"question": "Is it Lyon?", "context": ["Lyon lies where"], "x": {"query": "Lyon"}}
    assert cleaned(value)[0] == {**value, "x": {"query": REFUSAL}}


def test_an_object_at_the_top_is_cleaned_by_its_fields() -> None:
    """It is the value itself: its answer is put in by the adapter."""
    assert cleaned(Trace("so Lyon", 3))[0] == Trace(LEFT_OUT, 3)


def test_kept_places_are_left_alone() -> None:
    """Where the judged answers are."""
    assert cleaned({"answer": "Lyon", "x": "Lyon"}, kept=[("answer",)])[0] == {"answer": "Lyon", "x": REFUSAL}


def test_a_value_that_holds_itself_ends() -> None:
    """Graphs of objects have circles."""
    circle: dict[str, Any] = {"said": "Lyon"}
    circle["self"] = SimpleNamespace(circle=circle)
    value, _ = cleaned({"x": circle})
    assert value == {"x": {"said": REFUSAL, "self": None}}


# --- outcomes ---------------------------------------------------------------------------------------------------------


def outcome_of(answer: str, score: float, **about: Any) -> Any:
    """Outcome of one answer."""
    return guard_of(scores={answer: score}).run(Exchange(answer=answer, question=QUESTION, **about))


def test_an_answer_that_was_given_is_not_searched_for() -> None:
    """Its copies are no secret, with or without a warning before it."""
    given = outcome_of("Lyon", 0.1)
    assert withheld_by(given) is None
    assert withheld_by(replace(given, text="Careful.\n\nLyon")) is None


def test_an_edited_answer_takes_the_old_ones_copies_away() -> None:
    """The reviewer had a reason."""
    edited = withheld_by(replace(outcome_of("Lyon", 0.1), text="Paris"))
    assert edited is not None
    assert edited.holds("Lyon")
    assert not edited.holds("Paris")


def test_the_models_own_words_since_the_question_are_no_passage() -> None:
    """An agent's earlier messages are in the prompt of its answer; they may say the same."""
    prompt = (
        Message("user", "An earlier question about old Lyon and its bridges over two rivers"),
        Message("assistant", "An earlier answer about old Lyon and its bridges over two rivers"),
        Message("user", QUESTION),
        Message("assistant", "I am nearly sure that this must be Lyon, so let me look"),
        Message("tool", "A tool found out that Lyon is on both of these rivers"),
    )
    held = withheld_by(outcome_of("Lyon", 0.9, prompt=prompt))
    assert held is not None
    assert [held.holds(message.content) for message in prompt] == [False, False, False, True, False]


def test_a_passage_that_the_model_did_not_read_is_none() -> None:
    """What is said to be a passage may have been changed after the answer."""
    passages = (Passage("Draft beside the passage: the city is Lyon."), Passage(PASSAGE))
    held = withheld_by(outcome_of("Lyon", 0.9, prompt=f"{PASSAGE}\n{QUESTION}", passages=passages))
    assert held is not None
    assert held.holds(passages[0].text)
    assert not held.holds(PASSAGE)


def test_the_turn_begins_with_the_message_that_asks() -> None:
    """In a graph, a later message of the user's may be a program's criticism of a draft."""
    messages = [(True, "Hello"), (False, "Hi"), (True, f"{QUESTION} Be brief."), (False, "Lyon"), (True, "Do better.")]
    assert turn_start(messages, QUESTION) == 2
    assert turn_start(messages, None) == 4
    assert turn_start(messages[1:2], QUESTION) == -1
