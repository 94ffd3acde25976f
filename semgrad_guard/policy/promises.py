"""The error rates that a policy promises: for which answers, and with what probability a promise may fail.

A policy may set several error rates: at its top level and in overrides. Each is a promise about the answers that its
rule decides, so it is computed only from labelled answers of that kind: those with at least one of the override's tags
and no tag of an earlier override that sets `accept`. The top level decides the remaining answers.

All promises of a policy must hold together, so each is computed with its `delta` divided by their number (Bonferroni).
The probability that any of them fails is then at most `delta`, or the largest `delta` where they differ.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from semgrad_guard.policy.fields import listed
from semgrad_guard.policy.model import RiskTarget

if TYPE_CHECKING:
    from semgrad_guard.policy.model import Policy


@dataclass(frozen=True, slots=True, kw_only=True)
class Promise:
    """The highest error rate allowed among accepted answers of one kind."""

    rule: str
    """`accept`, or for example `overrides[0].accept`."""
    max_error_rate: float
    delta: float
    """Probability with which this promise may fail, already divided among all promises."""
    any_of: frozenset[str] = frozenset()
    """Only answers with at least one of these tags; empty for all answers."""
    none_of: frozenset[str] = frozenset()
    """Only answers without any of these tags, which an earlier rule decides."""

    @property
    def answers(self) -> str:
        """Describe the answers that the promise covers."""
        kinds = [f"tagged {listed(sorted(self.any_of), 'or')}"] if self.any_of else []
        kinds += [f"not tagged {listed(sorted(self.none_of), 'or')}"] if self.none_of else []
        return " ".join(["answers", listed(kinds)]).strip()


def promises(policy: Policy) -> dict[str, Promise]:
    """Return the promises of a policy by rule; a rule left without any answers makes no promise."""
    kinds: list[tuple[str, RiskTarget, frozenset[str], frozenset[str]]] = []
    taken: frozenset[str] = frozenset()
    for number, override in enumerate(policy.overrides):
        tags = override.match.tags or frozenset()
        if isinstance(override.accept, RiskTarget) and not tags <= taken:
            kinds.append((f"overrides[{number}].accept", override.accept, tags, taken))
        if override.accept is not None and override.match.metadata is None:
            taken |= tags
    if isinstance(policy.accept, RiskTarget):
        kinds.append(("accept", policy.accept, frozenset(), taken))
    return {
        rule: Promise(
            rule=rule,
            max_error_rate=target.max_error_rate,
            delta=target.delta / len(kinds),
            any_of=any_of,
            none_of=none_of,
        )
        for rule, target, any_of, none_of in kinds
    }
