"""The pages as a reviewer without JavaScript uses them."""

from __future__ import annotations

import re

from semgrad_guard.flow import Confidence, Contribution, Decision, Fingerprint, HumanReview, Score, SpanScore
from semgrad_guard.review import Event, State
from tests.review_queues import doubtful, exchange, submit


def test_the_queue_needs_a_login_and_leads_back(visit, memory_queue):
    """A link from a chat opens the item after logging in."""
    review_id = submit(memory_queue)
    browser = visit()
    browser.get(f"/items/{review_id}")
    assert "Log in to review" in browser.page
    assert browser.hidden("/login")["next"] == f"/items/{review_id}"
    assert "What is element 0?" not in browser.page
    browser.submit("/login", name="ann", password="correct horse battery")
    assert browser.response.url.path == f"/items/{review_id}"
    assert "What is element 0?" in browser.page


def test_the_queue_shows_the_riskiest_first_and_counts(ann, memory_queue):
    """The first line is the next to judge."""
    submit(memory_queue, 1, confidence=0.6)
    submit(memory_queue, 2, confidence=0.1)
    page = ann.get("/")
    assert page.index("What is element 2?") < page.index("What is element 1?")
    assert re.search(r'id="waiting"[^>]*>2<', page)
    assert ann.client.get("/count").json()["waiting"] == "2"


def test_filters_and_pages_work_without_a_script(ann, memory_queue):
    """Everything is in the address."""
    for n in range(35):
        submit(memory_queue, n, tags=("medical",) if n == 7 else ())
    page = ann.get("/")
    following = re.search(r'href="(/\?[^"]*cursor[^"]*)" rel="next"', page)
    assert following is not None
    assert len(re.findall("data-row", page)) == 30
    assert len(re.findall("data-row", ann.get(following[1].replace("&amp;", "&")))) == 5
    assert len(re.findall("data-row", ann.get("/?tag=medical"))) == 1
    assert len(re.findall("data-row", ann.get("/?q=element+12"))) == 1
    assert "No items found" in ann.get("/?state=approved")
    for path, status in (("/?cursor=zzz", 400), ("/?sort=zzz", 422)):
        ann.get(path)
        assert ann.status == status


def test_the_item_page_shows_all_a_reviewer_needs(ann, memory_queue):
    """Doubtful sentences by strength, copied passages, reasons and attempts."""
    fingerprint = Fingerprint(model="m", dtype="d", template="t", settings="s")
    spans = (SpanScore(0, 10, {}, 0.95), SpanScore(11, 30, {}, 0.1))
    score = Score(
        method="x", value=1, signals={}, fingerprint=fingerprint, model="m", spans=spans, passage_attention=(0.42,)
    )
    because = Contribution("grounding", -1.25, "words not in the passages")
    asked = exchange(3, answer="Gold is 79. It is a soft gas.", author="big", tags=("chem",))
    decision = Decision(
        step=HumanReview(),
        rule="escalate[0].human_review",
        why="0.25 is below 0.35",
        exchange_id=asked.id,
        score=score,
        confidence=Confidence(value=0.25, contributions=(because,)),
    )
    review_id = memory_queue.submit(asked, decision)
    page = ann.get(f"/items/{review_id}")
    for part in (
        "What is element 3?",
        "0.25 is below 0.35",
        "words not in the passages",
        "-1.25",
        "elements.txt",
        "42% of the answer's attention",
        "chem",
        'class="doubt doubt-4" title="10% sure"',
        'class="doubt doubt-0"',
    ):
        assert part in page, part
    assert [row.event for row in memory_queue.audit(review_id)] == [Event.SUBMIT, Event.VIEW]
    assert memory_queue.audit(review_id)[-1].by == "ann"


def test_copied_words_are_marked_in_the_passages(ann, memory_queue):
    """The reviewer sees at once where the answer comes from."""
    review_id = submit(memory_queue, 3, answer="It is a soft metal indeed")
    assert re.search(r'<mark class="copied"[^>]*>is a soft metal<', ann.get(f"/items/{review_id}"))


def test_a_reviewer_works_through_the_queue(ann, memory_queue):
    """Next, approve, edit, reject: each leads to the following item."""
    ids = [submit(memory_queue, n, confidence=n / 10) for n in range(3)]
    ann.get("/")
    ann.submit("/next")
    assert ann.response.url.path == f"/items/{ids[0]}"
    ann.submit(f"/items/{ids[0]}/approve")
    assert ann.response.url.path == f"/items/{ids[1]}"
    assert "Approved" in ann.page
    ann.submit(f"/items/{ids[1]}/edit", text="It is\r\na gas.", was_correct="true")
    assert ann.response.url.path == f"/items/{ids[2]}"
    ann.submit(f"/items/{ids[2]}/reject", reason="not so")
    assert ann.response.url.path == "/"
    assert [memory_queue.item(each).state for each in ids] == [State.APPROVED, State.EDITED, State.REJECTED]
    assert memory_queue.ruling(ids[1]).text == "It is\na gas."
    assert memory_queue.ruling(ids[2]).text == "not so"


def test_a_verdict_can_be_undone_from_the_next_page(ann, memory_queue, clock):
    """A slip is noticed right after it."""
    review_id = submit(memory_queue)
    ann.get(f"/items/{review_id}")
    ann.submit(f"/items/{review_id}/approve")
    ann.submit(f"/items/{review_id}/undo")
    assert ann.response.url.path == f"/items/{review_id}"
    assert memory_queue.item(review_id).state is State.CLAIMED
    ann.submit(f"/items/{review_id}/approve")
    clock.advance(61)
    assert "/undo" not in ann.get(f"/?done={review_id}")
    assert "/undo" not in ann.get(f"/items/{review_id}")


def test_skipping_goes_on_to_another_and_puts_the_item_back(ann, memory_queue):
    """Who does not know leaves it to others."""
    ids = [submit(memory_queue, n, confidence=n / 10) for n in range(2)]
    ann.get("/")
    ann.submit("/next")
    ann.submit(f"/items/{ids[0]}/skip")
    assert ann.response.url.path == f"/items/{ids[1]}"
    assert memory_queue.item(ids[0]).state is State.PENDING
    ann.submit(f"/items/{ids[1]}/skip")
    assert ann.response.url.path == "/", "both were skipped"


def test_an_item_that_another_holds_cannot_be_judged(ann, visit, memory_queue):
    """The page says who has it."""
    review_id = submit(memory_queue)
    ann.get("/")
    ann.submit("/next")
    bob = visit()
    bob.log_in("bob")
    page = bob.get(f"/items/{review_id}")
    assert "ann holds this item" in page
    assert "/approve" not in page
    bob.post(f"/items/{review_id}/approve", csrf=re.search('name="csrf" value="([^"]+)"', page)[1])
    assert bob.status == 409
    assert "held by ann" in bob.page


def test_a_form_sent_twice_acts_once(ann, memory_queue):
    """A double click, or the back button, is no second verdict and no error."""
    review_id = submit(memory_queue)
    ann.get(f"/items/{review_id}")
    fields = ann.hidden(f"/items/{review_id}/reject")
    for _ in range(2):
        ann.post(f"/items/{review_id}/reject", **fields, reason="no")
        assert ann.status == 200
    assert [row.event for row in memory_queue.audit(review_id) if row.version] == [Event.SUBMIT, Event.REJECT]


def test_a_verdict_on_a_settled_item_is_refused_with_what_was_typed(ann, visit, memory_queue):
    """Somebody was quicker; the text that was written is not lost."""
    review_id = submit(memory_queue)
    ann.get(f"/items/{review_id}")
    fields = ann.hidden(f"/items/{review_id}/edit")
    memory_queue.approve(review_id, "bob")
    ann.post(f"/items/{review_id}/edit", **fields, text="my long <b>text</b>")
    assert ann.status == 409
    assert "my long &lt;b&gt;text&lt;/b&gt;" in ann.page


def test_the_history_says_for_whom_a_program_acted(ann, memory_queue):
    """With what is unseen in the name written out."""
    review_id = submit(memory_queue)
    memory_queue.approve(review_id, "bob/guard", on_behalf_of="carol\u202e")
    words = re.sub("<[^>]*>", "", ann.get(f"/items/{review_id}"))
    assert re.search(r"bob/guard for carol\W*U\+202E\W* → approved", words)


def test_comments_and_assignment(ann, memory_queue):
    """Reviewers hand work to each other."""
    review_id = submit(memory_queue)
    ann.get(f"/items/{review_id}")
    ann.submit(f"/items/{review_id}/comment", text="look here")
    assert "look here" in ann.page
    ann.submit(f"/items/{review_id}/assign", to="Bob ")
    assert memory_queue.item(review_id).assignee == "bob"
    ann.submit(f"/items/{review_id}/assign", to="nobody")
    assert ann.status == 400
    ann.get("/?mine=true")
    assert "data-row" not in ann.page


def test_bulk_actions_report_on_each_item(ann, memory_queue):
    """Ten clear cases take one click; the one that failed is named."""
    ids = [submit(memory_queue, n) for n in range(3)]
    memory_queue.claim_item(ids[1], "bob")
    ann.get("/")
    ann.submit("/bulk", action="approve", ids=ids)
    assert "Approve: 2 of 3" in ann.page
    assert "held by bob" in ann.page
    ann.get("/")
    ann.submit("/bulk", action="assign", ids=ids[1:2])
    assert memory_queue.item(ids[1]).assignee == "ann"
    ann.get("/")
    ann.submit("/bulk", action="explode", ids=ids)
    assert ann.status == 400


def test_only_administrators_erase(ann, visit, memory_queue):
    """Removing texts can't be undone."""
    review_id = submit(memory_queue)
    ann.get(f"/items/{review_id}")
    assert "/erase" not in ann.page
    ann.post(f"/items/{review_id}/erase", csrf=ann.hidden("/logout")["csrf"])
    assert ann.status == 403
    root = visit()
    root.log_in("root")
    root.get(f"/items/{review_id}")
    root.submit(f"/items/{review_id}/erase")
    assert "Erased" in root.page
    root.get(f"/items/{review_id}/answer.txt")
    assert root.status == 410


def test_the_dashboard_shows_agreement(ann, memory_queue):
    """Numbers and a plot, and the same as a table."""
    assert "No answer with a confidence has been judged yet" in ann.get("/dashboard")
    memory_queue.approve(submit(memory_queue, 1, confidence=0.65), "ann")
    memory_queue.reject(submit(memory_queue, 2, confidence=0.25), "ann")
    page = ann.get("/dashboard")
    assert page.count('class="dot"') == 2
    assert "0.6 to 0.7" in page
    assert "confidence 0.25: 0 of 1 right" in page


def test_a_long_answer_is_cut_on_the_page_and_whole_in_the_download(ann, memory_queue):
    """Ten megabytes don't belong into a browser's page."""
    answer = "gold " * 2_000_000
    review_id = submit(memory_queue, answer=answer)
    page = ann.get(f"/items/{review_id}")
    assert len(page) < 200_000
    assert "Only the first 50000 of 10000000 characters" in page
    assert "too long to edit here" in page
    response = ann.client.get(f"/items/{review_id}/answer.txt")
    assert response.text == answer
    assert response.headers["content-disposition"].startswith("attachment")
    assert response.headers["content-type"].startswith("text/plain")


def test_unknown_pages_and_items_say_so(ann):
    """A wrong address is no fault of the server."""
    for path in ("/items/zzzz", "/nothing", "/items/zzzz/answer.txt"):
        ann.get(path)
        assert ann.status == 404, path


def test_an_id_may_be_shortened_in_an_address(ann, memory_queue):
    """As on the command line."""
    review_id = submit(memory_queue)
    assert "What is element 0?" in ann.get(f"/items/{review_id[:6]}")


def test_pages_are_whole_for_an_item_with_nothing_in_it(ann, memory_queue):
    """No question, no passages, no answer, no confidence: still a page."""
    asked = exchange(0, question=None, prompt="", answer="", passages=())
    review_id = memory_queue.submit(asked, doubtful(asked, None))
    assert "(no question)" in ann.get("/")
    assert "no confidence" in ann.get(f"/items/{review_id}")
