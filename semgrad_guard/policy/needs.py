"""What the steps of a policy need from the code around it: a chain to ask again, retrievers and fallback models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from semgrad_guard.policy.steps import FallbackModelStep, RetryRetrievalStep

if TYPE_CHECKING:
    from semgrad_guard.policy.model import Policy


@dataclass(frozen=True, slots=True)
class Need:
    """A step that can do nothing unless the code gives it something."""

    rule: str
    """The step, such as `escalate[0].retry_retrieval`."""
    what: Literal["chain", "retrieval", "retriever", "fallback"]
    """`chain`: the chain, to ask it again; `retrieval`: the chain's own retriever as well; `retriever`, `fallback`: one
    by its name."""
    name: str = ""
    """Name of the retriever or fallback model."""

    @property
    def is_made_by_name(self) -> bool:
        """Whether LangChain makes the model from its name, such as `openai:gpt-4o`."""
        return self.what == "fallback" and ":" in self.name

    @property
    def argument(self) -> str:
        """How `wrap` is given it."""
        if self.what == "chain" or self.is_made_by_name:
            return ""
        return "retriever=..." if self.what == "retrieval" else f"{self.what}s={{{self.name!r}: ...}}"


def needs_of(policy: Policy) -> tuple[Need, ...]:
    """Return what the steps of a policy need, in the order of the file."""
    found: list[Need] = []
    for place, entry in policy.escalation_steps():
        rule = f"{place}.{entry.name}"
        if isinstance(entry.spec, FallbackModelStep):
            found.append(Need(rule, "fallback", entry.spec.name))
        elif isinstance(entry.spec, RetryRetrievalStep) and entry.spec.retriever:
            found.append(Need(rule, "retriever", entry.spec.retriever))
        elif isinstance(entry.spec, RetryRetrievalStep):
            found.append(Need(rule, "chain" if entry.spec.configurable else "retrieval"))
    return tuple(found)


def needs_in_words(policy: Policy) -> list[str]:
    """Explain what the code must give, line by line; nothing where the policy needs nothing."""
    lines = [
        f"  - wrap({', '.join(filter(None, ['chain', need.argument]))}) [{need.rule}]" for need in needs_of(policy)
    ]
    return ["Needs, to answer again:", *lines] if lines else []
