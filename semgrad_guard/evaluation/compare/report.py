"""A result as one HTML page that needs nothing beside itself."""

from __future__ import annotations

from importlib.resources import files
from typing import TYPE_CHECKING

from jinja2 import Environment, StrictUndefined

from semgrad_guard.evaluation.compare.tables import KINDS, findings, number, ordered, short

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from semgrad_guard.evaluation.compare.result import Result


def write_report(path: Path, result: Result, plots: Mapping[str, str]) -> None:
    """Write the page.

    Args:
        path: the HTML file.
        result: what to show.
        plots: SVG texts by title.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    template = (files("semgrad_guard.evaluation.compare") / "report.html").read_text(encoding="utf-8")
    kinds = {title: rows for kind, title in KINDS.items() if (rows := ordered(result, kind))}
    risks = [f"{float(risk):.0%}" for risk in result.comparison.methods[0].coverage]
    page = environment.from_string(template).render(
        result=result,
        findings=list(findings(result)),
        plots=plots,
        kinds=kinds,
        risks=risks,
        short=short,
        number=number,
    )
    path.write_text(page, encoding="utf-8")
