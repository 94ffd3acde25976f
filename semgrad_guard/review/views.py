"""Items as JSON: what the command line prints, the API answers and webhooks carry."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, JsonValue

from semgrad_guard.flow import Verdict
from semgrad_guard.review.store.document import Document
from semgrad_guard.review.store.items import AtExpiry, Event, State

if TYPE_CHECKING:
    from semgrad_guard.flow import Ruling
    from semgrad_guard.review.store.items import AuditRow, Comment, Item, ItemDetail, Page
    from semgrad_guard.review.store.learn import EarlierVerdict
    from semgrad_guard.review.store.read import Insight


class _View(BaseModel):
    model_config = ConfigDict(frozen=True, from_attributes=True)


class ItemView(_View):
    """One answer in the queue."""

    id: str
    exchange_id: str
    state: State
    version: int
    title: str
    preview: str
    confidence: float | None
    rule: str
    tags: tuple[str, ...]
    created_at: datetime
    updated_at: datetime
    assignee: str | None
    holder: str | None
    held_until: datetime | None
    deadline_at: datetime | None
    at_expiry: AtExpiry
    resolved_at: datetime | None
    delivered_at: datetime | None
    erased_at: datetime | None

    @classmethod
    def of(cls, item: Item) -> ItemView:
        """Return the view of an item."""
        return cls.model_validate(item)


class RulingView(_View):
    """A person's verdict, or what the deadline decided."""

    review_id: str
    verdict: Verdict
    text: str
    by: str
    at: datetime

    @classmethod
    def of(cls, ruling: Ruling) -> RulingView:
        """Return the view of a verdict."""
        return cls.model_validate(ruling)


class CommentView(_View):
    """A note beside an item."""

    by: str
    at: datetime
    text: str

    @classmethod
    def of(cls, comment: Comment) -> CommentView:
        """Return the view of a comment."""
        return cls.model_validate(comment)


class AuditView(_View):
    """One happening in the life of an item."""

    seq: int
    item_id: str
    version: int | None
    event: Event
    from_state: State | None
    to_state: State | None
    by: str
    at: datetime
    detail: dict[str, JsonValue]

    @classmethod
    def of(cls, row: AuditRow) -> AuditView:
        """Return the view of an audit row."""
        return cls.model_validate(row)


class DetailView(_View):
    """One answer with all that a reviewer reads; `document` is null once it was erased."""

    item: ItemView
    document: Document | None
    ruling: RulingView | None
    comments: tuple[CommentView, ...]

    @classmethod
    def of(cls, detail: ItemDetail) -> DetailView:
        """Return the view of an item's details."""
        return cls.model_validate(detail)


class PageView(_View):
    """One page of a list."""

    items: tuple[ItemView, ...]
    next_cursor: str | None

    @classmethod
    def of(cls, page: Page) -> PageView:
        """Return the view of a page."""
        return cls.model_validate(page)


class BandView(_View):
    """Judged answers of one tenth of confidence."""

    low: float
    high: float
    n: int
    n_correct: int
    mean_confidence: float


class InsightView(_View):
    """The queue in numbers."""

    by_state: dict[State, int]
    oldest_at: datetime | None
    judged_last_day: int
    calibration_error: float | None
    bands: tuple[BandView, ...]

    @classmethod
    def of(cls, insight: Insight) -> InsightView:
        """Return the view of an insight."""
        return cls.model_validate(insight)


class EarlierView(_View):
    """An earlier verdict on the same question; `ruling` is null when there is none."""

    question: str = ""
    similarity: float = 0.0
    ruling: RulingView | None = None

    @classmethod
    def of(cls, earlier: EarlierVerdict | None) -> EarlierView:
        """Return the view of an earlier verdict."""
        return cls() if earlier is None else cls.model_validate(earlier)
