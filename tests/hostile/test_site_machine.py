"""The API against a model of it: whatever programs send in whatever order, no verdict vanishes and none changes."""

from __future__ import annotations

from contextlib import closing

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from starlette.testclient import TestClient

from semgrad_guard.review import QueueSettings, open_queue
from semgrad_guard.review.access import Scope
from semgrad_guard.review.store.audit import replay
from tests.hostile_cases import CASES
from tests.review_queues import FakeClock
from tests.review_site import site_of

USERS = st.sampled_from(["ann", "bob", "root"])
VERDICTS = {"approve": "approved", "edit": "edited", "reject": "rejected"}
BODIES = {"approve": {}, "edit": {"text": "edited"}, "reject": {"reason": "no"}}
KEYS = st.sampled_from([None, "k1", "k2"])
SETTLED = frozenset(VERDICTS.values()) | {"expired"}


class SiteMachine(RuleBasedStateMachine):
    """Three accounts and their programs work on a handful of items at a site."""

    @initialize()
    def open(self) -> None:
        """Start with an empty queue."""
        self.clock = FakeClock()
        wanted = QueueSettings(lease_s=60, undo_s=30)
        self.queue = open_queue("sqlite://", settings=wanted, clock=self.clock, sleep=self.clock.sleep)
        app = site_of(self.queue)
        desk, self.clients, self.readers = app.state.desk, {}, {}
        for name in ("ann", "bob", "root"):
            user = desk.accounts.get(name)
            for kept, scopes in ((self.clients, [Scope.SUBMIT, Scope.JUDGE]), (self.readers, [Scope.READ])):
                secret = desk.tokens.issue("p", user, scopes)[1]
                headers = {"Authorization": f"Bearer {secret}"}
                kept[name] = TestClient(app, base_url="http://review.test", headers=headers)
        self.owner, self.answers, self.taken, self.acknowledged = {}, {}, {}, {}

    def pick(self, data) -> str:
        return data.draw(st.sampled_from(sorted(self.owner)))

    def post(self, user, path, body=None, key=None):
        headers = {} if key is None else {"Idempotency-Key": key}
        answer = self.clients[user].post(f"/api/v1/items{path}", json=body, headers=headers)
        assert answer.status_code < 500
        return answer

    @rule(user=USERS, number=st.integers(0, 4), text=st.sampled_from(["So.", "Not so."]))
    def submit(self, user, number, text) -> None:
        """The same exchange of the same account gives the same item; another's is refused."""
        exchange_id = f"x{number}"
        answer = self.post(user, "", {"document": {"exchange_id": exchange_id, "answer": text}})
        known = self.answers.get(exchange_id)
        if known is None:
            assert answer.status_code == 201
            self.answers[exchange_id] = (user, text, answer.json()["id"])
            self.owner[answer.json()["id"]] = user
        elif known[:2] == (user, text):
            assert answer.json()["id"] == known[2]
        else:
            assert answer.status_code in {409, 201 if self.queue.item(known[2]).erased_at and known[0] == user else 409}

    @precondition(lambda self: self.owner)
    @rule(data=st.data(), user=USERS, verb=st.sampled_from(sorted(VERDICTS)), key=KEYS)
    def judge(self, data, user, verb, key) -> None:
        """What is answered with 200 is what the item is; everything else is refused aloud."""
        review_id = self.pick(data)
        before = self.queue.item(review_id)
        answer = self.post(user, f"/{review_id}/{verb}", BODIES[verb], key)
        after = self.queue.item(review_id)
        if answer.status_code == 200:
            assert answer.json()["state"] == VERDICTS[verb] == after.state
            assert after.ruling_id is not None
            if before.state in SETTLED:
                assert key is not None, "only a repeated request is answered so"
                assert after == before
            self.acknowledged[review_id] = (VERDICTS[verb], after.version)
        else:
            assert answer.status_code == 409
            assert after == before or (before.holder and after.holder is None)

    @precondition(lambda self: self.owner)
    @rule(data=st.data(), user=USERS, move=st.sampled_from(["claim", "release", "undo", "assign"]))
    def move(self, data, user, move) -> None:
        """Moves that give no verdict."""
        review_id = self.pick(data)
        body = {"assignee": data.draw(st.sampled_from([None, "ann", "bob", "nobody"]))} if move == "assign" else None
        answer = self.post(user, f"/{review_id}/{move}", body)
        if move == "undo" and answer.status_code == 200:
            assert review_id not in self.taken, "a verdict that was taken is final"
            self.acknowledged.pop(review_id, None)

    @precondition(lambda self: self.owner)
    @rule(data=st.data(), user=USERS)
    def take(self, data, user) -> None:
        """Only the account that submitted it takes a verdict, and it stays the same for ever."""
        review_id = self.pick(data)
        answer = self.post(user, f"/{review_id}/ruling")
        assert (answer.status_code == 200) is (user == self.owner[review_id])
        if answer.status_code == 200 and answer.json()["ruling"] is not None:
            given = answer.json()["ruling"]["verdict"]
            if self.queue.item(review_id).erased_at is None:
                assert self.taken.setdefault(review_id, given) == given

    @precondition(lambda self: self.owner)
    @rule(data=st.data(), user=USERS)
    def look(self, data, user) -> None:
        """Reading changes nothing."""
        review_id = self.pick(data)
        before = self.queue.item(review_id)
        trail = [row for row in self.queue.audit(review_id) if row.event != "view"]
        for path in ("", "/ruling", "/audit"):
            assert self.readers[user].get(f"/api/v1/items/{review_id}{path}").status_code == 200
        assert self.queue.item(review_id) == before
        assert [row for row in self.queue.audit(review_id) if row.event != "view"] == trail

    @rule(user=USERS)
    def claim_next(self, user) -> None:
        """The next one is never another's."""
        answer = self.post(user, "/claim-next")
        if answer.status_code == 200:
            assert answer.json()["assignee"] in {None, user}

    @precondition(lambda self: self.owner)
    @rule(data=st.data())
    def erase(self, data) -> None:
        """An administrator erases one."""
        review_id = self.pick(data)
        self.queue.erase([review_id], "root")
        if self.queue.item(review_id).state == "expired":
            self.acknowledged.pop(review_id, None)

    @rule(seconds=st.sampled_from([1, 31, 61]))
    def wait(self, seconds) -> None:
        """Undo and leases end."""
        self.clock.advance(seconds)

    @rule(seconds=st.sampled_from([-31, -1e6, 1e6]))
    def jump(self, seconds) -> None:
        """Somebody sets the clock of the machine."""
        self.clock.advance(seconds)

    @invariant()
    def nothing_acknowledged_is_lost(self) -> None:
        """Every verdict that was acknowledged stands until it is undone, and every trail leads to its item."""
        for review_id, (state, version) in getattr(self, "acknowledged", {}).items():
            item = self.queue.item(review_id)
            assert (item.state, item.version) == (state, version)
        for review_id in getattr(self, "owner", {}):
            item, told = self.queue.item(review_id), replay(self.queue.audit(review_id))
            assert (told.state, told.version, told.holder) == (item.state, item.version, item.holder)

    def teardown(self) -> None:
        """Close the queue."""
        with closing(self.queue):
            pass


TestSiteMachine = SiteMachine.TestCase
TestSiteMachine.settings = settings(
    max_examples=max(20, CASES // 4),
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
