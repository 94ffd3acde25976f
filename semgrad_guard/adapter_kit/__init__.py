"""What every adapter needs and no framework knows: findings, single pass, and how a question is asked again."""

from semgrad_guard.adapter_kit.findings import held_back, shown_decision, shown_error, without_answers
from semgrad_guard.adapter_kit.single_pass import AnswerSettings, ScoredAnswer, SinglePass

__all__ = [
    "AnswerSettings",
    "ScoredAnswer",
    "SinglePass",
    "held_back",
    "shown_decision",
    "shown_error",
    "without_answers",
]
