"""The three strengths of a guard: it measures, it holds answers back, or it routes by a policy of the user's own."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from semgrad_guard.errors import OptionError
from semgrad_guard.policy.load import policy_from
from semgrad_guard.policy.model import Policy

PolicySource = str | Path | Mapping[str, object] | Policy
"""A policy file, its content, or a policy that was read before."""
AcceptOption = float | Mapping[str, float]
"""The confidence that an answer needs, or `{"max_error_rate": 0.1, "delta": 0.05}` to have it computed."""

_ALLOWED = "a number from 0 to 1, or {'max_error_rate': 0.1, 'delta': 0.05}"


def policy_of(source: PolicySource | None, accept: AcceptOption | None) -> Policy:
    """Return the policy of a guard by its strength: with neither argument it measures.

    Args:
        source: a policy of the user's own, by which the guard routes.
        accept: the confidence below which answers are held back.

    Raises:
        OptionError: both are given, or `accept` is no confidence.
        PolicyFileError: the policy has a mistake.
    """
    if source is None:
        return measuring() if accept is None else holding_back(accept)
    if accept is not None:
        raise OptionError("accept+policy", "given together", "one of them: a policy has its own `accept`")
    return policy_from(source)


def measuring() -> Policy:
    """Return the policy of `SemGradGuard()`: every answer passes as it is, and its findings say how sure it is."""
    policy = Policy(accept=0, otherwise="give", on_error="give", on_uncalibrated="give")
    return policy.from_source("measuring", Path())


def holding_back(accept: AcceptOption) -> Policy:
    """Return the policy of `SemGradGuard(accept=0.7)`: what is less sure, or was not judged, is held back.

    Raises:
        OptionError: `accept` is no confidence.
    """
    given: Any = accept  # whatever a program without type checks may give
    number = float(given) if not isinstance(given, bool) and isinstance(given, Real) else given
    try:
        policy = Policy.model_validate({"accept": number})
    except ValidationError:
        raise OptionError("accept", accept, _ALLOWED) from None
    return policy.from_source(f"accepting from {accept}", Path())
