"""Storing together what many callers submit at one time: one transaction for all of them, one wait for the disk."""

from __future__ import annotations

import os
import threading
import weakref
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

Given = TypeVar("Given")
Result = TypeVar("Result")

_MOST = 100
"""Things of one transaction: others that write must not wait long."""


class _Call(Generic[Given, Result]):
    """What one caller gave, and what became of it."""

    __slots__ = ("error", "given", "is_done", "result")

    def __init__(self, given: Given) -> None:
        self.given = given
        self.is_done = False
        self.result: Result | None = None
        self.error: Exception | None = None


class Together(Generic[Given, Result]):
    """Hands to one call of a function what several threads gave meanwhile.

    Whoever comes first acts for itself at once; those who come while it acts are acted for together by one of them. So
    nobody waits for company, and the more callers there are, the fewer calls each needs.
    """

    def __init__(
        self, act: Callable[[Sequence[Given]], Sequence[Result]], is_shared: Callable[[Exception], bool]
    ) -> None:
        """Keep the functions.

        Args:
            act: does all of what it is given or, raising an error, nothing; returns one result for each.
            is_shared: true for an error that hits all alike; after any other, each thing is tried alone.
        """
        self._act, self._is_shared = act, is_shared
        self._lists, self._acts = threading.Lock(), threading.Lock()
        self._waiting: list[_Call[Given, Result]] = []
        reference = weakref.ref(self)

        def forget() -> None:
            parent = reference()
            if parent is not None:
                parent._forget()  # noqa: SLF001 - its own

        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=forget)  # its parent's threads do not exist there, but their locks do

    def __call__(self, given: Given) -> Result:
        """Return the result for one thing, after it was acted on."""
        call = _Call[Given, Result](given)
        with self._lists:
            self._waiting.append(call)
        with self._acts:
            while not call.is_done:
                self._act_for_some()
        if call.error is not None:
            raise call.error
        return call.result  # type: ignore[return-value] # set, as there was no error

    def _act_for_some(self) -> None:
        with self._lists:
            calls, self._waiting = self._waiting[:_MOST], self._waiting[_MOST:]
        try:
            self._act_for(calls)
        except Exception as error:  # noqa: BLE001 - each caller gets the error
            if len(calls) > 1 and not self._is_shared(error):
                self._one_by_one(calls)
            else:
                _fail(calls, error)
        except BaseException:  # this thread is to end: another one acts for the others
            with self._lists:
                self._waiting = [*calls, *self._waiting]
            raise

    def _one_by_one(self, calls: Sequence[_Call[Given, Result]]) -> None:
        for call in calls:
            try:
                self._act_for([call])
            except Exception as error:  # noqa: BLE001 - its caller gets it
                _fail([call], error)

    def _act_for(self, calls: Sequence[_Call[Given, Result]]) -> None:
        results = self._act([call.given for call in calls])
        for call, result in zip(calls, results, strict=True):
            call.result, call.is_done = result, True

    def _forget(self) -> None:
        self._lists, self._acts = threading.Lock(), threading.Lock()
        self._waiting = []


def _fail(calls: Iterable[_Call[Given, Result]], error: Exception) -> None:
    for call in calls:
        call.error, call.is_done = error, True
