"""An action of your own: a doubtful answer about bills opens a ticket instead of ending in a refusal.

Every stage of a guard is a small protocol (`semgrad_guard.ports`), so an action needs two pieces and no plug-in system:
a decider around the policy's own that chooses it, and something that carries it out. What is carried out by somebody
else later is a `ReviewQueue`: here, a help desk. The scorer is a stand-in without a model, so this runs in a moment:
`python examples/custom_action.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from semgrad_guard import Confidence, Decision, Exchange, Guard, Score
from semgrad_guard.flow import Abstain, Fingerprint, HumanReview, ReviewId

if TYPE_CHECKING:
    import threading
    from collections.abc import Sequence

    from semgrad_guard.errors import ScoringError
    from semgrad_guard.flow import Attempt, Failure, Progress, Ruling
    from semgrad_guard.ports import Decider

POLICY = {
    "version": 1,
    "scorer": {"model": "none"},  # given in code below
    "accept": 0.7,
    "otherwise": "abstain",
    "messages": {"abstain": "I am not sure enough to answer that."},
}


@dataclass(frozen=True)
class TicketsFor:
    """The policy's decider, except that a refusal of an answer with this tag becomes a ticket."""

    inner: Decider
    tag: str

    def decide(self, exchange: Exchange, score: Score, confidence: Confidence, progress: Progress) -> Decision:
        """Return the policy's decision, or the ticket."""
        return self._with_ticket(exchange, self.inner.decide(exchange, score, confidence, progress))

    def decide_failure(self, exchange: Exchange, failure: Failure, progress: Progress) -> Decision:
        """Return what the policy does with an answer that could not be judged, or the ticket."""
        if failure.stage == HumanReview.action:  # the help desk itself failed
            return self.inner.decide_failure(exchange, failure, progress)
        return self._with_ticket(exchange, self.inner.decide_failure(exchange, failure, progress))

    def best(self, exchange: Exchange, decision: Decision, progress: Progress) -> Exchange:
        """Return the attempt that the policy thinks best."""
        return self.inner.best(exchange, decision, progress)

    def _with_ticket(self, exchange: Exchange, decision: Decision) -> Decision:
        if self.tag not in exchange.tags or not isinstance(decision.step, Abstain):
            return decision
        step = HumanReview(message="Our help desk will answer you by mail.")
        return replace(decision, step=step, rule=f"ticket_for_{self.tag}")


@dataclass
class HelpDesk:
    """Opens tickets; a real one would call the ticket system here."""

    tickets: dict[ReviewId, str] = field(default_factory=dict[ReviewId, str])

    def submit(
        self,
        exchange: Exchange,
        decision: Decision,
        attempts: Sequence[Attempt] = (),  # noqa: ARG002 - the protocol's argument
    ) -> ReviewId:
        """Open a ticket."""
        number = ReviewId(f"TICKET-{len(self.tickets) + 1}")
        self.tickets[number] = f"{exchange.question} (the model said {exchange.answer!r}; {decision.why})"
        return number

    def wait(self, review_id: ReviewId, timeout_s: float) -> Ruling | None:  # noqa: ARG002 - the protocol's arguments
        """Nobody waits for a help desk."""
        return None


class HedgingScorer:
    """Doubts answers that hedge; it stands in for a model that reads its own gradients."""

    name = "hedging words"

    def fingerprint(self, *, proxy: bool = False) -> Fingerprint:
        """Return what the scores depend on."""
        return Fingerprint(model="none", dtype="none", template="none", settings="hedging words", proxy=proxy)

    def score(
        self, exchange: Exchange, *, timeout_s: float | None = None, cancel: threading.Event | None = None
    ) -> Score:
        """Return a high score for an answer that hedges."""
        del timeout_s, cancel  # the score is there at once
        value = 0.8 if "maybe" in exchange.answer.lower() else 0.1
        return Score(
            method="hedging", value=value, signals={"hedging": value}, fingerprint=self.fingerprint(), model=self.name
        )

    def score_batch(
        self,
        exchanges: Sequence[Exchange],
        *,
        timeout_s: float | None = None,
        cancel: threading.Event | None = None,
    ) -> list[Score | ScoringError]:
        """Return the scores, in order."""
        return [self.score(exchange, timeout_s=timeout_s, cancel=cancel) for exchange in exchanges]


class OneMinus:
    """Takes one minus the score for the confidence; a profile would have learned it from labelled answers."""

    def confidence(self, exchange: Exchange, score: Score) -> Confidence:  # noqa: ARG002 - the protocol's argument
        """Return the confidence."""
        return Confidence(value=1 - score.value, why="one minus the score")

    def with_span_confidences(self, score: Score) -> Score:
        """Return the score as it is: it has no sentences."""
        return score


def main() -> None:
    """Ask three questions."""
    desk = HelpDesk()
    parts = Guard.from_yaml(POLICY, scorer=HedgingScorer()).parts
    guard = Guard(replace(parts, calibrator=OneMinus(), decider=TicketsFor(parts.decider, "billing"), queue=desk))

    for question, answer, tags in (
        ("When do you open?", "At nine.", ()),
        ("Do you sell stamps?", "Maybe, at the counter.", ()),
        ("Why was I charged twice?", "Maybe by mistake.", ("billing",)),
    ):
        outcome = guard.run(Exchange(prompt=question, question=question, answer=answer, tags=frozenset(tags)))
        print(f"{question}\n  {outcome.text}")
        print(f"  {outcome.status} by {outcome.decision.rule}, {outcome.review_id or 'no ticket'}")
    for number, text in desk.tickets.items():
        print(f"{number}: {text}")


if __name__ == "__main__":
    main()
