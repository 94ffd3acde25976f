"""`semgrad-guard doctor`: whether everything that a guard needs is there and works, and what to type where not."""

from __future__ import annotations

import os
import platform
import socket
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal
from urllib.parse import urlsplit

import typer
from rich.console import Console
from rich.text import Text

from semgrad_guard.cli.terminal import examples, plain_table
from semgrad_guard.errors import ModelSettingError, PolicyFileError, SemGradGuardError
from semgrad_guard.model_names import PACKAGED, find

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.table import Table

    from semgrad_guard.policy import Policy

EXAMPLES = examples(
    "semgrad-guard doctor",
    "semgrad-guard doctor --policy policy.yaml",
    more="""
Without --policy the shipped policy is looked at. The exit code is 1 when something that is configured does not work.
    """,
)

State = Literal["works", "off", "fails"]
"""`off`: not there, and nothing that is configured needs it."""
_STYLES: dict[State, str] = {"works": "green", "off": "dim", "fails": "bold red"}
CONNECT_S = 3.0
"""Seconds to wait for a server."""

_OPTIONAL = {
    "torch": "local",
    "transformers": "local",
    "langchain-core": "langchain",
    "langgraph": "agents",
    "llama-index-core": "llama-index",
    "fastapi": "review",
    "psycopg": "postgres",
    "langsmith": "langsmith",
    "opentelemetry-sdk": "otel",
    "sentence-transformers": "evaluation",
}
"""Distribution -> the extra that brings it."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    part: str
    state: State
    seen: str
    advice: str = ""
    """What to type."""


def doctor(
    policy: Annotated[
        Path | None, typer.Option(help="Policy file; by default the shipped policy.", show_default=False)
    ] = None,
) -> None:
    """Check versions, models, profile, device, queue and traces: what works, and what to type where not."""
    found = list(examine(policy))
    console = Console()
    console.print(_table(found))
    failing = [each for each in found if each.state == "fails"]
    for each in found:
        if each.advice and each.state != "works":
            console.print(f"{each.part}: {each.advice}", style=_STYLES[each.state], markup=False, soft_wrap=True)
    if failing:
        console.print(f"\n{len(failing)} of {len(found)} do not work.", style="bold red")
        raise typer.Exit(1)
    console.print("\nEverything that is configured works.", style="green")


def _table(found: list[Finding]) -> Table:
    table = plain_table()
    table.add_column("", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("found", overflow="fold")
    for each in found:
        table.add_row(each.part, Text(each.state, style=_STYLES[each.state]), Text(each.seen))
    return table


def examine(file: Path | None) -> Iterator[Finding]:
    """Yield what is found: the environment first, then what the policy needs."""
    yield Finding("semgrad-guard", "works", f"{metadata.version('semgrad-guard')}, Python {platform.python_version()}")
    yield from _packages()
    yield _device()
    try:
        policy = _policy(file)
    except PolicyFileError as error:
        yield Finding("policy", "fails", str(error), f"semgrad-guard policy check {file}")
        return
    except (SemGradGuardError, OSError) as error:
        yield Finding("policy", "fails", str(error), "semgrad-guard policy init policy.yaml writes one")
        return
    yield Finding("policy", "works", f"{policy.source}, digest {policy.digest}")
    for part, look in _OF_POLICY.items():
        yield _looked(part, look, policy)
    yield from _traces(policy)


def _packages() -> Iterator[Finding]:
    for name, extra in _OPTIONAL.items():
        version = _version(name)
        advice = f"pip install 'semgrad-guard[{extra}]'"
        yield Finding(name, "works", version) if version else Finding(name, "off", "not installed", advice)
    for model in PACKAGED.values():
        what = f"{model.what}, {model.licence}"
        installed = model.is_installed()
        yield Finding(model.name, "works" if installed else "off", what, "" if installed else model.command)


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _device() -> Finding:
    if find_spec("torch") is None:
        return Finding("device", "off", "torch is not installed")
    import torch  # takes seconds

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())]
        return Finding("device", "works", f"cuda: {', '.join(names)}")
    if torch.backends.mps.is_available():
        return Finding("device", "works", "mps")
    return Finding("device", "works", f"cpu, {torch.get_num_threads()} threads")


def _policy(file: Path | None) -> Policy:
    from semgrad_guard.policy import load_policy  # loads the parser of policies

    return load_policy(file)


def _looked(part: str, look: Callable[[Policy], Finding], policy: Policy) -> Finding:
    """Return what one look finds; an error of ours is a finding, too."""
    try:
        return look(policy)
    except (SemGradGuardError, OSError) as error:
        return Finding(part, "fails", str(error))


def _model(policy: Policy) -> Finding:
    from semgrad_guard.guard.readiness import problems_of

    if policy.scorer.url is not None:
        return _scoring_server(policy.scorer.url)
    name = policy.scorer.model
    mistakes = [error for place, error in problems_of(policy) if place[:2] == ("scorer", "model")]
    if mistakes:
        packaged = find(name)
        return Finding("scoring model", "fails", str(mistakes[0]), packaged.command if packaged else "")
    return Finding("scoring model", "works", name)


def _scoring_server(url: str) -> Finding:
    import httpx

    from semgrad_guard.policy.fields import mask_url

    advice = "start it there: semgrad-guard serve"
    try:
        answer = httpx.get(f"{url.rstrip('/')}/readyz", timeout=CONNECT_S)
    except httpx.HTTPError as error:
        return Finding("scoring server", "fails", f"{mask_url(url)}: {error}", advice)
    if not answer.is_success:
        return Finding("scoring server", "fails", f"{mask_url(url)} answers {answer.status_code}", advice)
    return Finding("scoring server", "works", f"{mask_url(url)} is ready")


def _profile(policy: Policy) -> Finding:
    from semgrad_guard.calibration import load_profile
    from semgrad_guard.guard.readiness import problems_of

    if policy.profile is None:
        advice = "semgrad-guard calibrate answers.jsonl --out profile.json"
        return Finding("profile", "off", "none named: there will be no confidence unless a shipped one fits", advice)
    mistakes = [error for place, error in problems_of(policy) if place[:2] == ("scorer", "profile")]
    if mistakes:
        advice = "semgrad-guard calibrate answers.jsonl --out profile.json"
        return Finding("profile", "fails", str(mistakes[0]), advice)
    profile = load_profile(policy.profile)
    return Finding("profile", "works", f"{profile.name}, {profile.n_labels:,} labels")


def _embeddings(policy: Policy) -> Finding:
    from semgrad_guard.guard.readiness import problems_of

    name = policy.scorer.embedding
    if name is None:
        return Finding("embeddings", "off", "none named: signals of meaning are left out")
    mistakes = [error for place, error in problems_of(policy) if place[:2] == ("scorer", "embedding")]
    if mistakes:
        return Finding("embeddings", "fails", str(mistakes[0]))
    return Finding("embeddings", "works", name)


def _on_device(policy: Policy) -> Finding:
    name = policy.scorer.device
    if name is None:
        return Finding("scorer's device", "off", "none named: the loader chooses")
    from semgrad_guard.models.device import require_device  # loads torch, which takes seconds

    try:
        require_device(name)
    except ModelSettingError as error:
        return Finding("scorer's device", "fails", str(error), "leave `device` out, or name one that is there")
    return Finding("scorer's device", "works", name)


def _queue(policy: Policy) -> Finding:
    from semgrad_guard.policy.fields import mask_url
    from semgrad_guard.review import open_queue

    url = policy.review.url
    if url is None:
        return Finding("review queue", "off", "none named: nobody is asked")
    if url == "interrupt":
        return Finding("review queue", "works", "interrupt: the graph or workflow stops for the person")
    file = _file_of(url)
    if file is not None and not file.exists():
        if os.access(file.parent, os.W_OK):
            return Finding("review queue", "works", f"{mask_url(url)}: a new file, made at the first answer")
        advice = f"make the folder {file.parent}, or one that this user may write to"
        return Finding("review queue", "fails", f"{mask_url(url)}: no file, and its folder cannot be written", advice)
    queue = open_queue(url, token=policy.review.token)
    try:
        queue.list(limit=1)
    finally:
        queue.close()
    return Finding("review queue", "works", mask_url(url))


def _file_of(url: str) -> Path | None:
    """Return the file of an SQLite queue."""
    if not url.startswith("sqlite") or ":///" not in url:
        return None
    return Path(url.split(":///", 1)[1].split("?", 1)[0]).absolute()


_OF_POLICY: dict[str, Callable[[Policy], Finding]] = {
    "scoring model": _model,
    "scorer's device": _on_device,
    "profile": _profile,
    "embeddings": _embeddings,
    "review queue": _queue,
}


# --- Traces -----------------------------------------------------------------------------------------------------------


def _traces(policy: Policy) -> Iterator[Finding]:
    telemetry = policy.telemetry
    yield _jsonl(telemetry.jsonl)
    yield _langsmith(on=telemetry.langsmith)
    yield _otel(on=telemetry.otel)


def _jsonl(name: str | None) -> Finding:
    if name is None:
        return Finding("records", "off", "no file named under `telemetry: {jsonl: ...}`")
    file = Path(name).absolute()
    place = file if file.exists() else next(folder for folder in file.parents if folder.exists())
    if not os.access(place, os.W_OK):
        return Finding("records", "fails", f"{name} cannot be written", "name another file under `telemetry`")
    return Finding("records", "works", name, f"semgrad-guard watch {name}")


def _langsmith(*, on: bool) -> Finding:
    if not on:
        return Finding("traces: LangSmith", "off", "`telemetry: {langsmith: true}` switches it on")
    if not _version("langsmith"):
        return Finding("traces: LangSmith", "fails", "not installed", "pip install 'semgrad-guard[langsmith]'")
    tracing = next((v for n in ("LANGSMITH_TRACING", "LANGCHAIN_TRACING_V2") if (v := os.environ.get(n))), "")
    if tracing.lower() != "true":
        seen = "tracing is off, so nothing is sent"
        return Finding("traces: LangSmith", "fails", seen, "export LANGSMITH_TRACING=true")
    if not any(os.environ.get(name) for name in ("LANGSMITH_API_KEY", "LANGCHAIN_API_KEY")):
        return Finding("traces: LangSmith", "fails", "there is no key", "export LANGSMITH_API_KEY=...")
    return Finding("traces: LangSmith", "works", "tracing is on, and there is a key (it was not tried)")


def _otel(*, on: bool) -> Finding:
    if not on:
        return Finding("traces: OpenTelemetry", "off", "`telemetry: {otel: true}` switches it on")
    if not _version("opentelemetry-exporter-otlp-proto-http"):
        return Finding("traces: OpenTelemetry", "fails", "not installed", "pip install 'semgrad-guard[otel]'")
    endpoint = os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT", "http://localhost:4318")
    parts = urlsplit(endpoint)
    try:
        with socket.create_connection((parts.hostname or "", parts.port or 4318), timeout=CONNECT_S):
            return Finding("traces: OpenTelemetry", "works", f"{endpoint} answers")
    except OSError as error:
        advice = "start a collector there, or export OTEL_EXPORTER_OTLP_ENDPOINT=http://host:4318"
        return Finding("traces: OpenTelemetry", "fails", f"{endpoint}: {error}", advice)
