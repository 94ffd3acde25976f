"""Scores a file of prompts and answers line by line, so that an interrupted run can be resumed."""

from __future__ import annotations

import bisect
import json
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from semgrad_guard.errors import ScoringError
from semgrad_guard.evaluation.row_files import ROW_KEY, digest, is_scored
from semgrad_guard.evaluation.rows import scored_part
from semgrad_guard.signals import FREE, PROBES
from semgrad_guard.wire import score_fields, score_from_fields

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from semgrad_guard.evaluation.rows import Row
    from semgrad_guard.flow import Exchange, Fingerprint, Score
    from semgrad_guard.ports import Calibrator, Scorer
    from semgrad_guard.scoring import SemGradScorer

    ScorerAt = Callable[[int | None], Scorer]
    """The scorer for a row's own position; `None` is the usual one."""

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1b1f; --dim: #5d5d66; --paper: #fff; --line: #d9d9e0; --mark: 214 69 40; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e8ee; --dim: #a0a0ab; --paper: #17171b; --line: #34343c; --mark: 255 122 89; }
}
body { margin: 2rem auto; max-width: 46rem; padding: 0 1rem; font: 1rem/1.6 system-ui, sans-serif;
       color: var(--ink); background: var(--paper); }
h1 { font-size: 1.3rem; } h2 { font-size: 1rem; margin: 0 0 .4rem; }
article { border-top: 1px solid var(--line); padding: 1rem 0; }
.numbers, footer { color: var(--dim); font-size: .875rem; }
.answer { white-space: pre-wrap; overflow-wrap: anywhere; margin: 0; }
mark { color: inherit; background: rgb(var(--mark) / calc(var(--doubt) * 0.6)); border-radius: .2rem;
       border-bottom: 2px solid rgb(var(--mark) / var(--doubt)); }
"""


def write_answers(scored: Path, page: Path) -> None:
    """Write an HTML page of the scored answers in a file that `score` wrote.

    The strength of a sentence's mark is one minus its confidence; without a profile, the share of surer sentences.

    Args:
        scored: the JSONL file.
        page: the HTML file to write; it needs no other files.
    """
    rows = [_shown(json.loads(line)) for line in scored.read_text(encoding="utf-8").splitlines()]
    values = sorted(value for row in rows for value in _span_values(row))
    articles = "\n".join(_article(row, values) for row in rows)
    legend = (
        "The stronger the mark, the less sure the model: one minus the sentence's confidence where a profile fits, "
        "else its rank among all sentences of this page."
    )
    page.write_text(
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Scored answers</title><style>{_STYLE}</style></head>\n<body><main><h1>Scored answers</h1>\n"
        f"{articles}\n</main><footer><p>{legend}</p></footer></body></html>\n",
        encoding="utf-8",
    )


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row with the parts of its score as keys of their own, and the score's value as `score`."""
    part = scored_part(row)
    return {**row, **part, "score": part["value"]} if part is not row else row


def _article(row: dict[str, Any], values: Sequence[float]) -> str:
    question = escape(str(row.get("question") or row.get("id") or ""))
    return (
        f"<article><h2>{question}</h2>\n"
        f'<p class="answer">{"".join(_marked(row, values))}</p>\n'
        f'<p class="numbers">{escape(_numbers(row))}</p></article>'
    )


def _marked(row: dict[str, Any], values: Sequence[float]) -> Iterator[str]:
    answer, at = str(row.get("answer") or ""), 0
    for span in row.get("spans", []):
        start, end, doubt = span["start"], span["end"], _doubt(span, row, values)
        title = _title(span, row)
        yield escape(answer[at:start])
        yield f'<mark style="--doubt:{doubt:.2f}" title="{escape(title)}">{escape(answer[start:end])}</mark>'
        at = end
    yield escape(answer[at:])


def _doubt(span: dict[str, Any], row: dict[str, Any], values: Sequence[float]) -> float:
    if span.get("confidence") is not None:
        return 1.0 - float(span["confidence"])
    return bisect.bisect_left(values, span["signals"][row["method"]]) / max(1, len(values) - 1)


def _title(span: dict[str, Any], row: dict[str, Any]) -> str:
    score = f"{row['method']} {span['signals'][row['method']]:.3g}"
    return score if span.get("confidence") is None else f"confidence {span['confidence']:.2f}, {score}"


def _numbers(row: dict[str, Any]) -> str:
    if "error" in row:
        return str(row["error"])
    confidence = f"confidence {row['confidence']:.2f}, " if "confidence" in row else ""
    return f"{confidence}{row['method']} {row['score']:.3g}, model {row['model']}"


def _span_values(row: dict[str, Any]) -> list[float]:
    return [float(span["signals"][row["method"]]) for span in row.get("spans", [])]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoringAsked:
    """How the rows of a file are scored; see the options of `semgrad-guard score`."""

    model: str
    method: str = "hybridgrad"
    position: int | None = None
    granularity: str = "answer"
    profile: str | None = None
    embedding: str | None = None
    dtype: str = "float32"
    device: str | None = None
    own_answers: bool = False
    probes: bool = True
    rescore: bool = False


class RowScoring:
    """Scores rows with a model that is loaded when this is made."""

    def __init__(self, asked: ScoringAsked) -> None:
        """Load the model, and the profile where one is named."""
        from semgrad_guard.models import load_model  # loads torch
        from semgrad_guard.models.embedding import SentenceModel

        self._asked = asked
        self._model = load_model(asked.model, dtype=asked.dtype, device=asked.device)
        self._embedder = SentenceModel(asked.embedding) if asked.embedding else None
        self._calibrator = calibrator_of(asked.profile)
        self._scorers: dict[int | None, SemGradScorer] = {}

    @property
    def name(self) -> str:
        """Readable name of the model."""
        return self._scorer_at(None).name

    @property
    def fingerprint(self) -> Fingerprint:
        """What the scores depend on apart from the rows."""
        return self._scorer_at(None).fingerprint()

    def lines(self, rows: Sequence[Row]) -> list[dict[str, Any]]:
        """Return the output lines of rows; see `score_rows`."""
        asked = self._asked
        found = score_rows(
            rows,
            self._scorer_at,
            self._calibrator,
            chat=self._model.is_chat,
            own_answers=asked.own_answers,
            rescore=asked.rescore,
        )
        return list(found)

    def _scorer_at(self, own: int | None) -> SemGradScorer:
        from semgrad_guard.scoring import SemGradScorer  # loads torch

        if own not in self._scorers:
            asked = self._asked
            self._scorers[own] = SemGradScorer(
                self._model,
                method=asked.method,
                position=asked.position if own is None else own,
                granularity=asked.granularity,  # type: ignore[arg-type] # the scorer checks it
                signals=(*FREE, *PROBES) if asked.probes else None,
                embedder=self._embedder,
            )
        return self._scorers[own]


def calibrator_of(profile: str | None) -> Calibrator | None:
    """Return the calibrator of a profile; `None` where none is named."""
    if profile is None:
        return None
    from semgrad_guard.calibration import ProfileCalibrator, load_profile  # loads numpy

    return ProfileCalibrator(load_profile(profile))


BATCH_ROWS = 16
"""Number of rows scored together; they are written before the next ones start."""


def score_rows(
    rows: Iterable[Row],
    scorer_at: ScorerAt,
    calibrator: Calibrator | None,
    *,
    chat: bool,
    own_answers: bool,
    rescore: bool = False,
) -> Iterator[dict[str, Any]]:
    """Yield one output object per row, in order: the row's fields, its `score`, and `confidence` if there is one.

    A row that has a score keeps it. One that cannot be scored gets `error` in place of a score; the run goes on.

    Args:
        rows: the rows to score.
        scorer_at: returns the scorer for a position.
        calibrator: turns scores into confidences; `None` for none.
        chat: whether the scoring model has a chat template.
        own_answers: whether the scoring model wrote all answers; otherwise each row says so.
        rescore: whether rows that have a score are scored again.
    """
    for position, batch in batches(rows):
        exchanges = [row.exchange_for(chat=chat, on_policy=own_answers or row.is_own) for row in batch]
        kept = [None if rescore or not is_scored(row) else score_from_fields(row.fields["score"]) for row in batch]
        missing = [exchange for exchange, score in zip(exchanges, kept, strict=True) if score is None]
        new = iter(scorer_at(position).score_batch(missing) if missing else ())
        for row, exchange, score in zip(batch, exchanges, kept, strict=True):
            found = _found(exchange, next(new) if score is None else score, calibrator)
            yield {**_kept_fields(row, anew=rescore or calibrator is not None), **found, ROW_KEY: digest(row)}


def _kept_fields(row: Row, *, anew: bool) -> dict[str, Any]:
    """Return the fields of a row without the error of an earlier run, and without its confidence if it gets it anew."""
    dropped = {"error", "confidence"} if anew and is_scored(row) else {"error"}
    return {name: value for name, value in row.fields.items() if name not in dropped}


def _found(exchange: Exchange, score: Score | ScoringError, calibrator: Calibrator | None) -> dict[str, Any]:
    if isinstance(score, ScoringError):
        return {"error": f"{type(score).__name__}: {score}"}
    confidence = calibrator.confidence(exchange, score).value if calibrator else None
    if calibrator and score.spans:
        score = calibrator.with_span_confidences(score)
    found: dict[str, Any] = {"score": score_fields(score)}
    return found if confidence is None else {**found, "confidence": confidence}


def batches(rows: Iterable[Row]) -> Iterator[tuple[int | None, list[Row]]]:
    """Yield the rows that are scored together, with their position, in order."""
    batch: list[Row] = []
    for row in rows:
        if batch and (row.position != batch[0].position or len(batch) == BATCH_ROWS):
            yield batch[0].position, batch
            batch = []
        batch.append(row)
    if batch:
        yield batch[0].position, batch
