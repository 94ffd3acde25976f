"""`semgrad-guard serve` and `keys`: serve scores and scored answers over HTTP, and say who may ask."""

from __future__ import annotations

import logging
import os
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from semgrad_guard.cli.terminal import examples, plain_table
from semgrad_guard.errors import OptionError
from semgrad_guard.extras import require

if TYPE_CHECKING:
    from semgrad_guard.serving.gate import KeyFile

EXAMPLES = examples(
    "semgrad-guard serve --scorer smollm2-135m",
    "semgrad-guard serve --model smollm2-135m --port 8788",
    "semgrad-guard serve --upstream http://127.0.0.1:8000/v1 --policy policy.yaml",
    "semgrad-guard serve --upstream http://127.0.0.1:11434/v1 --accept 0.7",
    "semgrad-guard serve --scorer smollm2-135m --keys keys.json",
    "semgrad-guard serve --scorer smollm2-135m --ray --replicas 2",
    more="""
Then POST to http://127.0.0.1:8788/v1/score what is to be scored, as JSON:
{"exchanges": [{"prompt": "Capital of France?", "answer": "Paris"}]}
    """,
)
KEYS_FILE = "keys.json"

keys_app = typer.Typer(
    help="Keys that callers of the server need.",
    no_args_is_help=True,
    epilog=examples("semgrad-guard keys add rag-app", "semgrad-guard keys list"),
)
_console = Console(soft_wrap=True, highlight=False)

KeysOption = Annotated[Path, typer.Option("--keys", help="File of keys.", dir_okay=False)]


class StreamChoice(StrEnum):
    """Values of `--stream`."""

    AUTO = "auto"
    BUFFER = "buffer"
    SENTENCE = "sentence"
    ANNOTATE = "annotate"


def serve(
    model: Annotated[
        str | None, typer.Option(help="Local model that writes answers and scores them in one pass.")
    ] = None,
    upstream: Annotated[
        str | None, typer.Option(help="OpenAI-compatible server that writes the answers: http://127.0.0.1:8000/v1")
    ] = None,
    scorer: Annotated[
        str | None, typer.Option(help="Local model that scores answers.  \\[default: the policy's]")
    ] = None,
    profile: Annotated[str | None, typer.Option(help="Profile in place of the policy's.")] = None,
    policy: Annotated[
        Path | None, typer.Option(help="Policy: what happens to doubtful answers.", exists=True, dir_okay=False)
    ] = None,
    accept: Annotated[
        float | None, typer.Option(min=0, max=1, help="In place of a policy: hold back what is less sure.")
    ] = None,
    fallback: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME=URL[#MODEL] of a server for the policy's `fallback_model: {name: NAME}`; may be repeated."
        ),
    ] = None,
    upstream_seconds: Annotated[
        float | None,
        typer.Option(
            min=0.001,
            help="Longest wait for an upstream's answer.  \\[default: --max-seconds, half of it with --fallback]",
        ),
    ] = None,
    upstream_model: Annotated[str | None, typer.Option(help="Model to ask there, whatever callers name.")] = None,
    own_weights: Annotated[
        bool, typer.Option("--own-weights", help="The upstream runs the scorer's very weights.")
    ] = False,
    stream: Annotated[StreamChoice, typer.Option(help="How answers are streamed.")] = StreamChoice.AUTO,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on.")] = 8788,
    keys: Annotated[
        Path | None, typer.Option(help="File of keys that callers need; see `semgrad-guard keys`.", dir_okay=False)
    ] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="Certificate file.", exists=True, dir_okay=False)] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Key file.", exists=True, dir_okay=False)] = None,
    ray: Annotated[
        bool,
        typer.Option("--ray", help="Serve on Ray: replicas as processes, on this machine or a cluster."),
    ] = False,
    replicas: Annotated[int, typer.Option(min=1, help="With --ray: processes that score.")] = 1,
    max_replicas: Annotated[
        int | None, typer.Option(min=1, help="With --ray: most of them under load.  \\[default: --replicas]")
    ] = None,
    gpus: Annotated[float, typer.Option(min=0, help="With --ray: GPUs of each; 0.5 puts two on one GPU.")] = 0.0,
    max_batch: Annotated[int, typer.Option(min=1, help="Most exchanges that are scored together.")] = 32,
    window_ms: Annotated[float, typer.Option(min=0, help="Milliseconds for which a batch waits to fill.")] = 10.0,
    max_waiting: Annotated[int, typer.Option(min=1, help="Exchanges that may wait; then callers get 429.")] = 512,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Most tokens of prompt and answer.  \\[default: the model's window]")
    ] = None,
    max_body_mb: Annotated[float, typer.Option(min=0.001, help="Longest request body, in megabytes.")] = 8.0,
    max_seconds: Annotated[float, typer.Option(min=0.001, help="Longest time of one request.")] = 120.0,
) -> None:
    """Serve scores, and answers that carry their confidence, over HTTP."""
    require("fastapi", extra="serve")
    require("prometheus_client", extra="serve")
    from semgrad_guard.serving import KeyFile, Limits, ServerSettings, create_app  # loads the web framework
    from semgrad_guard.serving.app import serve as run
    from semgrad_guard.serving.settings import Replicas, ServerListening

    listening = ServerListening(host=host, port=port, certificate=tls_cert, key=tls_key, has_keys=keys is not None)
    limits = Limits(
        body_bytes=round(max_body_mb * 1_048_576),
        tokens=max_tokens,
        seconds=max_seconds,
        upstream_s=upstream_seconds,
        waiting=max_waiting,
        batch=max_batch,
        window_s=window_ms / 1000,
    )
    settings = ServerSettings(
        model=model,
        scorer=scorer,
        profile=profile,
        policy=policy,
        accept=accept,
        upstream=upstream,
        upstream_key=os.environ.get("SEMGRAD_UPSTREAM_KEY"),
        upstream_model=upstream_model,
        fallbacks=tuple(map(_named, fallback or ())),
        own_weights=own_weights,
        stream=stream.value,
        limits=limits,
    )
    shares = Replicas(least=replicas, most=max_replicas, gpus=gpus)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    if ray:
        from semgrad_guard.serving.ray import serve_on_ray  # loads Ray

        _console.print(f"serving on Ray at {listening.address} (Ctrl+C stops)", markup=False)
        serve_on_ray(settings, shares, listening, keys=keys)
        return
    if shares != Replicas():
        raise OptionError("--replicas, --max-replicas, --gpus", "given", "only with --ray")
    app = create_app(settings, keys=KeyFile(keys) if keys is not None else None)
    _console.print(f"serving {app.state.backend.scorer.name} at {listening.address} (Ctrl+C stops)", markup=False)
    run(app, listening, limits)


def _named(text: str) -> tuple[str, str]:
    name, _, url = text.partition("=")
    if not name or not url:
        raise OptionError("--fallback", text, "NAME=URL, such as big=http://127.0.0.1:8001/v1")
    return name, url


@keys_app.command(
    "add", epilog=examples("semgrad-guard keys add rag-app", "semgrad-guard keys add rag-app --keys keys.json")
)
def add(name: Annotated[str, typer.Argument(help="Who will use it.")], keys: KeysOption = Path(KEYS_FILE)) -> None:
    """Make a key and print its secret; it cannot be shown again."""
    secret = _file(keys).issue(name)
    Console(stderr=True).print(f"key {name} in {keys}; it is not shown again:", markup=False, highlight=False)
    print(secret)


@keys_app.command("list", epilog=examples("semgrad-guard keys list", "semgrad-guard keys list --keys keys.json"))
def list_keys(keys: KeysOption = Path(KEYS_FILE)) -> None:
    """List the keys, without their secrets."""
    table = plain_table("name", "since")
    for key in _file(keys).all():
        table.add_row(key.name, key.created_at)
    _console.print(table, markup=False)


@keys_app.command(
    "revoke", epilog=examples("semgrad-guard keys revoke rag-app", "semgrad-guard keys revoke rag-app --keys keys.json")
)
def revoke(name: Annotated[str, typer.Argument(help="The key's name.")], keys: KeysOption = Path(KEYS_FILE)) -> None:
    """Revoke a key for good; a running server refuses it at once."""
    _file(keys).revoke(name)


def _file(path: Path) -> KeyFile:
    require("fastapi", extra="serve")
    from semgrad_guard.serving.gate import KeyFile  # loads the web framework

    return KeyFile(path)
