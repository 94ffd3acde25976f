"""What every adapter needs and no framework knows.

- `GuardedPipeline` guards anything that can be asked, by the five functions of `Pipeline`.
- `GuardOptions` are the options of every entry point; `findings` is what callers read of an outcome.
- `Cleaner` takes copies of a withheld answer (`withheld_by`) out of the value that comes out beside it.
- `judge_beside_tools` treats text beside a request for tools as the policy says.
- `check_means` says when a guard is built which step of its policy lacks something.
- `match_call` finds the model call that wrote an answer; `Candidate` is an answer to judge.
- `answering` states question and passages, where they cannot be found.
- `observe` judges without touching an answer, `BackgroundJudge` in a thread of its own.
- `SinglePass` writes an answer and scores it in one pass.
- `contract` (imported by its own name) holds the checks that every adapter passes, for an adapter's own tests.
"""

from semgrad_guard.adapter_kit.candidates import (
    Answer,
    Attempts,
    Candidate,
    ModelCall,
    candidate_of,
    match_call,
    next_exchange,
    run_guard,
    with_call,
)
from semgrad_guard.adapter_kit.cleaner import UNKNOWN, Cleaner, Place
from semgrad_guard.adapter_kit.findings import (
    LEFT_OUT,
    findings,
    held_back,
    no_place,
    shown_decision,
    shown_error,
    text_for,
    without_answers,
)
from semgrad_guard.adapter_kit.means import Means, check_means
from semgrad_guard.adapter_kit.observe import BackgroundJudge, judge_beside_tools, observe, recording_faults
from semgrad_guard.adapter_kit.options import GuardOptions, check_option
from semgrad_guard.adapter_kit.pipeline import GuardedPipeline, OnWithheld, Pipeline
from semgrad_guard.adapter_kit.single_pass import AnswerSettings, ScoredAnswer, SinglePass
from semgrad_guard.adapter_kit.stated import NOTHING_STATED, Answering, Stated, answering, stated_here
from semgrad_guard.adapter_kit.withheld import Withheld, turn_start, withheld_by

__all__ = [
    "LEFT_OUT",
    "NOTHING_STATED",
    "UNKNOWN",
    "Answer",
    "AnswerSettings",
    "Answering",
    "Attempts",
    "BackgroundJudge",
    "Candidate",
    "Cleaner",
    "GuardOptions",
    "GuardedPipeline",
    "Means",
    "ModelCall",
    "OnWithheld",
    "Pipeline",
    "Place",
    "ScoredAnswer",
    "SinglePass",
    "Stated",
    "Withheld",
    "answering",
    "candidate_of",
    "check_means",
    "check_option",
    "findings",
    "held_back",
    "judge_beside_tools",
    "match_call",
    "next_exchange",
    "no_place",
    "observe",
    "recording_faults",
    "run_guard",
    "shown_decision",
    "shown_error",
    "stated_here",
    "text_for",
    "turn_start",
    "with_call",
    "withheld_by",
    "without_answers",
]
