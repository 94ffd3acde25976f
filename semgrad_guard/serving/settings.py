"""What a server serves, where it listens, its limits, and its replicas."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from semgrad_guard.errors import SemGradGuardError
from semgrad_guard.review.addresses import Listening

if TYPE_CHECKING:
    from collections.abc import Mapping

    from semgrad_guard.policy import AcceptOption, PolicySource

StreamMode = Literal["auto", "buffer", "sentence", "annotate"]
"""How answers are streamed.

- `buffer`: the whole answer is judged before its first word is sent.
- `sentence`: each sentence is sent once the answer up to there is good enough.
- `annotate`: words are sent as they come; the last chunk has the confidence, and nothing is held back.
- `auto`: `buffer` where the policy may change an answer, `annotate` where it only measures.
"""


class ServerSettingError(SemGradGuardError, ValueError):
    """Settings of the server that cannot be meant, or that would be unsafe."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one caller, and all together, may ask for."""

    body_bytes: int = 8 * 1024 * 1024
    """Longest body of a request."""
    body_s: float = 30.0
    """Longest time for a request's body to arrive."""
    tokens: int | None = None
    """Most tokens of one prompt and its answer; `None` leaves it to the model's window."""
    seconds: float = 120.0
    """Longest time for one request."""
    upstream_s: float | None = None
    """Longest wait for an upstream's answer; by default half of `seconds` where a fallback may answer in its place."""
    requests: int = 256
    """Most requests at once; beyond that they are told to come again."""
    waiting: int = 512
    """Most exchanges that wait to be scored."""
    batch: int = 32
    """Most exchanges that are scored together."""
    window_s: float = 0.01
    """Seconds for which the first exchange of a batch waits for others."""
    shutdown_s: float = 60.0
    """Seconds in which accepted requests may finish after the server was told to stop."""

    def __post_init__(self) -> None:
        """Refuse limits that let nothing through."""
        for name in ("body_bytes", "body_s", "seconds", "requests", "waiting", "batch"):
            if getattr(self, name) <= 0:
                msg = f"limit {name!r} is {getattr(self, name)!r}: give a number above 0"
                raise ServerSettingError(msg)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """What a server serves.

    Raises:
        ServerSettingError: settings that exclude each other.
    """

    model: object | None = None
    """Local model that writes answers and scores them in one pass: anything that `load_model` takes."""
    scorer: object | None = None
    """Local model that scores answers of others; by default the one that writes, or the policy's."""
    profile: str | None = None
    """Profile in place of the policy's."""
    policy: PolicySource | None = None
    """Policy file or its content: what happens to doubtful answers."""
    accept: AcceptOption | None = None
    """In place of a policy: answers with a lower confidence, or without one, are held back."""
    upstream: str | None = None
    """Address of an OpenAI-compatible server that writes the answers, such as `http://127.0.0.1:8000/v1`."""
    upstream_key: str | None = field(default=None, repr=False)
    """Key for the upstream; by default the caller's own is passed on."""
    upstream_model: str | None = None
    """The model to ask there, whatever callers name."""
    fallbacks: tuple[tuple[str, str], ...] = ()
    """Names that the policy's `fallback_model` uses, and the addresses of the servers."""
    own_weights: bool = False
    """Whether the upstream runs the scorer's very weights, so that its answers are the scorer's own."""
    stream: StreamMode = "auto"
    """How answers are streamed."""
    max_tokens: int = 512
    """Most tokens of an answer of `model`, where a caller names no number."""
    warm_up: bool = True
    """Whether the models are loaded when the server starts, and not at the first request."""
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        """Refuse what cannot be meant together."""
        if self.model is not None and self.upstream is not None:
            msg = "`model` and `upstream` both write answers: give one, and `scorer` for a model that only scores"
            raise ServerSettingError(msg)
        if self.model is not None and self.scorer is not None:
            msg = "`model` scores what it writes: give `scorer` only with `upstream` or alone"
            raise ServerSettingError(msg)
        if self.policy is not None and self.accept is not None:
            msg = "`policy` and `accept` are given together: a policy says itself what it accepts"
            raise ServerSettingError(msg)
        if self.own_weights and self.upstream is None:
            msg = "`own_weights` is about an upstream: give `upstream` too"
            raise ServerSettingError(msg)

    @property
    def upstream_s(self) -> float:
        """Longest wait for the upstream's answer, so that its fallbacks have time left."""
        limits = self.limits
        return limits.upstream_s or (limits.seconds / 2 if self.fallbacks else limits.seconds)

    @property
    def has_policy(self) -> bool:
        """Whether answers may be held back, so that callers are told of decisions."""
        return self.policy is not None or self.accept is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Replicas:
    """How many processes score, and what each of them gets.

    Raises:
        ServerSettingError: numbers that cannot be meant.
    """

    least: int = 1
    """Replicas that always run."""
    most: int | None = None
    """Most replicas under load; by default as many as `least`."""
    gpus: float = 0.0
    """GPUs of each replica; 0.5 puts two on one GPU."""
    cpus: float = 1.0
    """Processor cores that each replica counts for."""
    fronts: int = 1
    """Processes that answer HTTP. LiteLLM's two calls about one answer have to reach the same one."""

    def __post_init__(self) -> None:
        """Refuse numbers that cannot be meant."""
        for name in ("least", "fronts"):
            if getattr(self, name) < 1:
                msg = f"{name} is {getattr(self, name)}: give at least 1"
                raise ServerSettingError(msg)
        if self.most is not None and self.most < self.least:
            msg = f"at most {self.most} replicas are fewer than the least, {self.least}: give as many or more"
            raise ServerSettingError(msg)
        if self.gpus < 0 or self.cpus < 0:
            msg = f"a replica cannot have {min(self.gpus, self.cpus)} GPUs or cores: give 0 or more"
            raise ServerSettingError(msg)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerListening(Listening):
    """Where a server listens.

    Raises:
        ServerSettingError: other machines could connect, and nobody needs a key.
    """

    port: int = 8788
    has_keys: bool = False
    """Whether callers need a key."""

    def __post_init__(self) -> None:
        """Refuse to serve everyone on the network."""
        self.check_certificate(ServerSettingError)
        if not (self.is_local or self.has_keys):
            msg = (
                f"other machines can reach {self.host}, and anyone there could use the models: make a key with "
                "`semgrad-guard keys add NAME` and give --keys keys.json, or listen on 127.0.0.1"
            )
            raise ServerSettingError(msg)


def settings_of(args: Mapping[str, Any]) -> tuple[ServerSettings, Replicas, Path | None]:
    """Return what a configuration file says: what is served, the replicas, and the file of keys.

    Its names are those of `ServerSettings`, with `limits` (see `Limits`), `replicas` (see `Replicas`), `fallbacks` as a
    mapping of names to addresses, and `keys`. The upstream's key comes from the variable `SEMGRAD_UPSTREAM_KEY`.

    Raises:
        ServerSettingError: a name is not known.
    """
    given = dict(args)
    limits, replicas, keys = (given.pop(name, None) for name in ("limits", "replicas", "keys"))
    fallbacks, policy = given.pop("fallbacks", None) or {}, given.pop("policy", None)
    settings = _made(
        ServerSettings,
        {
            "upstream_key": os.environ.get("SEMGRAD_UPSTREAM_KEY"),
            **given,
            "policy": Path(policy) if isinstance(policy, str) else policy,
            "fallbacks": tuple(fallbacks.items()),
            "limits": _made(Limits, limits or {}),
        },
    )
    return settings, _made(Replicas, replicas or {}), Path(keys) if keys else None


T = TypeVar("T", ServerSettings, Limits, Replicas)


def _made(kind: type[T], given: Mapping[str, Any]) -> T:
    known = [one.name for one in fields(kind)]
    unknown = sorted(set(given) - set(known))
    if unknown:
        msg = f"{kind.__name__} has no {', '.join(map(repr, unknown))}: it has {', '.join(known)}"
        raise ServerSettingError(msg)
    return kind(**given)
