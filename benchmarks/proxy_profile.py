"""Fits the profile that ships for answers of other models: `python -m benchmarks.proxy_profile FOLDER`.

FOLDER has one folder for each labelled set, with a `dev.jsonl` of rows with question, passages, answer, `correct`,
`group`, `generator` and `set`. The sets in `FITTED` are those whose licences allow publishing numbers derived from them
and whose label says that the passages support the answer; those in `REPORTED` are judged and not fitted on. Answers
with few words of their own, whatever they copy, have a fit for themselves: the sets' short answers, and the demo's
questions with right answers and with wrong ones.

Only signals of texts are used, so that an answer has one confidence whichever model reads it. `--ablation` shows what
the packaged model adds: how much the passages help it to expect the answer (`context_gain` and its like, two forward
passes an answer). It reads the first answers of each set, an hour on two cores, kept in a file and taken again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from semgrad_guard.calibration import LabelledScore, fit_profile
from semgrad_guard.evaluation.adversarial import KINDS, Honest, adversarial
from semgrad_guard.evaluation.elements import ElementQuestion, passages, questions
from semgrad_guard.flow import Exchange, Fingerprint, Passage
from semgrad_guard.models import load_model
from semgrad_guard.scoring.forward_signals import answer_nll, nll_without_passages, passage_signals
from semgrad_guard.scoring.reading import as_read, read_exchange
from semgrad_guard.scoring.texts.claims import FEW_WORDS
from semgrad_guard.scoring.texts.text_signals import grounding_signals, retrieval_signals
from semgrad_guard.scoring.texts.words import names, numbers, words
from semgrad_guard.signals import PASSAGE_HELP, SIGNALS, TAMPERING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from semgrad_guard.calibration.profile import Profile
    from semgrad_guard.models import LocalModel

    Gains = dict[str, dict[str, float]]

FITTED = ("ragtruth_qa", "ragtruth_summary", "refchecker_dolly", "expertqa_support", "finqa_rag")
REPORTED = ("lfqa_verif",)
BASIS = (
    "fitted on labelled answers of other models: RAGTruth's questions and summaries, RefChecker, ExpertQA, FinQA; and "
    "on questions about chemical elements"
)
TEXTS = (
    "missing_words",
    "written_grounding",
    "question_nearby",
    "claim_support",
    "number_mismatch",
    "unsupported_words",
    "unsupported_pairs",
    "n_unsupported_pairs",
    "unsupported_numbers",
    "unsupported_claims",
)
"""Signals of texts that decide."""
USED = {*TEXTS, *TAMPERING, *PASSAGE_HELP}
DIRECTIONS = {name: 0 for name in SIGNALS if name not in USED}
"""A signal that may count either way is left out where there are several data sets."""
FINGERPRINT = Fingerprint(
    model="ff6c177dde18b7b5f736e0817a3e691a7c6634b0cd23a5c4c2cab4f782e77ace",
    dtype="float32",
    template="872be49dbb638044ad01b60388f48d469ff2980e5f0dccdc22ec907db54d0788",
    settings="position -3, blocks 15 to 29, by answer, texts by claim",
    proxy=True,
)
"""Scores of the packaged model as a proxy; of it, a profile of texts depends on `texts by claim` alone."""
MADE = tuple(kind for kind in KINDS if kind != "other sentence")
"""Adversarial kinds; a true sentence that answers another question is supported, which is what the labels say."""
N_MADE = 60
"""Right answers of each set from which adversarial ones are made."""
N_MADE_BRIEF = 120
"""The same for the fit for short answers."""
N_READ = 150
"""Answers of each set that the packaged model reads."""
MAX_WORDS = FEW_WORDS
"""Answers with at most so many words of their own have a fit for themselves."""
N_BRIEF = 900
"""Answers to the demo's questions for that fit; there are half as many questions."""
N_RIGHT = 10
"""How often an answer to them is right, for once in each way that it is wrong: as many are right as in the sets."""
OF_BRIEF = (
    "missing_words",
    "written_grounding",
    "question_nearby",
    "claim_support",
    "number_mismatch",
    "claim_check",
    "question_overlap",
    "name_mismatch",
    "negation_mismatch",
    "passages_disagree",
)
"""Signals of that fit."""
OUT = Path("semgrad_guard/calibration/profiles/proxy.json")
GAINS = Path("bench/proxy_gains.json")
"""What the passages helped, by exchange: reading goes on where it stopped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    exchange: Exchange
    correct: bool
    group: str
    source: str
    author: str


def rows_of(folder: Path, name: str) -> list[_Row]:
    """Return the rows of one set."""
    lines = (folder / name / "dev.jsonl").read_text(encoding="utf-8").splitlines()
    return [_row(json.loads(line), name) for line in lines]


def _row(fields: dict[str, Any], name: str) -> _Row:
    exchange = Exchange(
        question=fields["question"],
        passages=tuple(Passage(passage["text"]) for passage in fields["passages"]),
        answer=fields["answer"],
    )
    return _Row(
        exchange=exchange,
        correct=fields["correct"],
        group=f"{name} {fields['group']}",
        source=name,
        author=fields["generator"],
    )


def _answerable() -> list[ElementQuestion]:
    return [one for one in questions("train") if one.answers]


def _by_element() -> dict[str, list[Passage]]:
    """Return the demo's passages by the element that they are about."""
    about: dict[str, list[Passage]] = defaultdict(list)
    for passage in passages():
        about[(passage.source or "").split(":")[0]].append(passage)
    return about


def _by_kind(of_demo: list[ElementQuestion]) -> dict[str, list[ElementQuestion]]:
    """Return questions by what they ask, whatever element it is asked of."""
    same: dict[str, list[ElementQuestion]] = defaultdict(list)
    for one in of_demo:
        same[_kind(one)].append(one)
    return same


def _kind(one: ElementQuestion) -> str:
    return one.id.split("-")[1]


def brief_rows(seed: int = 0) -> Iterator[_Row]:
    """Yield short answers to the demo's questions: right ones, and four kinds of wrong ones.

    Those to the same question about another element, with its passage or without; another value of the passages; right
    ones that no passage holds.
    """
    draw = random.Random(seed)  # noqa: S311 - test material, no secret
    answerable, about = _answerable(), _by_element()
    draw.shuffle(answerable)
    same = _by_kind(answerable)
    for one in (answerable * 2)[:N_BRIEF]:
        yield from _brief_rows_of(one, same[_kind(one)], about, draw)


def _brief_rows_of(
    asked: ElementQuestion, same: list[ElementQuestion], about: dict[str, list[Passage]], draw: random.Random
) -> Iterator[_Row]:
    right = {word for answer in asked.answers for word in words(answer)}
    other = draw.choice([one for one in same if not set(one.answers) & set(asked.answers)] or same)
    holding = [p for p in about[asked.element] if any(answer in p.text for answer in asked.answers)]
    silent = [passage for passage in about[asked.element] if passage not in holding]
    read = [*holding[:1], *draw.sample(silent, min(len(silent), draw.randint(0, 2)))]
    far = [draw.choice(about[draw.choice(list(about))]) for _ in range(draw.randint(0, 2))]
    kind = draw.choice((*("right",) * N_RIGHT, "other seen", "other unseen", "value", "gone"))
    text = draw.choice(asked.answers) if kind in {"right", "gone"} else other.answers[0]
    if kind == "other seen":
        read.append(draw.choice(about[other.element]))
    elif kind == "gone":
        read = silent[:2]
    read += far
    draw.shuffle(read)
    if kind == "value":
        known = right | set(words(asked.question))
        values = sorted({value for p in read for value in names(p.text) | numbers(p.text)} - known)
        text = draw.choice(values).capitalize() if values else ""
    if read and text and (kind in {"right", "gone"} or not right & set(words(text))):
        said = draw.choice(("{}", "{}.", "The answer is {}.", "It is {}.")).format(text)
        yield _Row(
            exchange=Exchange(question=asked.question, passages=tuple(read), answer=said),
            correct=kind == "right" and bool(holding),
            group=f"demo {asked.element}",
            source="demo",
            author="given",
        )


def labelled(row: _Row, adversarial_kind: str | None = None) -> LabelledScore:
    """Return a row with the signals of its texts."""
    return LabelledScore(
        signals=grounding_signals(row.exchange) | retrieval_signals(row.exchange.passages),
        correct=row.correct,
        fingerprint=FINGERPRINT,
        group=row.group,
        source=row.source,
        author=row.author or None,
        adversarial=adversarial_kind,
    )


def made_of(rows: list[_Row], n: int = N_MADE) -> Iterator[tuple[_Row, str]]:
    """Yield adversarial answers made from the first right ones of a set, with their kinds."""
    right = [row for row in rows if row.correct][:n]
    honest = [Honest(row.exchange, correct=True) for row in right]
    for made in adversarial(honest, kinds=MADE, per_row=2):
        yield replace(right[made.row], exchange=made.exchange, correct=False, author=""), made.kind


def read_gains(exchanges: list[Exchange], path: Path) -> Gains:
    """Return what the passages do for the packaged model, by exchange; those in the file are not read again."""
    known: Gains = json.loads(path.read_text()) if path.exists() else {}
    unread = {key_of(exchange): exchange for exchange in exchanges if key_of(exchange) not in known}
    model = load_model("smollm2-135m") if unread else None
    path.parent.mkdir(exist_ok=True)
    for n, (key, exchange) in enumerate(track(unread.items(), "reading answers", total=len(unread))):
        if model is not None:
            known[key] = gains_of(model, exchange)
        if n % 50 == 0:
            path.write_text(json.dumps(known))
    path.write_text(json.dumps(known))
    return known


def gains_of(model: LocalModel, exchange: Exchange) -> dict[str, float]:
    """Return an exchange's signals of what the passages do for the answer, as the scorer computes them."""
    read = as_read(exchange)
    tokens = read_exchange(model, read)
    with model.lock:
        nll = answer_nll(model.model, tokens)
    without = nll_without_passages(model, read, tokens)
    return {} if without is None else passage_signals(nll, without)


def key_of(exchange: Exchange) -> str:
    """Return what tells an exchange from others."""
    texts = [exchange.question, exchange.answer, *(passage.text for passage in exchange.passages)]
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()


class _Data:
    """All rows by data set, adversarial ones, and what the passages help."""

    def __init__(self, folder: Path) -> None:
        self.sets = {name: rows_of(folder, name) for name in (*FITTED, *REPORTED)}
        self.made = {name: list(made_of(rows)) for name, rows in self.sets.items()}
        self.gains: Gains = {}

    def read(self) -> None:
        """Have the packaged model read some answers of each set."""
        exchanges = [row.exchange for rows in self.sets.values() for row in rows[:N_READ]]
        exchanges += [row.exchange for name in FITTED for row, _ in self.made[name]]
        self.gains = read_gains(exchanges, GAINS)

    def scores(self, names: Iterable[str], *, only_read: bool, with_gains: bool) -> Iterator[LabelledScore]:
        """Yield the scores of the long answers of some sets; adversarial ones too of those that are fitted on."""
        for name in names:
            rows: list[tuple[_Row, str | None]] = [(row, None) for row in self.sets[name]]
            rows += [] if name in REPORTED else self.made[name]
            for row, kind in rows:
                gain = self.gains.get(key_of(row.exchange))
                score = labelled(row, kind)
                if with_gains and gain:
                    score = replace(score, signals={**score.signals, **gain})
                if (gain or not only_read) and score.signals["n_own_words"] > MAX_WORDS:
                    yield score

    def fit(self, *, only_read: bool, with_gains: bool, with_texts: bool = True) -> Profile:
        """Return a fit on all sets, or on the answers that the packaged model has read."""
        left_out = {} if with_texts else dict.fromkeys(TEXTS, 0)
        profile = fit_profile(
            self.scores(FITTED, only_read=only_read, with_gains=with_gains),
            name="proxy",
            reported=list(self.scores(REPORTED, only_read=only_read, with_gains=with_gains)),
            directions=DIRECTIONS | left_out,
            draws=500,
        )
        return profile.model_copy(update={"basis": BASIS})

    def fit_brief(self) -> Profile:
        """Return the fit for short answers: those of all sets, and more of the demo's."""
        short = [
            row
            for name in FITTED
            for row in self.sets[name]
            if row.exchange.question and labelled(row).signals["n_own_words"] <= MAX_WORDS
        ]
        demo = list(brief_rows())
        pairs: list[tuple[_Row, str | None]] = [(row, None) for row in demo + short]
        pairs += [*made_of(demo, n=N_MADE_BRIEF), *made_of(short, n=N_MADE_BRIEF)]
        used = {*OF_BRIEF, *TAMPERING}
        scores = [labelled(row, kind) for row, kind in pairs]
        kept = [
            replace(score, source=None, signals={k: v for k, v in score.signals.items() if k in used})
            for score in scores
        ]
        profile = fit_profile(kept, name="proxy, short answers", draws=500)
        return profile.model_copy(update={"basis": BASIS, "max_words": MAX_WORDS})


def ablation(data: _Data) -> Table:
    """Return a table of what texts, the packaged model and both are worth on each set left out: AUROC."""
    data.read()
    profiles = {
        "texts": data.fit(only_read=True, with_gains=False),
        "model": data.fit(only_read=True, with_gains=True, with_texts=False),
        "chosen of both": data.fit(only_read=True, with_gains=True),
    }
    evidence = [profile.evidence.left_out for profile in profiles.values() if profile.evidence]
    first = evidence[0]
    baselines = list(next(iter(first.values())).baselines)
    table = Table("set", *profiles, *baselines, title="AUROC, each set left out in turn, on the same answers")
    for name, one in first.items():
        found = [*(fit[name].auroc for fit in evidence), *(one.baselines[baseline] for baseline in baselines)]
        table.add_row(name, *(interval.text() for interval in found))
    return table


def main() -> None:
    """Fit the profile and write it, or show what the packaged model adds to the texts."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("folder", type=Path, help="folder of the labelled sets")
    parser.add_argument("--out", type=Path, default=OUT, help="profile to write")
    parser.add_argument("--ablation", action="store_true", help="show what the packaged model adds, and write nothing")
    given = parser.parse_args()
    data = _Data(given.folder)
    if given.ablation:
        Console().print(ablation(data))
    else:
        profile = data.fit(only_read=False, with_gains=False)
        profile.model_copy(update={"brief": data.fit_brief()}).save(given.out)


if __name__ == "__main__":
    main()
