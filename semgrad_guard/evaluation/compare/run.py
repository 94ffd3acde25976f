"""One evaluation: answers file -> grades -> comparison -> result and plots, written to a folder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from semgrad_guard.calibration.evidence import adversarial_evidence
from semgrad_guard.calibration.fit import Plan, out_of_fold, usable_signals
from semgrad_guard.calibration.labels import collect
from semgrad_guard.evaluation.adversarial import Honest
from semgrad_guard.evaluation.compare.comparing import compare, rank
from semgrad_guard.evaluation.compare.labelled import Grading
from semgrad_guard.evaluation.compare.promise import check_promise
from semgrad_guard.evaluation.compare.report import Result, plots, write_report
from semgrad_guard.evaluation.labelling import Labeller, contradictions
from semgrad_guard.evaluation.rows import row_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from semgrad_guard.calibration.labels import LabelledScore, Labels
    from semgrad_guard.calibration.profile import AdversarialEvidence
    from semgrad_guard.evaluation.compare.comparing import Ranked
    from semgrad_guard.evaluation.compare.promise import PromiseCheck
    from semgrad_guard.evaluation.grading import Grader, Similarity
    from semgrad_guard.evaluation.row_files import ResumableFile
    from semgrad_guard.evaluation.rows import Row

RATES = (0.1, 0.2, 0.3)
"""Error rates whose promise is checked when none is named."""
RESULT, REPORT = "result.json", "report.html"


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """How answered questions are graded and compared."""

    data: str
    """What to call the questions."""
    model: str
    grader_name: str
    grader: Grader
    alike: Similarity
    same: float
    settings: dict[str, str | int | float | None]
    error_rates: Sequence[float] = RATES
    seed: int = 0

    def honest(self, file: ResumableFile) -> list[Honest]:
        """Return the answered questions with their grades, to make answers that must lose from them."""
        rows = [row_of(line, file.path, number) for number, line in file.lines()]
        return [
            Honest(row.exchange, self._is_right(row), row.answers or (), {**row.fields, "on_policy": row.is_own})
            for row in rows
            if row.exchange.answer and (row.correct is not None or row.answers is not None)
        ]

    def _is_right(self, row: Row) -> bool:
        exchange = row.exchange
        if row.correct is not None:
            return row.correct
        return self.grader(exchange.question or "", exchange.answer, row.answers or ())

    def carry_out(
        self,
        file: ResumableFile,
        folder: Path,
        tick: Callable[[], None] = lambda: None,
        *,
        made: ResumableFile | None = None,
    ) -> Result:
        """Grade and compare the answers of a file; write `result.json` and `report.html`.

        Args:
            file: answered questions.
            folder: where to write.
            tick: called after each graded answer and each compared method.
            made: scored answers that must lose, made from these.

        Raises:
            ContradictoryLabelsError: more than a fifth of the answers are labelled both right and wrong.
            GradedAlikeError: all answers are right, or all wrong.
            TooFewLabelsError: too few answers to compare anything.
            MissingExtraError: a library for fitting or plotting is not installed.
        """
        answered = (row_of(line, file.path, number) for number, line in file.lines())
        clashes = contradictions(answered, file.path)
        grading = Grading(
            grader=self.grader, alike=self.alike, same=self.same, tick=tick, contradicting=clashes.all_lines()
        )
        graded = list(grading.labels(file))
        labels = collect(graded, seed=self.seed)
        grading.check_both_kinds(self.grader_name)
        ranked = rank(labels, seed=self.seed, tick=tick)
        fused = next((one for one in ranked if one.method.name == "fused"), None)
        seconds = grading.mean_seconds()
        adversarial, right_mean, threshold = self._attempts(graded, made) if made and fused else ({}, None, None)
        result = Result(
            data=self.data,
            model=self.model,
            grader=self.grader_name,
            settings=self.settings,
            left_out=dict(grading.left_out),
            seconds=seconds,
            comparison=compare(labels, ranked, seconds, seed=self.seed, tick=tick),
            promises=self._promises(labels, fused) if fused else (),
            adversarial=adversarial,
            adversarial_threshold=threshold,
            right_mean=right_mean,
        )
        by_name = {one.method.name: one for one in ranked}
        drawn = plots(labels, [by_name[name] for name in result.shown()], fused)
        (folder / RESULT).write_text(result.model_dump_json(indent=1) + "\n", encoding="utf-8")
        write_report(folder / REPORT, result, drawn)
        return result

    def _attempts(
        self, graded: Sequence[LabelledScore], made: ResumableFile
    ) -> tuple[dict[str, AdversarialEvidence], float | None, float | None]:
        """Return what answers that must lose get, by kind; the mean confidence of right ones; and the threshold."""
        taught = Labeller(path=made.path).label(row_of(line, made.path, number) for number, line in made.lines())
        labels = collect([*graded, *taught], seed=self.seed)
        plan = Plan(method="fused", calibrator="auto", required=usable_signals(labels), seed=self.seed)
        confidence = out_of_fold(labels, plan)
        found, threshold = adversarial_evidence(confidence, labels)
        return found, float(confidence[labels.honest & (labels.correct > 0)].mean()), threshold

    def _promises(self, labels: Labels, fused: Ranked) -> tuple[PromiseCheck, ...]:
        return tuple(
            check_promise(fused.confidence, labels.correct, labels.groups, rate, seed=self.seed)
            for rate in self.error_rates
        )
