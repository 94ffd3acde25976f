"""`semgrad-guard evaluate`: compare uncertainty methods on your own questions."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console

from semgrad_guard.cli.score import score_pending
from semgrad_guard.cli.terminal import bar, examples, plain_table
from semgrad_guard.cli.workers import GpusOption, RayOption, WorkersOption, Working, workers_of, working

if TYPE_CHECKING:
    from rich.table import Table

    from semgrad_guard.calibration import Interval
    from semgrad_guard.evaluation.compare.answering import AnsweringModel, Asked
    from semgrad_guard.evaluation.compare.comparing import MethodResult
    from semgrad_guard.evaluation.compare.report import Result
    from semgrad_guard.evaluation.compare.run import Evaluation
    from semgrad_guard.evaluation.grading import Grader, Similarity
    from semgrad_guard.evaluation.on_ray import Workers
    from semgrad_guard.evaluation.row_files import ScoredFile
    from semgrad_guard.models.embedding import SentenceModel

N_METHODS = 40
"""Rough number of methods that are compared, for the progress bar."""
ANSWERS = "answers.jsonl"
QUESTIONS = "questions.jsonl"
EXAMPLES = examples(
    "semgrad-guard evaluate questions.jsonl",
    "semgrad-guard evaluate questions.jsonl --limit 500 --baselines 200",
    "semgrad-guard evaluate questions.jsonl --model Qwen/Qwen3-0.6B --out qwen",
    "semgrad-guard evaluate questions.jsonl --grader embedding",
    "semgrad-guard evaluate questions.jsonl --ray --workers 4",
    "semgrad-guard evaluate hf:squad_v2 --limit 300 --grader f1",
    more="""
A line of the input: {"question": "...", "passages": ["..."], "answers": ["accepted", "also accepted"]}; an empty list
of answers means that the question has none. Lines with the same `group` are never split between fitting and testing. A
line with an `answer` is not answered again, and a line that `score`, `calibrate --rows` or `evaluate` scored keeps its
score. An interrupted run continues where it stopped; a finished one is only graded and compared again, so another
grader costs nothing. `semgrad-guard calibrate OUT/answers.jsonl` fits a profile.
    """,
)


def evaluate(
    data: Annotated[str, typer.Argument(help="JSONL file, hf:NAME, hf:NAME:SPLIT or hf:NAME:CONFIG:SPLIT.")],
    model: Annotated[
        str, typer.Option(help="Model that answers and scores: name, Hugging Face id, folder, .gguf.")
    ] = "smollm2-135m",
    out: Annotated[Path | None, typer.Option(help="Folder to write to; by default DATA-MODEL.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Use only the first LIMIT questions.")] = None,
    samples: Annotated[int, typer.Option(min=0, help="Answers drawn per question, for sampling methods.")] = 5,
    baselines: Annotated[
        int | None, typer.Option(min=0, help="Number of questions for sampling methods and P(True); by default all.")
    ] = None,
    grader: Annotated[
        Literal["contains", "exact", "f1", "embedding", "judge"], typer.Option(help="How answers are graded.")
    ] = "contains",
    embedding: Annotated[
        str, typer.Option(help="Sentence-transformers model; `none`, or `auto`: minilm-l6-v2 if installed.")
    ] = "auto",
    same: Annotated[float, typer.Option(min=0, max=1, help="Smallest cosine of two texts with one meaning.")] = 0.8,
    judge: Annotated[
        str | None, typer.Option(help="For --grader judge: a local model, or PROVIDER:MODEL through LangChain.")
    ] = None,
    error_rate: Annotated[list[float] | None, typer.Option(help="Target error rate; may be repeated.")] = None,
    field: Annotated[list[str] | None, typer.Option(help="For hf: question=, answers= or passages=COLUMN.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Maximum number of tokens of an answer.")] = 32,
    position: Annotated[int | None, typer.Option(max=-1, help="t*, from the prompt's end.")] = None,
    dtype: Annotated[str, typer.Option(help="Number type of the weights.")] = "float32",
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...")] = None,
    seed: Annotated[int, typer.Option(help="Seed of samples, folds and intervals.")] = 0,
    adversarial: Annotated[
        bool, typer.Option(help="Also score answers that are made to look right, and show what they get.")
    ] = True,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Start again instead of continuing.")] = False,
    ray: RayOption = False,
    workers: WorkersOption = 1,
    gpus: GpusOption = 0.0,
) -> None:
    """Answer, grade and score questions, then compare all methods: tables with intervals, JSON and an HTML page."""
    from semgrad_guard.evaluation.compare.answering import AnsweringModel, Asked  # loads torch
    from semgrad_guard.evaluation.compare.run import RATES, Evaluation  # loads numpy
    from semgrad_guard.evaluation.grading import (  # loads numpy
        SAME_WORDS,
        by_embedding,
        once,
        shared_words,
    )

    console = Console(stderr=True)
    pool = workers_of(ray=ray, workers=workers, gpus=gpus)
    folder = out or Path(f"{_stem(data)}-{_stem(model)}")
    folder.mkdir(parents=True, exist_ok=True)
    questions = _questions(data, folder, field or [], limit)
    embedder = _embedder(embedding)
    meaning = by_embedding(embedder) if embedder else None
    evaluation = Evaluation(
        data=_stem(data),
        model=_stem(model),
        grader_name=grader,
        grader=once(_grader(grader, meaning, same, judge)),
        alike=meaning or shared_words,
        same=same if meaning else SAME_WORDS,
        settings={
            "model": model,
            "dtype": dtype,
            "tokens of an answer": max_new_tokens,
            "samples": samples,
            "likeness by": embedder.name if embedder else "words",
            "seed": seed,
        },
        error_rates=error_rate or RATES,
        seed=seed,
    )
    requested = Asked(n_baseline_rows=baselines, n_samples=samples, max_new_tokens=max_new_tokens, seed=seed)
    if overwrite:
        (folder / ANSWERS).unlink(missing_ok=True)
    answering = AnsweringModel(model=model, dtype=dtype, device=device, position=position, embedding=embedder)
    with console.status(f"Loading {model}"):
        answer, score = _workings(answering, requested, pool, questions)
    answers = _answered(console, folder / ANSWERS, questions, limit, answer)
    made = _adversarial(console, folder, evaluation, answers, score, seed) if adversarial else None
    _report(_compared(console, evaluation, answers, folder, made), folder)


def _stem(name: str) -> str:
    """Return a short name of a file, data set or model that can be part of a folder's name."""
    return Path(name.removeprefix("hf:").rstrip("/").replace(":", "-")).name.removesuffix(".jsonl")


def _questions(data: str, folder: Path, fields: list[str], limit: int | None) -> Path:
    """Return the file of questions, after checking every line of it."""
    from semgrad_guard.evaluation.compare.labelled import HF, check_rows, fetch  # loads numpy
    from semgrad_guard.evaluation.labelling import contradictions
    from semgrad_guard.evaluation.rows import read_rows

    path = Path(data)
    if data.startswith(HF):
        columns = dict(_pair(field) for field in fields)
        path = fetch(data, folder / QUESTIONS, columns, limit)
    check_rows(islice(read_rows(path), limit), path)
    contradictions(islice(read_rows(path), limit), path)
    return path


def _pair(field: str) -> tuple[str, str]:
    meaning, separator, column = field.partition("=")
    if not separator or meaning not in {"question", "answers", "passages"}:
        msg = f"{field!r}: write question=COLUMN, answers=COLUMN or passages=COLUMN"
        raise typer.BadParameter(msg)
    return meaning, column


def _embedder(name: str) -> SentenceModel | None:
    """Return the embedder; `auto` is the packaged one if it is installed."""
    if name == "none":
        return None
    from semgrad_guard.models.embedding import SentenceModel, has_packaged  # loads numpy

    if name == "auto":
        return SentenceModel() if has_packaged() else None
    return SentenceModel(name)


def _grader(name: str, meaning: Similarity | None, same: float, judge: str | None) -> Grader:
    from semgrad_guard.evaluation import grading  # loads numpy

    if name == "embedding":
        if meaning is None:
            raise typer.BadParameter("--grader embedding needs --embedding MODEL")
        return grading.by_meaning(meaning, same)
    if name != "judge":
        return grading.by_words(name)
    if judge is None:
        raise typer.BadParameter("--grader judge needs --judge MODEL")
    if ":" in judge:
        return grading.by_judge(grading.remote_judge(judge))
    from semgrad_guard.models import load_model  # loads torch

    return grading.by_judge(grading.local_judge(load_model(judge)))


def _workings(
    model: AnsweringModel, requested: Asked, pool: Workers | None, questions: Path
) -> tuple[Working, Working]:
    """Load the model once, here or in other processes, and return how it answers and how it only scores."""
    from semgrad_guard.evaluation.compare.answering import ONLY_SCORES, RowAnswering
    from semgrad_guard.evaluation.on_ray import on_ray

    if pool is None:
        work = RowAnswering(model, requested)
        scoring = RowAnswering(work.scorer, ONLY_SCORES)
        return working(lambda: work, None, questions), working(lambda: scoring, None, questions)
    by_name = model.embedding if model.embedding is None or isinstance(model.embedding, str) else model.embedding.name
    model = replace(model, embedding=by_name)
    first = working(partial(RowAnswering, model, requested), pool, questions)
    scores = partial(RowAnswering, model, ONLY_SCORES)
    return first, replace(first, lines=lambda batches: on_ray(batches, scores, pool, questions))


def _answered(console: Console, path: Path, questions: Path, limit: int | None, work: Working) -> ScoredFile:
    """Answer the questions that an earlier run has not answered."""
    from semgrad_guard.evaluation.row_files import ScoredFile, Setting

    answers = ScoredFile(path, Setting(fingerprint=work.fingerprint, model=work.name))
    score_pending(console, answers, questions, work.one_by_one, limit=limit, title="Answering")
    return answers


ADVERSARIAL = "adversarial.jsonl"
"""Name of the file of answers that must lose; with their scores, behind `scored-`."""


def _adversarial(
    console: Console, folder: Path, evaluation: Evaluation, answers: ScoredFile, work: Working, seed: int
) -> ScoredFile | None:
    """Make answers that must lose from the answered questions, and score them; `None` where no row gives any."""
    from semgrad_guard.evaluation.adversarial import write_adversarial  # loads torch
    from semgrad_guard.evaluation.row_files import ScoredFile, Setting

    data = folder / ADVERSARIAL
    if not write_adversarial(evaluation.honest(answers), data, seed=seed):
        return None
    made = ScoredFile(folder / f"scored-{ADVERSARIAL}", Setting(fingerprint=work.fingerprint, model=work.name))
    score_pending(console, made, data, work.one_by_one, title="Scoring answers that must lose")
    return made


def _compared(
    console: Console, evaluation: Evaluation, answers: ScoredFile, folder: Path, made: ScoredFile | None
) -> Result:
    with bar(console) as progress:
        task = progress.add_task("Comparing", total=len(answers.done) + 2 * N_METHODS)
        result = evaluation.carry_out(answers, folder, tick=lambda: progress.advance(task), made=made)
        progress.update(task, completed=len(answers.done) + 2 * N_METHODS)
    return result


def _report(result: Result, folder: Path) -> None:
    """Print the tables and the paths of the files."""
    from semgrad_guard.evaluation.compare.report import findings  # loads numpy
    from semgrad_guard.evaluation.compare.run import REPORT, RESULT  # loads numpy

    console = Console()
    console.print(_method_table(result))
    attempts = _adversarial_table(result)
    if attempts is not None:
        console.print(attempts)
    for line in findings(result):
        console.print(line, markup=False, highlight=False)
    for line in result.caveats:
        console.print(line, style="dim", markup=False, highlight=False)
    console.print(
        f"answers: {folder / ANSWERS}, numbers: {folder / RESULT}, page: {folder / REPORT}",
        markup=False,
        soft_wrap=True,
    )


def _method_table(result: Result) -> Table:
    """Return the figures of every method, the best of each kind first; it fits 80 columns."""
    from semgrad_guard.evaluation.compare.report import KINDS, ordered  # loads numpy

    table = plain_table(title=f"{result.data}, {result.model}: finding wrong answers")
    table.add_column("method", overflow="fold")
    for column in ("n", "AUROC (95 %)", "PRR", "ECE", "fused − it", "+ s"):
        table.add_column(column, justify="right", overflow="fold")
    for kind in KINDS:
        rows = ordered(result, kind)
        for one in rows:
            table.add_row(*_cells(one))
        if rows:
            table.add_section()
    table.caption = (
        "fused − it: AUROC of fused less this one, * where the 95 % interval leaves 0 out; + s: seconds that it adds "
        "to an answer. More figures and all intervals are in the numbers and on the page."
    )
    return table


def _adversarial_table(result: Result) -> Table | None:
    """Return the table of answers that were made to look right; `None` where there are none."""
    from semgrad_guard.calibration.evidence import RIGHT_ACCEPTED  # loads numpy
    from semgrad_guard.evaluation.adversarial import KINDS
    from semgrad_guard.evaluation.compare.report import number

    if not result.adversarial:
        return None
    table = plain_table(title="Attempts to talk it up")
    for column in ("answers", "n", "mean confidence", "accepted"):
        table.add_column(column, justify="left" if column == "answers" else "right")
    table.add_row("right answers", "", number(result.right_mean), f"{RIGHT_ACCEPTED:.0%}")
    table.add_section()
    for kind, one in result.adversarial.items():
        what = f"{kind}: {KINDS[kind][0]}" if kind in KINDS else kind
        table.add_row(what, f"{one.n:,}", f"{one.mean:.2f}", f"{one.accepted:.0%}")
    table.caption = f"accepted at a confidence of {number(result.adversarial_threshold)}"
    return table


def _cells(one: MethodResult) -> tuple[str, ...]:
    from semgrad_guard.evaluation.compare.report import number  # loads numpy

    return (
        one.name,
        f"{one.n:,}",
        one.auroc.brief(digits=3),
        number(one.prr.value),
        number(one.ece.value),
        _lead(one.behind_fused),
        "" if one.seconds is None else f"{one.seconds:.2f}",
    )


def _lead(interval: Interval | None) -> str:
    """Return a difference, with a star where its interval leaves 0 out."""
    if interval is None or interval.value is None:
        return ""
    is_clear = interval.low is not None and interval.high is not None and not interval.low <= 0 <= interval.high
    return f"{interval.value:+.3f}{'*' if is_clear else ' '}"
