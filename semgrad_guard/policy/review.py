"""The policy's `review` section: its keys, and their explanation in plain words."""

from __future__ import annotations

from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from semgrad_guard.policy.fields import Frozen, Probability, Seconds, Text, Word, Words, listed, mask_url

Days = Annotated[float, Field(gt=0, le=36_500)]
Weight = Annotated[float, Field(ge=0, le=1000)]
INTERRUPT = "interrupt"
"""In place of a queue's URL: the graph or workflow around the guard stops and asks a person itself."""
NO_QUEUE = (
    "asks a person, but the policy names no queue: add `review: {url: sqlite:///review.db}`, or "
    "`review: {url: interrupt}` where a LangGraph graph or a LlamaIndex workflow stops for the person itself"
)
"""What is wrong with a policy that asks a person and has no `review.url`."""
_SERVERS_OWN = ("at_deadline", "least_deadline_s", "lease_s", "tag_weights", "retention_days")
"""Keys that a remote review site sets for itself."""


def _place(url: str) -> str:
    if url == INTERRUPT:
        return url
    scheme, separator, rest = url.partition("://")
    dialect = scheme.partition("+")[0]
    if separator and dialect in {"http", "https"}:
        return _site(url, is_plain=dialect == "http")
    if not separator or dialect not in {"sqlite", "postgresql"} or (dialect == "postgresql" and not rest):
        raise PydanticCustomError(
            "url",
            "must be a database URL, sqlite:///review.db or postgresql+psycopg://user:password@host/database, "
            "the address of a review site, https://review.example.com, or `interrupt`",
        )
    return url


def _site(url: str, *, is_plain: bool) -> str:
    try:
        parts = urlsplit(url)
        host = parts.hostname
    except ValueError:
        parts, host = urlsplit(""), None
    if not host or parts.username is not None or parts.query or parts.fragment:
        raise PydanticCustomError(
            "url", "must be the plain address of a review site, https://review.example.com; its token goes to `token`"
        )
    if is_plain and host not in {"localhost", "127.0.0.1", "::1"}:
        raise PydanticCustomError(
            "url", "must start with https: otherwise answers and the token would cross the network unencrypted"
        )
    return url


class ReuseVerdicts(Frozen):
    """When an earlier verdict is given again for the same question."""

    mode: Literal["exact", "similar"] = "exact"
    """`exact`: the same question, ignoring case and spacing; `similar`: also a question with similar text."""
    threshold: Probability = 0.9
    """Similarity that `similar` requires, from 0 to 1: the share of three-letter groups that both questions contain."""
    expires_days: Days | None = None
    """Older verdicts are not used; if left out, verdicts do not expire."""
    tags: Words | None = None
    """Only for questions with one of these tags, which mean the same whoever asks."""
    same_metadata: Words | None = None
    """Only where these metadata fields, for example `user_id`, have the same values. Without `tags` or `same_metadata`
    no verdict is given again: "What is my balance?" has another answer for each who asks."""

    @property
    def is_scoped(self) -> bool:
        """True when something says which questions mean the same."""
        return bool(self.tags or self.same_metadata)

    @model_validator(mode="after")
    def _means_something(self) -> Self:
        if "threshold" in self.model_fields_set and self.mode == "exact":
            raise PydanticCustomError(
                "reuse", "needs `mode: similar`: `exact` measures no similarity", {"path": ("threshold",)}
            )
        return self


class ReviewSettings(Frozen):
    """The review queue: where answers wait for people, and when earlier verdicts are used again."""

    url: Annotated[Annotated[Text, AfterValidator(_place)] | None, Field(repr=False)] = None
    """Database URL, the https address of a review site, or `interrupt` where a graph or workflow asks the person; a
    relative SQLite path starts at the working directory. If left out, nobody is asked and no queue is made."""
    token: Annotated[Text | None, Field(repr=False)] = None
    """API token for a review site, best given as ${NAME}; `semgrad-guard review token add` creates one."""
    deadline_s: Seconds | None = None
    """Seconds until a verdict is due; if left out, answers wait without a limit."""
    at_deadline: Literal["expire", "approve", "reject"] = "expire"
    """What happens to an answer at its deadline: it gets no verdict, is given as it is, or is held back for good."""
    lease_s: Seconds = 900.0
    """Seconds for which an answer stays reserved for the reviewer who claimed it."""
    tag_weights: dict[Word, Weight] = Field(default_factory=dict[Word, Weight])
    """Tag -> factor by which doubtful answers with this tag are judged earlier; 1 for other tags."""
    least_deadline_s: Seconds | None = None
    """Shortest deadline that programs may ask for at the review site; if left out, where a deadline approves, its own
    deadline or an hour."""
    retention_days: Days | None = None
    """Days after which `review serve` erases the texts of settled answers; if left out, never."""
    reuse_verdicts: ReuseVerdicts | None = None
    """When an earlier verdict is given again for the same question; if left out, never."""

    @model_validator(mode="after")
    def _hangs_together(self) -> Self:
        if self.is_site and self.token is None:
            raise PydanticCustomError(
                "token",
                "needs a token for that site: token: ${SEMGRAD_REVIEW_TOKEN}, created there by "
                "`semgrad-guard review token add`",
                {"path": ("url",)},
            )
        if self.token is not None and not self.is_site:
            raise PydanticCustomError(
                "token",
                "is for a review site's https address; a database has its password in the url",
                {"path": ("token",)},
            )
        for key in _SERVERS_OWN:
            if self.is_site and key in self.model_fields_set:
                raise PydanticCustomError("site", "is set at the review site, in that site's policy", {"path": (key,)})
        if "at_deadline" in self.model_fields_set and self.deadline_s is None:
            raise PydanticCustomError(
                "deadline", "needs `deadline_s`: without it there is no deadline", {"path": ("at_deadline",)}
            )
        for key in sorted(self.model_fields_set - {"url"} if self.queue_url is None else ()):
            raise PydanticCustomError(
                "queue", "needs a queue: add `url: sqlite:///review.db` beside it", {"path": (key,)}
            )
        return self

    @property
    def is_site(self) -> bool:
        """True when the queue is reached through the API of a review site."""
        return self.url is not None and self.url.startswith(("https://", "http://"))

    @property
    def queue_url(self) -> str | None:
        """Where answers wait for people; `None` where no queue is named."""
        return None if self.url == INTERRUPT else self.url


_AT_DEADLINE = {
    "expire": "it ends without a verdict, and the caller reads the message of an answer that is held back",
    "approve": "the answer is given as it is",
    "reject": "the answer is held back for good",
}


def review_in_words(review: ReviewSettings) -> list[str]:
    """Explain the review settings line by line, with passwords hidden."""
    if review.url is None:
        return []
    if review.queue_url is None:
        return ["The graph or workflow around the guard stops for a person; there is no queue."]
    return _queue_in_words(review, mask_url(review.queue_url))


def _queue_in_words(review: ReviewSettings, url: str) -> list[str]:
    lines = [f"Answers wait for people in {url}."]
    if review.is_site:
        lines[0] = f"Answers wait for people at the review site {review.url}, which sets its own leases and rules."
    if review.deadline_s is not None:
        if review.is_site:
            lines.append(f"Without a verdict after {_span(review.deadline_s)} that site decides. [review.deadline_s]")
        else:
            end = _AT_DEADLINE[review.at_deadline]
            lines.append(f"Without a verdict after {_span(review.deadline_s)}, {end}. [review.deadline_s]")
    return [*lines, *_upkeep_in_words(review)]


def _upkeep_in_words(review: ReviewSettings) -> list[str]:
    lines: list[str] = []
    if review.least_deadline_s is not None:
        lines.append(f"Programs may ask for deadlines from {_span(review.least_deadline_s)}. [review.least_deadline_s]")
    if review.lease_s != ReviewSettings().lease_s:
        lines.append(f"A claimed answer is reserved for its reviewer for {_span(review.lease_s)}. [review.lease_s]")
    if review.tag_weights:
        weights = listed([f"{tag} {weight:g} times" for tag, weight in sorted(review.tag_weights.items())])
        lines.append(f"Doubt counts more or less for answers with these tags: {weights}. [review.tag_weights]")
    if review.retention_days is not None:
        lines.append(
            f"Texts of settled answers are erased after {review.retention_days:g} days. [review.retention_days]"
        )
    if review.reuse_verdicts is not None:
        lines.append(f"{_reuse(review.reuse_verdicts)} [review.reuse_verdicts]")
    return lines


def _reuse(reuse: ReuseVerdicts) -> str:
    if not reuse.is_scoped:
        return "No earlier verdict is given again: name `tags` or `same_metadata` to say which questions mean the same."
    question = "the same question"
    if reuse.mode == "similar":
        question += f", or one with a similarity of at least {reuse.threshold:g},"
    only = f", if it is tagged {listed(sorted(reuse.tags), 'or')}" if reuse.tags else ""
    if reuse.same_metadata:
        only += f", if its metadata have the same {listed(sorted(reuse.same_metadata))}"
    until = f", for {reuse.expires_days:g} days" if reuse.expires_days is not None else ""
    given = f"An answer that a person approved or wrote for {question} is given again without asking"
    return f"{given}{only}{until}; the passages must be the same."


def _span(seconds: float) -> str:
    for length, unit in ((86_400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * length and seconds % length == 0:
            return f"{seconds / length:g} {unit}"
    return f"{seconds:g} s"
