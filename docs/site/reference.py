"""The reference pages, made from what the code says, so that they cannot be out of date.

`pages()` returns them all: path below `docs/` -> Markdown. Each section below makes one.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from typer.testing import CliRunner

from semgrad_guard.signals import SIGNALS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import click

ROOT = Path(__file__).resolve().parents[2]
WIDTH = "80"
"""Columns of the terminal that help is shown for."""


def pages() -> dict[str, str]:
    """Return every generated page: path below `docs/` -> Markdown."""
    return {path: make() for path, make in PAGES.items()}


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


# --- Signals ----------------------------------------------------------------------------------------------------------

_FAMILIES = {
    "gradient": "One backward pass of the local model gives all of them.",
    "likelihood": "From the forward half of the same pass.",
    "text": "Counted in the texts of question, passages and answer; no model.",
    "embedding": "Where an embedder is given: `embeddings=`, `embed_model=` or `scorer: {embedding: ...}`.",
    "forward": "Each takes another forward pass; computed where `scorer: {signals: [...]}` or the profile asks for it.",
    "sampling": "From further answers; only `semgrad-guard evaluate --baselines` computes them, to compare.",
}


_SIGNALS = """Every raw number about an answer. `semgrad-guard signals` prints this list, and
`response_metadata["semgrad"]["signals"]` holds the values of one answer. Those marked as *score* may be the `method`
of a policy; `fused` combines all that a profile was fitted on. One that cannot be computed is absent."""


def signals_page() -> str:
    """Return the page of all raw signals, from the table in `semgrad_guard.signals`."""
    parts = [
        "# Signals",
        _SIGNALS,
    ]
    families = dict.fromkeys([*_FAMILIES, *(signal.family for signal in SIGNALS.values())])
    for family in families:
        rows = [
            (f"`{s.name}`", s.meaning, s.unit, s.higher, "yes" if s.is_score else "")
            for s in SIGNALS.values()
            if s.family == family
        ]
        heads = ("name", "meaning", "unit", "higher says", "score")
        parts += [f"## {family.capitalize()}", _FAMILIES.get(family, ""), table(heads, rows)]
    sources = sorted({signal.source for signal in SIGNALS.values()})
    parts += ["## Sources", "\n".join(f"- {source}" for source in sources)]
    return _page(parts)


# --- Policy -----------------------------------------------------------------------------------------------------------


_POLICY = """Every key of a policy file. `semgrad-guard policy init policy.yaml` writes an example with all of them
explained, and `semgrad-guard policy check policy.yaml` says in words what a file does. `semgrad-guard policy schema`
prints the JSON schema that this page is made from, for editors."""


def policy_page() -> str:
    """Return the page of all keys of a policy file, from its JSON schema."""
    from semgrad_guard.policy import policy_schema

    schema = policy_schema()
    parts = [
        "# Policy keys",
        _POLICY,
        "## The file",
        _keys(schema, schema["$defs"]),
    ]
    for name in _in_order(schema):
        found = schema["$defs"][name]
        if any("properties" in each for each in (found, *found.get("anyOf", ()))):
            parts += [f"## {_title(name)}", _first_paragraph(found), _keys(found, schema["$defs"])]
    return _page(parts)


def _in_order(schema: dict[str, Any]) -> list[str]:
    """Return the names of the schema's definitions as a reader of the file meets them."""
    found: dict[str, None] = {}

    def visit(node: object) -> None:
        if isinstance(node, list):
            for each in node:
                visit(each)
        elif isinstance(node, dict):
            name = str(node.get("$ref", "")).rpartition("/")[2]
            if name and name not in found:
                found[name] = None
                visit(schema["$defs"][name])
            for key, each in node.items():
                if key not in {"$defs", "$ref"}:
                    visit(each)

    visit({key: value for key, value in schema.items() if key != "$defs"})
    return list(found)


def _keys(node: dict[str, Any], definitions: dict[str, Any]) -> str:
    """Return the table of a section's keys."""
    holder = next(each for each in (node, *node.get("anyOf", ())) if "properties" in each)
    required = holder.get("required", ())
    rows = [
        (f"`{key}`", _kind(value), _default(value, needed=key in required), _meaning(value, definitions))
        for key, value in holder["properties"].items()
    ]
    return table(("key", "value", "default", "meaning"), rows)


def _meaning(node: dict[str, Any], definitions: dict[str, Any]) -> str:
    """Return what is said of a key, or of the section that it begins."""
    return str(node.get("description") or _first_paragraph(definitions.get(_referred(node), {})))


def _referred(node: dict[str, Any]) -> str:
    return str(node.get("$ref", "")).rpartition("/")[2]


def _kind(node: dict[str, Any]) -> str:
    """Return in words what a value may be."""
    if "$ref" in node:
        name = node["$ref"].rpartition("/")[2]
        return "any value" if name == "JsonValue" else f"[{_title(name)}](#{_title(name).replace(' ', '-')})"
    words = node.get("enum", [node["const"]] if "const" in node else [])
    if words:
        return " or ".join(f"`{word}`" for word in words)
    for key in ("anyOf", "oneOf"):
        if key in node:
            kinds = dict.fromkeys(_kind(each) for each in node[key] if each.get("type") != "null")
            return " or ".join(kinds)
    holders = {"array": ("items", "list of", "list"), "object": ("additionalProperties", "mapping to", "mapping")}
    if node.get("type") in holders:
        key, of, alone = holders[node["type"]]
        return f"{of} {_kind(node[key])}" if isinstance(node.get(key), dict) else alone
    return _simple_kind(node)


def _simple_kind(node: dict[str, Any]) -> str:
    names = {"string": "text", "integer": "whole number", "number": "number", "boolean": "`true` or `false`"}
    kind = names.get(str(node.get("type")), "any value")
    low, high = (node.get("minimum", node.get("exclusiveMinimum")), node.get("maximum", node.get("exclusiveMaximum")))
    if low is not None and high is not None:
        return f"{kind} from {low:g} to {high:g}"
    if low is not None:
        return f"{kind}, {'above' if 'exclusiveMinimum' in node else 'at least'} {low:g}"
    return f"{kind}, below {high:g}" if high is not None else kind


def _default(node: dict[str, Any], *, needed: bool) -> str:
    if needed:
        return "**needed**"
    value = node.get("default")
    if value is None or value in ({}, []) or isinstance(value, dict):
        return ""
    words = {True: "true", False: "false"}
    return f"`{words[value] if isinstance(value, bool) else value}`"


def _title(name: str) -> str:
    """Return `retry retrieval step` for `RetryRetrievalStep`."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower()


def _first_paragraph(node: dict[str, Any]) -> str:
    return str(node.get("description", "")).split("\n\n", 1)[0]


# --- Command line -----------------------------------------------------------------------------------------------------


def cli_page() -> str:
    """Return the page of all commands: what each prints with `--help`."""
    debug = "`SEMGRAD_DEBUG=1` shows the whole traceback of an error."
    parts = ["# Command line", f"What each command prints with `--help`. {debug}"]
    for names in commands():
        level = "##" if len(names) == 1 else "###"
        parts += [f"{level} {' '.join(names)}", f"```text\n{help_of(names)}\n```"]
    return _page(parts)


def commands() -> list[tuple[str, ...]]:
    """Return every command and group of commands, by the words that call it."""
    from semgrad_guard.cli.app import app

    return list(_commands(typer.main.get_command(app), ()))


def _commands(command: click.Command, names: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    if names:
        yield names
    for name, inner in getattr(command, "commands", {}).items():
        if not inner.hidden:
            yield from _commands(inner, (*names, name))


def help_of(names: Sequence[str], width: str = WIDTH) -> str:
    """Return what `semgrad-guard NAMES --help` prints, without empty lines at its ends."""
    from semgrad_guard.cli.app import app

    environment = {"COLUMNS": width, "TERM": "dumb", "NO_COLOR": "1", "TERMINAL_WIDTH": width}
    shown = CliRunner().invoke(app, [*names, "--help"], env=environment, prog_name="semgrad-guard").stdout
    return "\n".join(line.rstrip() for line in shown.strip("\n").splitlines()).strip()


# --- Python -----------------------------------------------------------------------------------------------------------

_PYTHON = {
    "semgrad_guard": "The core, without a framework.",
    "langchain_semgrad": "The adapter for LangChain and LangGraph.",
    "llama_index_semgrad": "The adapter for LlamaIndex.",
    "semgrad_guard.models": "Local models.",
    "semgrad_guard.scoring": "Scores without a guard.",
    "semgrad_guard.calibration": "Profiles.",
    "semgrad_guard.remote": "Scores from a server.",
    "semgrad_guard.review": "The review queue.",
    "semgrad_guard.adapter_kit": "Guarding a framework of your own.",
    "semgrad_guard.errors": "Every error says what was seen, what is allowed and what to do.",
}


def python_page() -> str:
    """Return the page of public names; the site's builder reads their docstrings from the source."""
    parts = ["# Python", "The public names of each package, from their docstrings."]
    for module, what in _PYTHON.items():
        parts += [f"## {module}", what]
        parts += [f"::: {path}\n    options:\n      heading_level: 3" for path in public_names(module)]
    return _page(parts)


def public_names(module: str) -> list[str]:
    """Return where each public name of a module is defined, by its dotted path."""
    homes = _imported(module)
    return [f"{homes.get(name, module)}.{name}" for name in _all_of(_tree(module))]


def _file(module: str) -> Path:
    base = ROOT if module.startswith("semgrad_guard") else ROOT / "integrations"
    place = base.joinpath(*module.split("."))
    return place / "__init__.py" if place.is_dir() else place.with_suffix(".py")


def _tree(module: str) -> ast.Module:
    return ast.parse(_file(module).read_text(encoding="utf-8"))


def _all_of(tree: ast.Module) -> list[str]:
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets):
            return [str(name) for name in ast.literal_eval(node.value)]
    return [node.name for node in tree.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_")]


def _imported(module: str) -> dict[str, str]:
    """Return name -> module that defines it, for what a module imports; followed to where it is defined."""
    found: dict[str, str] = {}
    for node in ast.walk(_tree(module)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in _packages():
            for alias in node.names:
                found[alias.asname or alias.name] = _home(node.module, alias.name)
    return found


def _home(module: str, name: str) -> str:
    tree = _tree(module)
    if any(getattr(node, "name", None) == name for node in tree.body):
        return module
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in _packages():
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return _home(node.module, alias.name)
    return module


def _packages() -> set[str]:
    return {module.split(".")[0] for module in _PYTHON}


# --- HTTP -------------------------------------------------------------------------------------------------------------


def http_page() -> str:
    """Return the page of HTTP interfaces, from their OpenAPI descriptions."""
    parts = ["# HTTP", "What programs may ask over HTTP. Each server describes itself at the address named below."]
    for title, where, schema in _apis():
        parts += [f"## {title}", where, *_operations(schema)]
    return _page(parts)


def _apis() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield title, introduction and OpenAPI description of each server."""
    from semgrad_guard.review import open_queue
    from semgrad_guard.review.site.app import create_app
    from semgrad_guard.serving.app import create_app as scoring_server

    where = "`semgrad-guard serve`; it speaks as OpenAI's servers do, so its clients need only another address."
    yield "Scoring server", where, scoring_server().openapi()
    queue = open_queue("sqlite://")
    try:
        where = "`semgrad-guard review serve`; the description is at `/api/openapi.json`. Programs use a token: "
        where += "`semgrad-guard review token --help`."
        yield "Review site", where, create_app(queue).openapi()
    finally:
        queue.close()


def _operations(schema: dict[str, Any]) -> Iterator[str]:
    for path, methods in schema["paths"].items():
        for method, operation in methods.items():
            if not path.startswith(("/api", "/v1", "/healthz", "/readyz", "/metrics", "/beta")):
                continue
            yield f"### {method.upper()} {path}"
            yield str(operation.get("description") or operation.get("summary", "")).split("\n\n", 1)[0]
            rows = [
                (f"`{p['name']}`", p["in"], _kind(_whole(p.get("schema", {}), schema)), p.get("description", ""))
                for p in operation.get("parameters", ())
            ]
            if rows:
                yield table(("parameter", "in", "value", "meaning"), rows)
            body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
            if body:
                yield from _body(body, schema)
            answers = operation["responses"].items()
            yield "Answers: " + ", ".join(f"{code} {a['description'].rstrip('.')}" for code, a in answers) + "."


def _whole(node: Any, schema: dict[str, Any]) -> Any:
    """Return a schema with its references replaced by what they refer to; objects stay unspecified."""
    if isinstance(node, list):
        return [_whole(each, schema) for each in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        found = schema.get("components", {}).get("schemas", {}).get(_referred(node), {})
        return _whole(found, schema) if "properties" not in found else {"type": "object"}
    return {key: _whole(each, schema) for key, each in node.items()}


def _body(body: dict[str, Any], schema: dict[str, Any]) -> Iterator[str]:
    found = schema.get("components", {}).get("schemas", {}).get(_referred(body), body)
    if "properties" in found:
        rows = [
            (f"`{key}`", _kind(_whole(value, schema)), "yes" if key in found.get("required", ()) else "")
            for key, value in found["properties"].items()
        ]
        yield table(("field of the body", "value", "needed"), rows)


# --- Traces -----------------------------------------------------------------------------------------------------------


_TRACES = """What `telemetry:` of a policy puts where. Without `log_text` no text is sent; a key without a value is left
out."""
_JSONL = """`telemetry: {jsonl: guard.jsonl}` appends one line a question; `semgrad-guard watch guard.jsonl` shows them.
The top level says how the question ended; `attempts` holds each attempt with all signals."""
_LANGSMITH = """`telemetry: {langsmith: true}` puts these keys on the guard's run, the feedback `semgrad_confidence` on
the runs that wrote the answers, and `semgrad_verdict` once a person has judged."""
_ALL_SIGNALS = """`telemetry: {{langsmith: true, all_signals: true}}` adds the other fields of the JSON line, and every
signal as `semgrad_signal_NAME`: up to {n} keys."""
_OTEL = """`telemetry: {{otel: true}}`. A question is a span `semgrad.guard`, with `semgrad.judge` and `semgrad.route`
for each attempt; each judgement is an event `{event}`."""


def traces_page() -> str:
    """Return the page of everything that goes into traces, from the telemetry code."""
    from docs.site.sample import sample_record
    from semgrad_guard.telemetry import langsmith, otel
    from semgrad_guard.wire import SUMMARY

    record = sample_record()
    brief, whole = (langsmith.run_metadata(record, log_text=True, all_signals=every) for every in (False, True))
    attempt = record.attempts[0]
    event = otel.evaluation_attributes(attempt, log_text=True)
    parts = [
        "# Keys in traces",
        _TRACES,
        "## JSON lines",
        _JSONL,
        table(("key", "meaning"), [(f"`{name}`", meaning) for name, meaning in SUMMARY.items()]),
        "## LangSmith",
        _LANGSMITH,
        table(("metadata key", "meaning"), [(f"`{k}`", langsmith.METADATA[k.removeprefix("semgrad_")]) for k in brief]),
        _ALL_SIGNALS.format(n=len(whole)),
        "Tags: " + ", ".join(f"`{tag}`" for tag in langsmith.run_tags(record)) + ": the status, and each action.",
        "## OpenTelemetry",
        _OTEL.format(event=otel.EVALUATION_EVENT),
        "### Span semgrad.guard",
        _listed(otel.record_attributes(record, log_text=True)),
        "### Span semgrad.judge",
        _listed(otel.attempt_attributes(attempt)),
        f"### Event {otel.EVALUATION_EVENT}",
        _listed({name: value for name, value in event.items() if name.startswith("gen_ai")}),
        "and the attributes of `semgrad.judge`.",
        "### Metrics",
        table(("metric", "unit", "meaning"), [(f"`{i.name}`", i.unit, i.meaning) for i in otel.INSTRUMENTS]),
        "Labels: " + ", ".join(f"`{name}`" for name in otel.decision_labels(attempt)) + ".",
    ]
    return _page(parts)


def _listed(attributes: Mapping[str, object]) -> str:
    signals = [name for name in attributes if name.startswith("semgrad.signal.")]
    names = [f"`{name}`" for name in attributes if name not in signals]
    return ", ".join(names + (["`semgrad.signal.NAME` for every signal"] if signals else [])) + "."


# --- Examples ---------------------------------------------------------------------------------------------------------


def examples_page() -> str:
    """Return the page of the example programs: what each shows, and its source."""
    parts = ["# Examples", "Whole programs, each of which runs as it stands: on the packaged model, and offline."]
    for file in sorted((ROOT / "examples").glob("*.py")):
        source = file.read_text(encoding="utf-8")
        what = ast.get_docstring(ast.parse(source)) or ""
        parts += [f"## {file.stem.replace('_', ' ')}", what, f'```python title="examples/{file.name}"\n{source}```']
    return _page(parts)


def _page(parts: Sequence[str]) -> str:
    return "\n\n".join(part for part in parts if part) + "\n"


PAGES: dict[str, Callable[[], str]] = {
    "reference/policy.md": policy_page,
    "reference/signals.md": signals_page,
    "reference/cli.md": cli_page,
    "reference/python.md": python_page,
    "reference/traces.md": traces_page,
    "reference/http.md": http_page,
    "examples.md": examples_page,
}
"""Every generated page, and what makes it."""
