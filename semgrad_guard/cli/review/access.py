"""`semgrad-guard review serve|user|token|webhook`: serve the review site, and manage access to it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from semgrad_guard.cli.review.options import PolicyFile, RoleChoice, ScopeChoice, Url, policy_at, queue_at
from semgrad_guard.cli.review.upkeep import verdict_loop
from semgrad_guard.cli.terminal import examples, plain_table
from semgrad_guard.extras import require

if TYPE_CHECKING:
    from semgrad_guard.review.access import Accounts

SERVE_EXAMPLES = examples(
    "semgrad-guard review serve",
    "semgrad-guard review serve --policy policy.yaml",
    "semgrad-guard review serve --behind-proxy --name review.example.com",
    "semgrad-guard review serve --tls-cert cert.pem --tls-key key.pem",
)

_DAY_S = 86_400
_console = Console(soft_wrap=True, highlight=False)

user_app = typer.Typer(
    help="Accounts of reviewers.",
    no_args_is_help=True,
    epilog=examples("semgrad-guard review user add ann --role admin", "semgrad-guard review user list"),
)
token_app = typer.Typer(
    help="Tokens that let programs use the API.",
    no_args_is_help=True,
    epilog=examples(
        "semgrad-guard review token add guard --user ann --scope submit", "semgrad-guard review token list"
    ),
)
webhook_app = typer.Typer(
    help="Addresses that are notified of events.",
    no_args_is_help=True,
    epilog=examples(
        "semgrad-guard review webhook add chat https://example.com/hooks", "semgrad-guard review webhook list"
    ),
)

Name = Annotated[str, typer.Argument(help="The account's name.")]
PasswordFromStdin = Annotated[
    bool, typer.Option("--password-stdin", help="Read the password from standard input instead of asking.")
]


def serve(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on.")] = 8765,
    tls_cert: Annotated[Path | None, typer.Option(help="Certificate file.", exists=True, dir_okay=False)] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Key file.", exists=True, dir_okay=False)] = None,
    behind_proxy: Annotated[
        bool, typer.Option("--behind-proxy", help="A proxy handles https; its address is in FORWARDED_ALLOW_IPS.")
    ] = False,
    allow_plain_http: Annotated[
        bool, typer.Option("--allow-plain-http", help="Allow other machines to connect without encryption.")
    ] = False,
    name: Annotated[list[str] | None, typer.Option(help="Host name to accept; others are refused.")] = None,
    url: Url = None,
    policy: PolicyFile = None,
) -> None:
    """Serve the review site and its API."""
    require("fastapi", extra="review")
    from semgrad_guard.review.site import serving  # loads the web framework

    binding = serving.Binding(
        host=host,
        port=port,
        certificate=tls_cert,
        key=tls_key,
        is_behind_proxy=behind_proxy,
        allow_plain=allow_plain_http,
        names=frozenset(name or ()),
    )
    queue = queue_at(url, policy)
    _console.print(f"reviewing {queue.url} at {binding.address} (Ctrl+C stops)", markup=False)
    loop = verdict_loop(queue, policy_at(url, policy)) if policy is not None else None
    serving.serve(queue, binding, *(() if loop is None else (loop.look,)))


@user_app.command(
    "add", epilog=examples("semgrad-guard review user add ann", "semgrad-guard review user add ann --role admin")
)
def add_user(
    name: Name,
    role: Annotated[RoleChoice, typer.Option(help="What the account may do.")] = RoleChoice.REVIEWER,
    password_stdin: PasswordFromStdin = False,
    url: Url = None,
    policy: PolicyFile = None,
) -> None:
    """Create an account; you are asked for its password."""
    from semgrad_guard.review.access import Role  # loads SQLAlchemy

    _accounts(url, policy).add(name, _password(from_stdin=password_stdin), Role(role))
    _console.print(f"{name} may log in", markup=False)


@user_app.command(
    "list",
    epilog=examples("semgrad-guard review user list", "semgrad-guard review user list --url sqlite:///review.db"),
)
def list_users(url: Url = None, policy: PolicyFile = None) -> None:
    """List the accounts."""
    table = plain_table("name", "role", "open", "since")
    for user in _accounts(url, policy).all():
        table.add_row(user.name, user.role, "yes" if user.active else "no", f"{user.created_at:%Y-%m-%d}")
    _console.print(table)


@user_app.command(
    "password",
    epilog=examples(
        "semgrad-guard review user password ann", "semgrad-guard review user password ann --password-stdin"
    ),
)
def set_password(
    name: Name, password_stdin: PasswordFromStdin = False, url: Url = None, policy: PolicyFile = None
) -> None:
    """Change a password, and log the account out everywhere."""
    accounts = _accounts(url, policy)
    accounts.get(name)
    accounts.set_password(name, _password(from_stdin=password_stdin))


@user_app.command(
    "role", epilog=examples("semgrad-guard review user role ann admin", "semgrad-guard review user role ann reviewer")
)
def set_role(
    name: Name,
    role: Annotated[RoleChoice, typer.Argument(help="What the account may do.")],
    url: Url = None,
    policy: PolicyFile = None,
) -> None:
    """Change what an account may do, and log it out everywhere."""
    from semgrad_guard.review.access import Role  # loads SQLAlchemy

    _accounts(url, policy).set_role(name, Role(role))


@user_app.command(
    "close",
    epilog=examples(
        "semgrad-guard review user close ann", "semgrad-guard review user close ann --url sqlite:///review.db"
    ),
)
def close_user(name: Name, url: Url = None, policy: PolicyFile = None) -> None:
    """Close an account: its logins and tokens end, its earlier actions keep its name."""
    _accounts(url, policy).set_active(name, active=False)


@user_app.command(
    "reopen",
    epilog=examples(
        "semgrad-guard review user reopen ann", "semgrad-guard review user reopen ann --policy policy.yaml"
    ),
)
def reopen_user(name: Name, url: Url = None, policy: PolicyFile = None) -> None:
    """Let a closed account log in again."""
    _accounts(url, policy).set_active(name, active=True)


@token_app.command(
    "add",
    epilog=examples(
        "semgrad-guard review token add guard --user ann --scope submit",
        "semgrad-guard review token add board --user ann --scope read --days 90",
    ),
)
def add_token(
    name: Annotated[str, typer.Argument(help="What the token is for.")],
    user: Annotated[str, typer.Option(help="Account that it belongs to.")],
    scope: Annotated[list[ScopeChoice], typer.Option(help="What it allows; repeat for several.")],
    days: Annotated[float | None, typer.Option(min=0, help="Days until it expires; by default never.")] = None,
    url: Url = None,
    policy: PolicyFile = None,
) -> None:
    """Create a token and print it; it cannot be shown again."""
    from semgrad_guard.review.access import Scope, Tokens  # loads SQLAlchemy

    queue = queue_at(url, policy)
    owner = _accounts(url, policy).get(user)
    lifetime_s = None if days is None else days * _DAY_S
    scopes = [Scope(choice) for choice in scope]
    token, secret = Tokens(queue.database).issue(name, owner, scopes, lifetime_s=lifetime_s)
    Console(stderr=True).print(f"token {token.id}; it is not shown again:", markup=False, highlight=False)
    print(secret)


@token_app.command(
    "list", epilog=examples("semgrad-guard review token list", "semgrad-guard review token list --policy policy.yaml")
)
def list_tokens(url: Url = None, policy: PolicyFile = None) -> None:
    """List the tokens, without their secrets."""
    from semgrad_guard.review.access import Tokens  # loads SQLAlchemy

    table = plain_table("id", "name", "user", "allows", "expires", "last used", "revoked")
    for token in Tokens(queue_at(url, policy).database).all():
        moments = (token.expires_at, token.used_at, token.revoked_at)
        shown = [f"{moment:%Y-%m-%d %H:%M}" if moment else "-" for moment in moments]
        table.add_row(token.id, token.name, token.user, ", ".join(sorted(token.scopes)), *shown)
    _console.print(table, markup=False)


@token_app.command(
    "revoke",
    epilog=examples(
        "semgrad-guard review token revoke 3f9c21aa", "semgrad-guard review token revoke 3f9c21aa --policy policy.yaml"
    ),
)
def revoke_token(
    token: Annotated[str, typer.Argument(help="The token's id.")], url: Url = None, policy: PolicyFile = None
) -> None:
    """Revoke a token for good."""
    from semgrad_guard.review.access import Tokens  # loads SQLAlchemy

    Tokens(queue_at(url, policy).database).revoke(token)


@webhook_app.command(
    "add",
    epilog=examples(
        "semgrad-guard review webhook add chat https://example.com/hooks",
        "semgrad-guard review webhook add ci http://127.0.0.1:9000 --event submit",
    ),
)
def add_hook(
    name: Annotated[str, typer.Argument(help="Name of the webhook.")],
    address: Annotated[str, typer.Argument(help="URL to send events to.")],
    event: Annotated[list[str] | None, typer.Option(help="`verdict` or `submit`; repeat for both.")] = None,
    allow_plain_http: Annotated[bool, typer.Option("--allow-plain-http", help="Allow http to other machines.")] = False,
    allow_host: Annotated[
        str | None, typer.Option(help="Allow this host although it is link-local or a metadata service.")
    ] = None,
    url: Url = None,
    policy: PolicyFile = None,
) -> None:
    """Send new events to an address, and print the secret that signs each message; it cannot be shown again."""
    from semgrad_guard.review.webhooks import add_webhook  # loads SQLAlchemy

    hook = add_webhook(
        queue_at(url, policy),
        name,
        address,
        event or ["verdict"],
        allow_plain=allow_plain_http,
        allowed_host=allow_host,
    )
    Console(stderr=True).print("signing secret; it is not shown again:")
    print(hook.secret)


@webhook_app.command(
    "list",
    epilog=examples("semgrad-guard review webhook list", "semgrad-guard review webhook list --policy policy.yaml"),
)
def list_hooks(url: Url = None, policy: PolicyFile = None) -> None:
    """List the webhooks, without their secrets."""
    from semgrad_guard.review.store.outbox import hooks  # loads SQLAlchemy
    from semgrad_guard.review.webhooks import shown_url  # loads SQLAlchemy

    table = plain_table("name", "address", "events")
    for hook in queue_at(url, policy).database.read(hooks):
        table.add_row(hook.name, shown_url(hook.url), ", ".join(hook.events))
    _console.print(table, markup=False)


@webhook_app.command(
    "remove",
    epilog=examples(
        "semgrad-guard review webhook remove chat", "semgrad-guard review webhook remove chat --policy policy.yaml"
    ),
)
def remove_hook(
    name: Annotated[str, typer.Argument(help="Name of the webhook.")], url: Url = None, policy: PolicyFile = None
) -> None:
    """Stop sending events to an address."""
    queue_at(url, policy).unsubscribe(name)


def _accounts(url: str | None, policy: Path | None) -> Accounts:
    require("argon2", extra="review")
    from semgrad_guard.review.access import Accounts  # loads SQLAlchemy

    return Accounts(queue_at(url, policy).database)


def _password(*, from_stdin: bool) -> str:
    if from_stdin:
        return sys.stdin.readline().rstrip("\n")
    entered: str = typer.prompt("Password", hide_input=True, confirmation_prompt=True)
    return entered
