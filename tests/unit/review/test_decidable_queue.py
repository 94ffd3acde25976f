"""What `ports.DecidableQueue` promises, of the queue on its database and of the same queue reached as a review site."""

from __future__ import annotations

import inspect
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from semgrad_guard.errors import (
    AlreadyClaimedError,
    EmptyTextError,
    IllegalMoveError,
    ItemNotFoundError,
    ReviewError,
    UndoRefusedError,
)
from semgrad_guard.flow import ReviewId, Verdict
from semgrad_guard.ports import DecidableQueue
from semgrad_guard.review import Event, State, open_queue
from semgrad_guard.review.access import Scope
from semgrad_guard.review.client import ReviewClient
from tests.review_queues import doubtful, exchange, submit
from tests.review_site import serving, site_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from semgrad_guard.review import SqlReviewQueue

LONG_OP = "operation é, " * 4 + "of 64 chars."
"""As long as the name of an operation may be, and not fit for a header as it stands."""
VERDICTS: dict[str, tuple[Callable[..., object], Verdict, str]] = {
    "approve": (lambda queue, each, **op: queue.approve(each, "carol", **op), Verdict.APPROVED, ""),
    "edit": (lambda queue, each, **op: queue.edit(each, "carol", "It is a gas.", **op), Verdict.EDITED, "It is a gas."),
    "reject": (lambda queue, each, **op: queue.reject(each, "carol", "not so", **op), Verdict.REJECTED, "not so"),
}
MOVES: dict[str, Callable[[DecidableQueue, ReviewId], object]] = {
    **{name: act for name, (act, _, _) in VERDICTS.items()},
    "release": lambda queue, each: queue.release(each, "carol"),
}


@dataclass
class Case:
    """One implementation, with the database that both work on."""

    queue: DecidableQueue
    """Decides as a reviewer."""
    powerful: DecidableQueue
    """Decides as an administrator, where that makes a difference."""
    store: SqlReviewQueue
    actor: str
    """Who has acted when `queue` decides for carol: leases and the audit trail name them."""
    detail: dict[str, str]
    """What the audit trail says of carol beside that."""
    n_items: int = 0

    def item(self) -> ReviewId:
        """Submit another answer."""
        self.n_items += 1
        return submit(self.store, self.n_items)

    def events(self, review_id: ReviewId) -> list[Event]:
        """Return what happened to an item after it was submitted."""
        return [row.event for row in self.store.audit(review_id)][1:]


@pytest.fixture(name="cases", scope="module")
def _cases():
    with closing(open_queue("sqlite://")) as store:
        app = site_of(store)
        desk = app.state.desk
        secrets = [desk.tokens.issue("bot", desk.accounts.get(name), list(Scope))[1] for name in ("ann", "root")]
        with (
            serving(app) as url,
            closing(ReviewClient(url, secrets[0])) as client,
            closing(ReviewClient(url, secrets[1])) as powerful,
        ):
            yield {
                "database": Case(store, store, store, "carol", {}),
                "site": Case(client, powerful, store, "ann/bot", {"on_behalf_of": "carol"}, n_items=1000),
            }


@pytest.fixture(name="case", params=["database", "site"])
def _case(request, cases) -> Case:
    return cases[request.param]


@pytest.fixture(name="site")
def _site(cases) -> Case:
    return cases["site"]


def test_it_takes_the_arguments_of_the_protocol(case):
    """`isinstance` looks at the names of the methods only."""
    assert isinstance(case.queue, DecidableQueue)
    for name in MOVES:
        promised = inspect.signature(getattr(DecidableQueue, name)).parameters
        taken = inspect.signature(getattr(type(case.queue), name)).parameters
        assert [each for each in taken if each in promised] == list(promised)
        for each in promised:
            assert (taken[each].kind, taken[each].default) == (promised[each].kind, promised[each].default)
        assert all(taken[each].default is not inspect.Parameter.empty for each in set(taken) - set(promised))


@pytest.mark.parametrize("name", VERDICTS)
def test_a_verdict_reaches_the_waiting_caller(case, name):
    """The caller gets the answer as it was, the edited one, or the reason."""
    act, verdict, text = VERDICTS[name]
    asked = exchange(500)
    review_id = case.queue.submit(asked, doubtful(asked))
    document = case.store.get(review_id).document
    act(case.queue, review_id)
    ruling = case.queue.wait(review_id, 0)
    assert (ruling.verdict, ruling.text, ruling.by) == (verdict, text or document.answer, case.actor)


@pytest.mark.parametrize("name", VERDICTS)
def test_the_trail_says_who_acted_and_for_whom(case, name):
    """A site knows the token only; the name that comes with the verdict stands beside it, never in its place."""
    review_id = case.item()
    VERDICTS[name][0](case.queue, review_id)
    row = case.store.audit(review_id)[-1]
    assert (row.by, dict(row.detail)) == (case.actor, {"correct": name == "approve", **case.detail})


def test_the_trail_says_who_put_an_item_back_and_for_whom(case):
    """The same as for verdicts."""
    review_id = case.item()
    case.store.claim_item(review_id, case.actor)
    case.queue.release(review_id, "carol")
    row = case.store.audit(review_id)[-1]
    assert (row.event, row.by, dict(row.detail)) == (Event.RELEASE, case.actor, case.detail)


@pytest.mark.parametrize("name", VERDICTS)
@pytest.mark.parametrize("kind", ["short", "long"])
def test_the_same_operation_given_twice_is_done_once(case, name, kind):
    """A graph that runs its node again must neither fail nor decide twice."""
    act, verdict, _ = VERDICTS[name]
    review_id = case.item()
    op = f"{LONG_OP}{review_id}"[-64:] if kind == "long" else f"interrupt:{review_id}"
    first = act(case.queue, review_id, op=op)
    assert act(case.queue, review_id, op=op) == first
    assert first.state.value == verdict.value
    assert len(case.events(review_id)) == 1
    with pytest.raises(IllegalMoveError):
        act(case.queue, review_id, op="another" + op[7:])


@pytest.mark.parametrize("name", MOVES)
def test_an_item_with_a_verdict_takes_no_other_move(case, name):
    """The caller already acts on the first verdict."""
    review_id = case.item()
    case.store.reject(review_id, "bob", "no")
    with pytest.raises(IllegalMoveError) as caught:
        MOVES[name](case.queue, review_id)
    assert (caught.value.item_id, caught.value.state) == (review_id, "rejected")
    assert case.store.ruling(review_id).by == "bob"


@pytest.mark.parametrize("name", MOVES)
def test_an_item_that_somebody_else_holds_takes_no_move(case, name):
    """Two reviewers never judge the same answer."""
    review_id = case.item()
    case.store.claim_item(review_id, "bob")
    with pytest.raises(AlreadyClaimedError) as caught:
        MOVES[name](case.queue, review_id)
    assert (caught.value.item_id, caught.value.by) == (review_id, "bob")
    assert case.store.item(review_id).holder == "bob"


@pytest.mark.parametrize("name", MOVES)
def test_the_holder_decides(case, name):
    """A lease keeps others out, not its holder."""
    review_id = case.item()
    case.store.claim_item(review_id, case.actor)
    MOVES[name](case.queue, review_id)
    assert case.store.item(review_id).holder is None


def test_a_forced_release_frees_what_somebody_else_holds(case):
    """A verdict that was given elsewhere does not wait for a lease to end."""
    review_id = case.item()
    case.store.claim_item(review_id, "bob")
    assert case.powerful.release(review_id, "carol", force=True).state is State.PENDING
    assert case.queue.approve(review_id, "carol").state is State.APPROVED


@pytest.mark.parametrize("text", ["", " \n"])
def test_an_edit_needs_a_text(case, text):
    """An empty answer helps nobody."""
    review_id = case.item()
    with pytest.raises(EmptyTextError):
        case.queue.edit(review_id, "carol", text)
    assert case.store.item(review_id).is_open


@pytest.mark.parametrize("name", MOVES)
def test_an_unknown_item_is_named(case, name):
    """The message says which id was asked for."""
    with pytest.raises(ItemNotFoundError) as caught:
        MOVES[name](case.queue, ReviewId("nothing"))
    assert caught.value.item_id == "nothing"


def test_a_site_lets_only_administrators_force_a_release(site):
    """A token has the rights of its account and no more."""
    review_id = site.item()
    site.store.claim_item(review_id, "bob")
    with pytest.raises(ReviewError, match="only administrators"):
        site.queue.release(review_id, "carol", force=True)
    assert site.store.item(review_id).holder == "bob"


def test_a_token_gets_no_lease_by_naming_its_holder(site):
    """What a program says about who decided is put on record, not believed."""
    review_id = site.item()
    site.store.claim_item(review_id, "bob")
    for act in (site.queue.approve, site.queue.reject, site.queue.release):
        with pytest.raises(AlreadyClaimedError):
            act(review_id, "bob")
    assert site.store.item(review_id).holder == "bob"


def test_a_verdict_for_somebody_is_not_theirs_to_take_back(site):
    """It is the token's verdict, for undoing too."""
    review_id = site.item()
    site.queue.approve(review_id, "bob")
    with pytest.raises(UndoRefusedError, match="ann/bot gave it"):
        site.store.undo(review_id, "bob")
    assert site.queue.undo(review_id).state is State.CLAIMED
