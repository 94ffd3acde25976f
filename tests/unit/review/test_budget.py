"""No call waits longer than its budget, whatever other sessions hold and however silent the server is."""

from __future__ import annotations

import select
import socket
import threading
import time
from contextlib import closing, contextmanager

import pytest
from sqlalchemy import create_engine, make_url, text

from semgrad_guard.errors import QueueUnavailableError
from semgrad_guard.review import QueueSettings, State, document_of, open_queue
from tests.review_queues import QUEUE_CALLS, doubtful, exchange, ready_url, submit

BUDGET_S = 1.0
SLACK_S = 1.0
"""For the machine's other work, and for the checks that happen a few times a second."""


@pytest.fixture(name="url", scope="module")
def _url(tmp_path_factory):
    with ready_url("postgresql", tmp_path_factory.mktemp("budget")) as url:
        yield url


@pytest.fixture(name="queue")
def _queue(url):
    with closing(open_queue(url, settings=QueueSettings(retry_s=BUDGET_S))) as queue:
        yield queue


@contextmanager
def held(url, *statements, **values):
    """Let another session execute statements and keep its locks."""
    engine = create_engine(url)
    with engine.connect() as conn:
        for statement in statements:
            conn.execute(text(statement), values)
        yield
        conn.rollback()
    engine.dispose()


def timed(act):
    """Return how long a call took, and what it raised."""
    began = time.monotonic()
    try:
        act()
    except Exception as error:  # noqa: BLE001 - the test looks at it
        return time.monotonic() - began, error
    return time.monotonic() - began, None


CALLS = QUEUE_CALLS | {
    "assign": lambda queue, review_id: queue.assign(review_id, "ann", "bob"),
    "erase": lambda queue, review_id: queue.erase([review_id], "root"),
}


@pytest.mark.parametrize("call", list(CALLS))
def test_a_table_that_another_session_locks_costs_the_budget(url, queue, call):
    """A migration or a backup that hangs must not hang every guard with it."""
    review_id = submit(queue, 1)
    with held(url, "LOCK TABLE semgrad_items IN ACCESS EXCLUSIVE MODE"):
        took, error = timed(lambda: CALLS[call](queue, review_id))
    assert isinstance(error, QueueUnavailableError)
    assert BUDGET_S / 2 < took < BUDGET_S + SLACK_S
    assert "lock" in str(error)


@pytest.mark.parametrize("table", ["semgrad_audit", "semgrad_documents", "semgrad_consumers", "semgrad_search"])
def test_waits_of_several_statements_share_one_budget(url, queue, table):
    """However late in the transaction the lock is met."""
    submit(queue, 1)
    with held(url, f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE"):
        took, error = timed(lambda: submit(queue, 200 + len(table)))
    assert isinstance(error, QueueUnavailableError)
    assert took < BUDGET_S + SLACK_S


def test_a_locked_row_costs_the_budget(url, queue):
    """A verdict on an item that somebody else's session holds."""
    review_id = submit(queue, 2)
    with held(url, "SELECT * FROM semgrad_items WHERE id = :id FOR UPDATE", id=review_id):
        took, error = timed(lambda: queue.approve(review_id, "ann"))
    assert isinstance(error, QueueUnavailableError)
    assert took < BUDGET_S + SLACK_S
    assert queue.approve(review_id, "ann").state is State.APPROVED


def test_many_callers_at_once_all_hear_in_time(url, queue):
    """Neither the pool of connections nor the shared transaction of submitters adds their waits up."""
    submit(queue, 1)
    outcomes = []
    acts = [lambda n=n: submit(queue, 300 + n) for n in range(15)] + [queue.counts] * 25
    with held(url, "LOCK TABLE semgrad_items IN ACCESS EXCLUSIVE MODE"):
        threads = [threading.Thread(target=lambda act=act: outcomes.append(timed(act))) for act in acts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(outcomes) == len(acts)
    assert all(isinstance(error, QueueUnavailableError) for _, error in outcomes)
    assert max(took for took, _ in outcomes) < BUDGET_S + 4 * SLACK_S


def test_one_blocked_submitter_holds_no_other_up(url, queue):
    """Another session stores the same exchange and does not finish; all others are stored meanwhile."""
    submit(queue, 1)
    blocked, others, outcomes = exchange(400, id="blocked"), [exchange(400 + n) for n in range(1, 9)], {}

    def run(asked):
        outcomes[asked.id] = timed(lambda: queue.submit(asked, doubtful(asked)))

    insert = """INSERT INTO semgrad_items (id, exchange_id, state, version, title, preview, rank, rule, tags,
        created_at, updated_at, at_expiry) VALUES ('blocked', 'blocked', 'pending', 1, '', '', 0, '', '[]',
        now(), now(), 'expire')"""
    with held(url, insert):
        threads = [threading.Thread(target=run, args=[each]) for each in (blocked, *others)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert isinstance(outcomes.pop("blocked")[1], QueueUnavailableError)
    assert [error for _, error in outcomes.values()] == [None] * len(others)
    assert max(took for took, _ in outcomes.values()) < BUDGET_S + SLACK_S


SLOW = """CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(20); RETURN NEW; END';
    CREATE TRIGGER slow BEFORE INSERT ON semgrad_documents FOR EACH ROW EXECUTE FUNCTION slow()"""


@pytest.fixture(name="is_slow")
def _is_slow(url):
    """Let the database work for 20 seconds on every new document; nobody holds a lock."""
    engine = create_engine(url)
    with engine.begin() as conn:
        conn.execute(text(SLOW))
    yield
    with engine.begin() as conn:
        conn.execute(text("DROP FUNCTION slow CASCADE"))
    engine.dispose()


@pytest.mark.usefixtures("is_slow")
def test_the_server_gives_a_statement_up_when_the_time_is_over(url, queue):
    """Breaking the connection would free the caller too, but the server would go on working for nobody."""
    queue.counts()
    took, error = timed(lambda: submit(queue, 600))
    assert isinstance(error, QueueUnavailableError)
    assert "statement timeout" in str(error)
    assert took < BUDGET_S + SLACK_S
    engine = create_engine(url)
    with engine.connect() as conn:
        still = (
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND query LIKE '%semgrad_documents%'"
        )
        assert conn.execute(text(still)).scalar_one() == 0
    engine.dispose()


def test_a_long_migration_is_not_cut_off(url, queue):
    """An index on a large table takes longer than a caller waits."""
    queue.migrate()
    with queue.database.engine.connect() as conn:
        assert conn.execute(text("SHOW statement_timeout")).scalar_one() == "1s"
    waited = queue.database.write(
        lambda tx: tx.conn.execute(text("SELECT 1 FROM pg_sleep(1.5)")).scalar_one(), limit_s=9
    )
    assert waited == 1


# --- servers that say nothing -----------------------------------------------------------------------------------------


class Wire:
    """A connection to the server that can fall silent, as when a cable is pulled."""

    def __init__(self, target) -> None:
        self.target, self.is_cut = target, threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._carry, args=[near], daemon=True).start()

    def _carry(self, near) -> None:
        far = socket.create_connection(self.target)
        other = {near: far, far: near}
        while True:
            for ready in select.select([near, far], [], [], 0.05)[0]:
                if self.is_cut.is_set():
                    time.sleep(0.05)
                    continue
                data = ready.recv(65536)
                if not data:
                    near.close()
                    far.close()
                    return
                other[ready].sendall(data)


@pytest.fixture(name="wire")
def _wire(url):
    parts = make_url(url)
    with closing(Wire((parts.host, parts.port or 5432))) as wire:
        yield wire


@pytest.mark.parametrize("call", ["submit", "wait", "list"])
def test_a_server_that_falls_silent_costs_the_budget(url, wire, call):
    """Neither side's timeouts of its own help when nothing comes back at all."""
    through = make_url(url).set(port=wire.port).render_as_string(hide_password=False)
    with closing(open_queue(through, settings=QueueSettings(retry_s=2))) as queue:
        review_id = submit(queue, 500)
        wire.is_cut.set()
        took, error = timed(lambda: CALLS[call](queue, review_id))
        assert isinstance(error, QueueUnavailableError)
        assert took < 2 + 2 + SLACK_S, "the budget, and one more attempt to connect"
        wire.is_cut.clear()
        submit(queue, 501)


# --- sweeps -----------------------------------------------------------------------------------------------------------


def poison(queue, *review_ids):
    """Leave something in the trail of items that refuses every further change of them."""
    bad = """INSERT INTO semgrad_audit (item_id, version, event, by, at, detail)
        SELECT id, version + 1, 'view', 'x', created_at, '{}' FROM semgrad_items WHERE id = :id"""
    with queue.database.engine.begin() as conn:
        for each in review_ids:
            conn.execute(text(bad), {"id": each})


def due(queue, n, deadline_s=5):
    asked = exchange(n)
    return queue.submit_document(document_of(asked, doubtful(asked)), deadline_s=deadline_s)


def test_no_single_row_stops_the_sweep(open_here, clock, caplog):
    """An item that cannot be settled is left and reported once; all others get what their deadline promised."""
    queue = open_here(lease_s=10)
    late, claimed = [due(queue, n) for n in range(5)], [submit(queue, 10 + n) for n in range(5)]
    for each in claimed:
        queue.claim_item(each, "ann")
    queue.assign(late[2], "root", "carol")
    poison(queue, late[2], claimed[1])
    clock.advance(20)
    for _ in range(2):
        assert queue.claim("bob") is not None, "claiming does the same sweep first"
    assert queue.expire_deadlines() >= 2
    queue.expire_leases()
    queue.expire_deadlines()
    states = [queue.item(each).state for each in late]
    assert states.count(State.EXPIRED) + states.count(State.CLAIMED) == 4
    assert queue.item(late[2]).state is State.PENDING
    assert [queue.item(each).holder for each in claimed].count("ann") == 1
    assert len([each for each in caplog.records if late[2] in each.getMessage()]) == 1


def test_the_sweep_comes_past_more_bad_rows_than_it_takes_at_once(open_here, clock):
    """The bad ones are not tried over and over in place of the others."""
    queue = open_here()
    ids = [due(queue, n, deadline_s=n + 1) for n in range(12)]
    poison(queue, *ids[:8])
    clock.advance(60)
    assert sum(queue.expire_deadlines(limit=3) for _ in range(4)) == 4


def test_a_row_that_another_session_holds_stops_no_sweep(queue_url, open_here, clock):
    """It gets its turn when the other session is done."""
    if queue_url.startswith("sqlite"):
        pytest.skip("SQLite locks the whole file")
    queue = open_here(retry_s=BUDGET_S)
    ids = [due(queue, n) for n in range(3)]
    clock.advance(6)
    with held(queue_url, "SELECT * FROM semgrad_items WHERE id = :id FOR UPDATE", id=ids[0]):
        assert queue.expire_deadlines() == 2
    assert queue.expire_deadlines() == 1
