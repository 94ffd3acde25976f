"""The life of an item: submitted once, held by one, judged once, and all of it on record."""

from __future__ import annotations

import pytest
from sqlalchemy import delete, update
from sqlalchemy.exc import DBAPIError

from semgrad_guard.errors import (
    AlreadyClaimedError,
    EmptyTextError,
    IllegalMoveError,
    ItemNotFoundError,
    UndoRefusedError,
)
from semgrad_guard.flow import Attempt, ReviewId, Verdict
from semgrad_guard.ports import ReviewQueue
from semgrad_guard.review import AtExpiry, Event, State
from semgrad_guard.review.store.audit import replay
from semgrad_guard.review.store.schema import audit
from tests.review_queues import doubtful, exchange, submit


def test_it_is_the_queue_that_the_guard_asks_for(memory_queue):
    """The guard knows the protocol only."""
    assert isinstance(memory_queue, ReviewQueue)


def test_a_submitted_answer_waits_with_all_that_a_reviewer_reads(queue):
    """The reviewer sees the question, the answer, the passages, and why the guard doubted."""
    asked = exchange(7, tags=("medical",), metadata={"trace_url": "https://trace/1", "user": "u1"})
    earlier = exchange(7, answer="I do not know.")
    review_id = queue.submit(
        asked, doubtful(asked), [Attempt(earlier, doubtful(earlier)), Attempt(asked, doubtful(asked))]
    )
    detail = queue.get(review_id)
    assert detail.item.state is State.PENDING
    assert detail.item.tags == ("medical",)
    assert detail.document is not None
    assert detail.document.answer == asked.answer
    assert detail.document.passages[0].source == "elements.txt"
    assert detail.document.trace_url == "https://trace/1"
    assert [each.answer for each in detail.document.earlier] == ["I do not know."]
    assert detail.document.why == "confidence is below 0.35"


def test_submitting_the_same_exchange_again_gives_the_same_item(queue):
    """A guard that is restarted may submit again: the reviewer must not judge twice."""
    asked = exchange()
    first = queue.submit(asked, doubtful(asked))
    queue.approve(first, "ann")
    assert queue.submit(asked, doubtful(asked)) == first
    assert queue.get(first).item.state is State.APPROVED
    assert sum(queue.counts().values()) == 1


def test_the_riskiest_item_is_claimed_first(queue):
    """Low confidence comes first, and no confidence at all counts as the lowest."""
    sure = submit(queue, 1, confidence=0.6)
    unsure = submit(queue, 2, confidence=0.1)
    unknown = submit(queue, 3, confidence=None)
    assert [queue.claim("ann").id for _ in range(3)] == [unknown, unsure, sure]
    assert queue.claim("ann") is None


def test_a_heavy_tag_comes_before_a_lower_confidence(open_here):
    """A doubtful medical answer may matter more than a more doubtful other one."""
    queue = open_here(tag_weights={"medical": 3.0})
    submit(queue, 1, confidence=0.2)
    medical = submit(queue, 2, confidence=0.5, tags=("medical", "other"))
    assert queue.claim("ann").id == medical


def test_an_item_that_waited_long_enough_comes_before_a_riskier_new_one(open_here, clock):
    """Nothing starves: age makes up for confidence."""
    queue = open_here(head_start_s=1000)
    old = submit(queue, 1, confidence=0.9)
    clock.advance(1001)
    submit(queue, 2, confidence=0.0)
    assert queue.claim("ann").id == old


def test_nobody_else_can_judge_a_claimed_item(queue):
    """Two reviewers never work on the same answer."""
    review_id = submit(queue)
    queue.claim("ann")
    with pytest.raises(AlreadyClaimedError) as caught:
        queue.approve(review_id, "bob")
    assert caught.value.by == "ann"
    with pytest.raises(AlreadyClaimedError):
        queue.claim_item(review_id, "bob")
    with pytest.raises(AlreadyClaimedError):
        queue.release(review_id, "bob")
    assert queue.claim("bob") is None


def test_a_claim_ends_with_its_lease(open_here, clock):
    """A reviewer who went home does not block an answer for ever."""
    queue = open_here(lease_s=60)
    review_id = submit(queue)
    queue.claim("ann")
    clock.advance(61)
    assert queue.claim("bob").id == review_id
    assert [row.event for row in queue.audit(review_id)] == [Event.SUBMIT, Event.CLAIM, Event.LAPSE, Event.CLAIM]


def test_claiming_again_renews_the_lease(open_here, clock):
    """A reviewer who still reads keeps the item."""
    queue = open_here(lease_s=60)
    review_id = submit(queue)
    queue.claim_item(review_id, "ann")
    clock.advance(50)
    queue.claim_item(review_id, "ann")
    clock.advance(50)
    assert queue.claim("bob") is None


def test_a_late_holder_may_still_judge_what_nobody_else_took(open_here, clock):
    """An ended lease only lets others in."""
    queue = open_here(lease_s=60)
    review_id = submit(queue)
    queue.claim("ann")
    clock.advance(3600)
    assert queue.approve(review_id, "ann").state is State.APPROVED


def test_expire_leases_puts_items_back(open_here, clock):
    """The list shows them as free although nobody claims."""
    queue = open_here(lease_s=60)
    review_id = submit(queue)
    queue.claim("ann")
    assert queue.expire_leases() == 0
    clock.advance(61)
    assert queue.expire_leases() == 1
    assert queue.get(review_id).item.state is State.PENDING


def test_a_released_item_is_free_again(queue):
    """Skipping an answer gives it to the next reviewer."""
    review_id = submit(queue)
    queue.claim("ann")
    queue.release(review_id, "ann")
    assert queue.claim("ann", skip=[review_id]) is None
    assert queue.claim("bob").id == review_id


def test_an_item_assigned_to_somebody_is_left_to_them(queue):
    """The one who knows the subject judges it."""
    review_id = submit(queue)
    queue.assign(review_id, "boss", "ann")
    assert queue.claim("bob") is None
    assert queue.claim("ann").id == review_id


@pytest.mark.parametrize(
    ("act", "verdict", "text"),
    [
        (lambda queue, each: queue.approve(each, "ann"), Verdict.APPROVED, "Element 0 is a metal. It is soft."),
        (lambda queue, each: queue.edit(each, "ann", "It is a gas."), Verdict.EDITED, "It is a gas."),
        (lambda queue, each: queue.reject(each, "ann", "not so"), Verdict.REJECTED, "not so"),
    ],
)
def test_a_verdict_reaches_the_waiting_caller(queue, act, verdict, text):
    """The caller gets the answer as it was, the edited one, or the reason."""
    review_id = submit(queue)
    act(queue, review_id)
    ruling = queue.wait(review_id, 0)
    assert ruling is not None
    assert (ruling.verdict, ruling.text, ruling.by) == (verdict, text, "ann")


def test_a_settled_item_takes_no_second_verdict(queue):
    """The caller already acts on the first."""
    review_id = submit(queue)
    queue.approve(review_id, "ann")
    with pytest.raises(IllegalMoveError) as caught:
        queue.reject(review_id, "bob")
    assert (caught.value.state, caught.value.wanted) == (State.APPROVED, State.REJECTED)
    assert queue.ruling(review_id).by == "ann"


def test_an_operation_given_twice_is_done_once(queue):
    """A form that is sent again, or a program that lost the reply, must not fail or act twice."""
    review_id = submit(queue)
    first = queue.reject(review_id, "ann", "no", op="form-1")
    assert queue.reject(review_id, "ann", "no", op="form-1") == first
    assert [row.event for row in queue.audit(review_id)] == [Event.SUBMIT, Event.REJECT]


def test_an_edit_needs_a_text(memory_queue):
    """An empty answer helps nobody."""
    review_id = submit(memory_queue)
    with pytest.raises(EmptyTextError):
        memory_queue.edit(review_id, "ann", "  ")
    with pytest.raises(EmptyTextError):
        memory_queue.comment(review_id, "ann", "")


def test_a_verdict_can_be_undone_for_a_while(queue, clock):
    """A slip of the finger is mended; the reviewer has the item again."""
    review_id = submit(queue)
    queue.approve(review_id, "ann")
    clock.advance(59)
    item = queue.undo(review_id, "ann")
    assert (item.state, item.holder, item.ruling_id) == (State.CLAIMED, "ann", None)
    assert queue.wait(review_id, 0) is None
    queue.reject(review_id, "ann", "wrong after all")
    assert queue.wait(review_id, 0).verdict is Verdict.REJECTED


def test_undo_is_refused_once_it_is_too_late(queue, clock):
    """After a minute others rely on it."""
    review_id = submit(queue)
    queue.approve(review_id, "ann")
    clock.advance(61)
    with pytest.raises(UndoRefusedError, match="60 seconds"):
        queue.undo(review_id, "ann")


def test_undo_is_refused_once_a_caller_has_the_verdict(queue):
    """What went out can't be called back."""
    review_id = submit(queue)
    queue.approve(review_id, "ann")
    assert queue.wait(review_id, 0) is not None
    with pytest.raises(UndoRefusedError, match="delivered"):
        queue.undo(review_id, "ann")


def test_undo_of_somebody_elses_verdict_needs_force(queue):
    """Only who gave it, or an administrator, takes it back."""
    review_id = submit(queue)
    queue.approve(review_id, "ann")
    with pytest.raises(UndoRefusedError, match="ann gave it"):
        queue.undo(review_id, "bob")
    assert queue.undo(review_id, "bob", force=True).holder == "bob"


def test_undo_of_an_open_item_is_an_illegal_move(memory_queue):
    """There is nothing to take back."""
    review_id = submit(memory_queue)
    with pytest.raises(IllegalMoveError):
        memory_queue.undo(review_id, "ann")


@pytest.mark.parametrize(
    ("at_expiry", "state", "text"),
    [
        (AtExpiry.EXPIRE, State.EXPIRED, ""),
        (AtExpiry.APPROVE, State.APPROVED, "Element 0 is a metal. It is soft."),
        (AtExpiry.REJECT, State.REJECTED, "the deadline passed without a verdict"),
    ],
)
def test_a_deadline_ends_an_item_as_the_queue_is_set(open_here, clock, at_expiry, state, text):
    """The caller of an unmanned queue gets an end, chosen beforehand."""
    queue = open_here(deadline_s=600, at_expiry=at_expiry)
    review_id = submit(queue)
    assert queue.expire_deadlines() == 0
    clock.advance(600)
    assert queue.expire_deadlines() == 1
    ruling = queue.wait(review_id, 0)
    assert (queue.get(review_id).item.state, ruling.text, ruling.by) == (state, text, "clock")


def test_waiting_ends_an_item_whose_deadline_passes(open_here, clock):
    """No background job is needed for a caller to be released."""
    queue = open_here()
    asked = exchange()
    review_id = queue.submit(asked, doubtful(asked), deadline_s=30)
    assert queue.wait(review_id, 0) is None
    clock.advance(31)
    assert queue.wait(review_id, 0).verdict is Verdict.EXPIRED
    with pytest.raises(IllegalMoveError):
        queue.approve(review_id, "ann")


def test_a_reader_is_put_on_record_by_name(queue):
    """Who looked at an answer is known."""
    review_id = submit(queue)
    queue.get(review_id, viewer="ann")
    assert [(row.event, row.by) for row in queue.audit(review_id)][1:] == [(Event.VIEW, "ann")]


def test_comments_stay_beside_the_item_in_any_state(queue):
    """Reviewers talk about settled items too."""
    review_id = submit(queue)
    queue.comment(review_id, "ann", "check the source")
    queue.approve(review_id, "ann")
    queue.comment(review_id, "bob", "agreed")
    assert [(each.by, each.text) for each in queue.get(review_id).comments] == [
        ("ann", "check the source"),
        ("bob", "agreed"),
    ]


def test_the_trail_replays_to_the_state(open_here, clock):
    """The audit trail alone tells who holds what."""
    queue = open_here(lease_s=60)
    review_id = submit(queue)
    queue.claim("ann")
    clock.advance(61)
    queue.claim("bob")
    queue.assign(review_id, "boss", "bob")
    for _ in range(2):
        item = queue.get(review_id, viewer="eve").item
        told = replay(queue.audit(review_id))
        assert (told.state, told.version, told.holder, told.assignee) == (
            item.state,
            item.version,
            item.holder,
            item.assignee,
        )
        queue.approve(review_id, "bob")
        queue.undo(review_id, "bob")


@pytest.mark.parametrize("change", [update(audit).values(by="eve"), delete(audit)])
def test_the_database_refuses_to_change_the_trail(queue, change):
    """Not even a program with the database's password rewrites history by accident."""
    submit(queue)
    with pytest.raises(DBAPIError, match="append-only"), queue.database.engine.begin() as conn:
        conn.execute(change)


def test_an_unknown_item_is_named(queue):
    """The message says which id was asked for."""
    for ask in (queue.get, queue.audit, lambda each: queue.wait(each, 0), lambda each: queue.approve(each, "ann")):
        with pytest.raises(ItemNotFoundError) as caught:
            ask(ReviewId("nothing"))
        assert caught.value.item_id == "nothing"


def test_one_failing_item_does_not_hold_up_the_others(queue):
    """A bulk action reports on each item."""
    ids = [submit(queue, n) for n in range(3)]
    queue.reject(ids[1], "bob")
    done = queue.each(ids, lambda each: queue.approve(each, "ann"))
    assert done[ids[0]].state is State.APPROVED
    assert isinstance(done[ids[1]], IllegalMoveError)
    assert done[ids[2]].state is State.APPROVED


def test_a_clock_that_jumps_ahead_and_back_loses_nothing(open_here, clock):
    """A lease ends early, and then its holder decides unless somebody else took over; deadlines follow their rule."""
    queue = open_here(deadline_s=3600)
    one, two, three = (submit(queue, n, confidence=n / 10) for n in range(3))
    for review_id in (one, two):
        queue.claim_item(review_id, "ann")
    clock.advance(1000)
    assert queue.claim("bob").id == one
    clock.advance(-1000)
    with pytest.raises(AlreadyClaimedError):
        queue.approve(one, "ann")
    assert queue.approve(one, "bob").state is State.APPROVED
    queue.claim_item(two, "ann")
    assert queue.approve(two, "ann").state is State.APPROVED
    clock.advance(366 * 86_400)
    assert queue.expire_deadlines() == 1
    clock.advance(-366 * 86_400)
    assert queue.wait(three, 0).verdict is Verdict.EXPIRED
    for review_id in (one, two, three):
        rows = queue.audit(review_id)
        assert replay(rows).state is queue.item(review_id).state
        assert [row.version for row in rows if row.version] == list(range(1, queue.item(review_id).version + 1))


def test_a_clock_that_jumps_back_loses_nothing(queue, clock):
    """Order and state do not depend on the clock; only leases run longer."""
    review_id = submit(queue)
    queue.claim("ann")
    clock.advance(-86_400)
    queue.approve(review_id, "ann")
    assert queue.undo(review_id, "ann").state is State.CLAIMED
    assert [row.version for row in queue.audit(review_id)] == [1, 2, 3, 4]
