"""The review page in a real browser: by keyboard, without scripts, on a phone, in the dark, and for screen readers."""

from __future__ import annotations

import shutil
from contextlib import closing

import pytest

from semgrad_guard.flow import Attempt, Confidence, Contribution, Decision, Fingerprint, HumanReview, Score, SpanScore
from semgrad_guard.review import State, open_queue
from tests.review_queues import doubtful, exchange, submit
from tests.review_site import PASSWORD, serving, site_of

playwright = pytest.importorskip("playwright.sync_api", reason="needs a browser driver")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs the accessibility checker")

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.end_to_end,
    pytest.mark.xdist_group("browser"),
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium"),
]
FLAGS = [
    "--no-sandbox",
    "--headless",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(name="queue")
def _queue(tmp_path):
    with closing(open_queue(f"sqlite:///{tmp_path / 'review.db'}")) as queue:
        yield queue


@pytest.fixture(name="site")
def _site(queue):
    with serving(site_of(queue)) as url:
        yield url


@pytest.fixture(name="browser", scope="module")
def _browser():
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(name="open_page")
def _open_page(browser, site):
    """Open a page of the site as a reviewer; whatever the browser complains about fails the test."""
    complaints, contexts = [], []

    def open_page(name: str = "ann", **options):
        context = browser.new_context(base_url=site, **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(20_000)
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: complaints.append(f"dialog: {dialog.message}"))
        page.goto("/login")
        page.fill("#name", name)
        page.fill("#password", PASSWORD)
        page.click("text=Log in >> nth=-1")
        page.wait_for_url("**/")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert [text for text in complaints if "status of 404" not in text] == []


def rich_item(queue):
    """Submit an answer with everything that a page can show."""
    fingerprint = Fingerprint(model="m", dtype="d", template="t", settings="s")
    spans = tuple(SpanScore(n * 10, n * 10 + 9, {}, 0.9 - 0.2 * n) for n in range(5))
    score = Score(method="x", value=1, signals={}, fingerprint=fingerprint, model="m", spans=spans)
    answer = "It is one. It is two. It is 3rd. It is 4th. It is 5th. \u202e\u200b<script>alert(1)</script>"
    asked = exchange(1, answer=answer, tags=("chem",), metadata={"user": "u1", "trace_url": "https://trace.example/1"})
    earlier = exchange(1, answer="I do not know.")
    decision = Decision(
        step=HumanReview(),
        rule="escalate[0]",
        why="too low",
        exchange_id=asked.id,
        score=score,
        confidence=Confidence(value=0.2, contributions=(Contribution("s", -1.0, "rare words"),)),
    )
    return queue.submit(asked, decision, [Attempt(earlier, doubtful(earlier))])


def test_a_reviewer_works_by_keyboard(queue, open_page):
    """Log in, find, edit, undo, approve, reject, comment: no mouse needed."""
    ids = [submit(queue, n, confidence=n / 10) for n in range(4)]
    page = open_page()
    page.keyboard.press("/")
    page.keyboard.type("element 2")
    page.keyboard.press("Enter")
    page.wait_for_url("**q=element+2**")
    page.keyboard.press("j")
    page.keyboard.press("Enter")
    page.wait_for_url(f"**/items/{ids[2]}")
    page.keyboard.press("e")
    page.keyboard.press("Control+A")
    page.keyboard.type("Element 2 is a gas.")
    page.keyboard.press("Control+Enter")
    page.wait_for_url("**done=**")
    assert queue.ruling(ids[2]).text == "Element 2 is a gas."
    page.keyboard.press("u")
    page.wait_for_url(f"**/items/{ids[2]}")
    assert queue.item(ids[2]).state is State.CLAIMED
    page.keyboard.press("a")
    page.wait_for_url("**done=**")
    assert queue.item(ids[2]).state is State.APPROVED
    page.keyboard.press("n")
    page.wait_for_url(f"**/items/{ids[0]}**")
    page.keyboard.press("s")
    page.wait_for_url(f"**/items/{ids[1]}**")
    page.keyboard.press("c")
    page.keyboard.type("odd")
    page.keyboard.press("Control+Enter")
    page.wait_for_url("**#comments")
    page.keyboard.press("r")
    page.keyboard.type("not in the passages")
    page.keyboard.press("Enter")
    page.wait_for_url("**done=**")
    assert queue.ruling(ids[1]).text == "not in the passages"
    page.keyboard.press("q")
    page.wait_for_url("**/")
    page.keyboard.press("j")
    page.keyboard.press("x")
    assert page.locator("input[name=ids]:checked").count() == 1


def test_the_count_follows_the_queue(queue, open_page):
    """A reviewer sees new work arrive without reloading."""
    page = open_page()
    page.clock.install()
    page.reload()
    assert page.inner_text("#waiting") == "0"
    submit(queue)
    page.clock.fast_forward(5_500)
    playwright.expect(page.locator("#waiting")).to_have_text("1")  # the page's security policy forbids evaluating text


def test_everything_works_without_scripts(queue, open_page):
    """Scripts are a convenience."""
    ids = [submit(queue, n, confidence=n / 10) for n in range(2)]
    page = open_page(java_script_enabled=False)
    page.click("text=Review the next")
    page.click("text=Reject")
    page.fill("#reason", "no")
    page.click("text=Reject the answer")
    page.click("text=Approve")
    assert queue.item(ids[0]).state is State.REJECTED
    assert queue.item(ids[1]).state is State.APPROVED
    page.click("text=Undo")
    assert queue.item(ids[1]).state is State.CLAIMED


def test_a_hostile_answer_runs_nothing(queue, open_page):
    """The browser itself is the judge."""
    payload = "<img src=x onerror=alert(1)><script>alert(2)</script><svg onload=alert(3)>"
    review_id = submit(queue, question=payload, answer=payload, tags=(payload[:50],))
    page = open_page()
    page.goto(f"/items/{review_id}")
    page.goto(f"/?q={payload}")
    assert page.locator("main img, main svg, main script").count() == 0


@pytest.mark.parametrize("colours", ["light", "dark"])
@pytest.mark.parametrize("phone", [False, True])
def test_no_page_has_a_serious_fault_for_assistive_technology(queue, open_page, site, colours, phone):
    """Labels, contrast, order: checked by rule; nothing may overflow a phone's screen either."""
    review_id = rich_item(queue)
    queue.comment(review_id, "bob", "hm")
    queue.reject(submit(queue, 2), "bob", "no")
    size = {"width": 375, "height": 700} if phone else {"width": 1280, "height": 900}
    page = open_page("root", viewport=size, color_scheme=colours, is_mobile=phone)
    page.goto(f"/items/{review_id}")
    page.keyboard.press("a")
    page.wait_for_url("**done=**")
    visits = ["/", f"/?done={review_id}&state=all", f"/items/{review_id}", "/dashboard", "/items/zzzz", "/login"]
    queue.undo(review_id, "root")
    for path in [*visits, f"/items/{review_id}"]:
        page.goto(path)
        page.evaluate("for (const each of document.querySelectorAll('details')) each.open = true")
        found = axe.Axe().run(page).response["violations"]
        serious = [
            (each["id"], [n["html"] for n in each["nodes"]])
            for each in found
            if each["impact"] in {"serious", "critical"}
        ]
        assert serious == [], path
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), path
