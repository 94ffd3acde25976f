"""The section `review` of a policy in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from semgrad_guard.policy.fields import listed, mask_url
from semgrad_guard.policy.review_section import ReviewSettings

if TYPE_CHECKING:
    from semgrad_guard.policy.review_section import ReuseVerdicts

_AT_DEADLINE = {
    "expire": "it ends without a verdict, and the caller reads the message of an answer that is held back",
    "approve": "the answer is given as it is",
    "reject": "the answer is held back for good",
}


def review_in_words(review: ReviewSettings) -> list[str]:
    """Return where answers wait for people and what their verdicts are good for, line by line; no passwords."""
    lines = [f"Answers wait for people in {mask_url(review.url)}."]
    if review.is_site:
        lines[0] = f"Answers wait for people at the review site {review.url}, which has leases and rules of its own."
    if review.deadline_s is not None:
        if review.is_site:
            lines.append(f"Without a verdict after {_span(review.deadline_s)} that site decides. [review.deadline_s]")
        else:
            end = _AT_DEADLINE[review.at_deadline]
            lines.append(f"Without a verdict after {_span(review.deadline_s)}, {end}. [review.deadline_s]")
    if review.lease_s != ReviewSettings().lease_s:
        lines.append(f"Who takes an answer keeps it from others for {_span(review.lease_s)}. [review.lease_s]")
    if review.tag_weights:
        weights = listed([f"{tag} {weight:g} times" for tag, weight in sorted(review.tag_weights.items())])
        lines.append(f"How much doubt hurries an answer is multiplied by its tags: {weights}. [review.tag_weights]")
    if review.retention_days is not None:
        lines.append(
            f"Texts of settled answers are erased after {review.retention_days:g} days. [review.retention_days]"
        )
    if review.reuse_verdicts is not None:
        lines.append(f"{_reuse(review.reuse_verdicts)} [review.reuse_verdicts]")
    return lines


def _reuse(reuse: ReuseVerdicts) -> str:
    question = "the same question"
    if reuse.mode == "similar":
        question += f", or one that reads alike to at least {reuse.threshold:g},"
    only = f", if it is tagged {listed(sorted(reuse.tags), 'or')}" if reuse.tags else ""
    until = f", for {reuse.expires_days:g} days" if reuse.expires_days is not None else ""
    return f"What a person approved or wrote for {question} is given again in place of asking{only}{until}."


def _span(seconds: float) -> str:
    for length, unit in ((86_400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * length and seconds % length == 0:
            return f"{seconds / length:g} {unit}"
    return f"{seconds:g} s"
