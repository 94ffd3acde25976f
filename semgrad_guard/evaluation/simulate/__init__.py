"""Simulates a policy on recorded, labelled answers: what it lets through, holds back, and costs.

The flow of the guard itself is run over every question; its scores, retries and fallbacks are the recorded ones.
"""

from semgrad_guard.evaluation.simulate.recorded import (
    RecordedAnswer,
    RecordedLog,
    RecordedQuestion,
    RecordedRows,
    is_log,
    read_labels,
)
from semgrad_guard.evaluation.simulate.replay import Replay, Simulator, unscored_routes
from semgrad_guard.evaluation.simulate.report import save_simulation_plot
from semgrad_guard.evaluation.simulate.tally import RouteFigures, Simulation, simulate

__all__ = [
    "RecordedAnswer",
    "RecordedLog",
    "RecordedQuestion",
    "RecordedRows",
    "Replay",
    "RouteFigures",
    "Simulation",
    "Simulator",
    "is_log",
    "read_labels",
    "save_simulation_plot",
    "simulate",
    "unscored_routes",
]
