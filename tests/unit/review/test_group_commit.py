"""Many who give at one time share a call; each gets its own result, its own error, and nobody is forgotten."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

from semgrad_guard.review.store.submission import Fate, GroupCommit


class Slow:
    """A function that doubles numbers, and waits in its first call until several others have come."""

    def __init__(self, *, interrupted_call: int = 0) -> None:
        """Keep which call, counted from 1, is interrupted."""
        self.calls: list[list[int]] = []
        self.is_called, self.go_on, self._interrupted_call = threading.Event(), threading.Event(), interrupted_call

    def __call__(self, given, _left_s):
        self.calls.append(list(given))
        if len(self.calls) == 1:
            self.is_called.set()
            assert self.go_on.wait(10)
        if len(self.calls) == self._interrupted_call:
            raise KeyboardInterrupt
        if -1 in given:
            msg = "unlucky"
            raise ValueError(msg)
        return [2 * each for each in given]


def _all_at_once(act: Slow, numbers, fate=Fate.OWN, limit_s=10.0):
    """Give one number, then the others while the first is acted on; return the results or errors by number."""
    together = GroupCommit(act, lambda _: fate, limit_s=limit_s)
    with ThreadPoolExecutor(len(numbers)) as pool:
        futures = {numbers[0]: pool.submit(together, numbers[0])}
        assert act.is_called.wait(10)
        futures |= {n: pool.submit(together, n) for n in numbers[1:]}
        while len(together._waiting) < len(numbers) - 1:
            threading.Event().wait(0.001)
        act.go_on.set()
    return {n: each.exception() or each.result() for n, each in futures.items()}


def test_those_who_come_meanwhile_share_one_call():
    """The cost of a call is paid once for all of them."""
    act = Slow()
    assert _all_at_once(act, range(20)) == {n: 2 * n for n in range(20)}
    assert act.calls[0] == [0]
    assert sorted(act.calls[1]) == list(range(1, 20))


def test_one_that_fails_does_not_fail_the_others():
    """Another's broken answer is no reason to lose mine."""
    found = _all_at_once(Slow(), [0, 1, -1, 2])
    assert isinstance(found.pop(-1), ValueError)
    assert found == {0: 0, 1: 2, 2: 4}


def test_an_error_that_hits_all_is_not_tried_for_each():
    """When the database is away, a hundred callers must not wait for a hundred time-outs."""
    act = Slow()
    found = _all_at_once(act, [0, 1, -1, 2], Fate.SHARED)
    assert [type(found[n]) for n in (1, -1, 2)] == [ValueError] * 3
    assert len(act.calls) == 2


def test_a_thread_that_is_ended_leaves_its_work_to_another():
    """Nothing may be taken for done because the one who did it was interrupted."""
    act = Slow(interrupted_call=2)
    together = GroupCommit(act, lambda _: Fate.OWN, limit_s=10)
    found = {}

    def give(number) -> None:
        try:
            found[number] = together(number)
        except KeyboardInterrupt:
            found[number] = "interrupted"

    threads = [threading.Thread(target=give, args=(n,)) for n in range(4)]
    threads[0].start()
    assert act.is_called.wait(10)
    for thread in threads[1:]:
        thread.start()
    while len(together._waiting) < 3:
        threading.Event().wait(0.001)
    act.go_on.set()
    for thread in threads:
        thread.join(10)
    assert len(act.calls[1]) == 3
    (ended,) = [n for n, result in found.items() if result == "interrupted"]
    assert found == {n: 2 * n for n in range(4)} | {ended: "interrupted"}


def test_more_than_one_transaction_should_hold_are_split():
    """Others that write must get their turn."""
    act = Slow()
    assert _all_at_once(act, range(150)) == {n: 2 * n for n in range(150)}
    assert max(len(each) for each in act.calls) == 100
