"""`semgrad-guard policy`: explain, describe, start and try policy files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from semgrad_guard.cli import policy_simulate
from semgrad_guard.errors import PolicyError
from semgrad_guard.guard.assembly import profile_of
from semgrad_guard.guard.thresholds import promised
from semgrad_guard.policy import default_text, explain, load_policy, policy_schema
from semgrad_guard.policy.promises import promises

app = typer.Typer(name="policy", no_args_is_help=True, help="Check, describe, start and try policy files.")
app.command(epilog=policy_simulate.EXAMPLES)(policy_simulate.simulate)

DEFAULT_PATH = Path("policy.yaml")


@app.command()
def check(
    file: Annotated[
        Path | None, typer.Argument(help="Policy file; left out, the policy that ships with the package.")
    ] = None,
) -> None:
    """Explain in words what a policy file does and promises, or name its first mistake.

    Exit code 0 when the file can be used, 2 when not, also where an error rate that it asks for cannot be kept.

    Examples:
        semgrad-guard policy check policy.yaml

        semgrad-guard policy check          (the shipped policy)
    """
    policy = load_policy(file)
    typer.echo("\n".join(explain(policy)))
    if not promises(policy):
        return
    lines, broken = promised(policy, profile_of(policy))
    typer.echo("\n".join(["", *lines]))
    if broken is not None:
        raise broken


@app.command()
def schema(
    out: Annotated[Path | None, typer.Option(help="File to write; left out, standard output.")] = None,
) -> None:
    """Print the JSON schema of policy files, for completion and checks in editors.

    Examples:
        semgrad-guard policy schema --out policy.schema.json

    Then make this the first line of the policy:

        # yaml-language-server: $schema=policy.schema.json
    """
    text = json.dumps(policy_schema(), indent=2, ensure_ascii=False)
    if out is None:
        typer.echo(text)
        return
    _write(out, text + "\n")
    typer.echo(f"wrote {out}")


@app.command()
def init(
    path: Annotated[Path, typer.Argument(help="File to write.")] = DEFAULT_PATH,
    force: Annotated[bool, typer.Option("--force", help="Overwrite a file that is already there.")] = False,
) -> None:
    """Write the shipped policy, with every key explained, to start from.

    Examples:
        semgrad-guard policy init

        semgrad-guard policy init config/policy.yaml --force
    """
    if path.exists() and not force:
        msg = f"{path} is already there: name another file, or overwrite it with --force"
        raise PolicyError(msg)
    _write(path, default_text())
    typer.echo(f"wrote {path}: change it, then run `semgrad-guard policy check {path}`")


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        msg = f"cannot write {path}: {error}; name a file in a folder that is there and may be written to"
        raise PolicyError(msg) from error
