"""Error rates that a policy promises: for which answers, and with which share of the risk that a promise fails.

A policy may ask for several error rates: at its top and in overrides. Each is a promise about the answers that it
decides for, so each is computed from the labelled answers of that kind alone: those that carry at least one of the
override's tags and none of an earlier override that sets `accept`. The top decides for what is left.

All promises of a policy are to hold together. So each is computed with its `delta` divided by their number
(Bonferroni): that one of them fails has at most the probability `delta`, the largest where they differ.
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
    """An error rate that accepted answers of one kind keep."""

    rule: str
    """`accept`, or `overrides[0].accept`."""
    max_error_rate: float
    delta: float
    """Probability with which this promise may fail: its share."""
    any_of: frozenset[str] = frozenset()
    """The answers carry at least one of these tags; empty where any will do."""
    none_of: frozenset[str] = frozenset()
    """The answers carry none of these tags: an earlier rule decides for those."""

    @property
    def answers(self) -> str:
        """Return in words which answers it is about."""
        kinds = [f"tagged {listed(sorted(self.any_of), 'or')}"] if self.any_of else []
        kinds += [f"not tagged {listed(sorted(self.none_of), 'or')}"] if self.none_of else []
        return " ".join(["answers", listed(kinds)]).strip()


def promises(policy: Policy) -> dict[str, Promise]:
    """Return the promises of a policy by rule; a rule for which no answer is left makes none."""
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
