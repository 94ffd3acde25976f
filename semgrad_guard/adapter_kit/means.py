"""Whether a guard was given what the steps of its policy act with: said when it is built, not at the first answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from semgrad_guard.errors import OptionError, StepUnavailableError

if TYPE_CHECKING:
    from collections.abc import Collection

    from semgrad_guard.guard import Guard
    from semgrad_guard.policy.needs import Need


@dataclass(frozen=True, slots=True, kw_only=True)
class Means:
    """What an entry point of an adapter has for the steps that answer again."""

    asks_again: bool = True
    """Whether it can ask for another answer at all."""
    retrieves: bool = False
    """Whether it can retrieve again without being given a retriever by name."""
    retrievers: Collection[str] = ()
    """Names of the retrievers that it was given."""
    fallbacks: Collection[str] = ()
    """Names of the fallback models that it was given."""
    makes_models: bool = False
    """Whether it makes fallback models from names such as `openai:gpt-4o`."""
    may_have_more: bool = False
    """Whether it may have been given fallback models and retrievers that no step names."""
    advice: str = "wrap(chain, {})"
    """How it is given what is missing; `{}` stands for the argument, which may be empty."""

    def has(self, need: Need) -> bool:
        """Return whether a step can act."""
        if need.what in {"chain", "retrieval"} or not self.asks_again:
            return self.asks_again and (self.retrieves or need.what == "chain")
        given = self.retrievers if need.what == "retriever" else self.fallbacks
        return need.name in given or (self.makes_models and need.is_made_by_name)


def check_means(guard: Guard, means: Means) -> None:
    """Check that every step of a guard's policy can act, and that nothing was given that no step names.

    A guard with a decider of the caller's own, which does not say what it needs, is not checked.

    Raises:
        StepUnavailableError: a step lacks something; the error says how it is given.
        OptionError: a retriever or fallback model was given that the policy does not name.
    """
    decider: Any = guard.parts.decider
    needs: tuple[Need, ...] | None = getattr(decider, "needs", None)
    if needs is None:
        return
    for option, what, given in (
        ("fallbacks", "fallback", means.fallbacks),
        ("retrievers", "retriever", means.retrievers),
    ):
        named = sorted({need.name for need in needs if need.what == what})
        surplus = sorted(set(given) - set(named))
        if surplus and not means.may_have_more:
            allowed = f"the names in the policy's steps ({', '.join(named) or 'none'})"
            raise OptionError(option, surplus, allowed)
    missing = [need for need in needs if not means.has(need)]
    if missing:
        said = [f"{need.rule} needs {means.advice.format(need.argument).replace(', )', ')')}" for need in missing]
        msg = f"{'; '.join(said)}: without it the step can't act; or take the step out of the policy"
        raise StepUnavailableError(msg)
