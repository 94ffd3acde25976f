"""Form (b): a whole chain under a policy that may retrieve again, ask another model or a person."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.config import patch_config
from typing_extensions import override

from langchain_semgrad.attempts import Attempts
from langchain_semgrad.calling import call_here, on_this_loop
from langchain_semgrad.chunks import add_chunk
from langchain_semgrad.convert import question_in
from langchain_semgrad.exchanges import Setting, jobs_in
from langchain_semgrad.judging import Work, annotation, judge_all, one_or_raise
from langchain_semgrad.values import waits_for_tools
from semgrad_guard.guard import in_thread

if TYPE_CHECKING:
    import threading
    from collections.abc import AsyncIterator, Iterator

    from langchain_core.callbacks.manager import BaseRunManager

    from langchain_semgrad.attempts import Plan
    from langchain_semgrad.calling import Caller
    from langchain_semgrad.settings import Settings
    from semgrad_guard.guard import Guard


class GuardedChain(Runnable[Any, Any]):
    """A chain whose answers are judged and, where the policy says so, made again; made by `SemGradGuard.wrap`."""

    def __init__(self, guard: Guard, plan: Plan, settings: Settings, question_key: str | None) -> None:
        """Keep the guard, what it acts with and how values are given back."""
        self.name = "semgrad_guarded_chain"
        self._guard, self._plan, self._settings, self._question_key = guard, plan, settings, question_key

    # --- one value ----------------------------------------------------------------------------------------------------

    @override
    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        """Return what the chain gives, guarded.

        Raises:
            LowConfidenceError: the answer was held back and cannot be replaced by a message, or must not be.
            UncalibratedError: there is no confidence and the policy says `on_uncalibrated: error`.
        """
        return self._call_with_config(self._invoke, input, config)

    @override
    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        """Same as `invoke`; chain, retriever and models are called on the event loop, the rest in a worker thread."""
        return await self._acall_with_config(self._ainvoke, input, config)

    def _invoke(self, value: Any, run_manager: BaseRunManager, config: RunnableConfig) -> Any:
        config = _below(config, run_manager)
        given = self._plan.chain.invoke(value, config)
        return one_or_raise(self._judge([self._work(value, given, run_manager, config, call_here)]))

    async def _ainvoke(self, value: Any, run_manager: BaseRunManager, config: RunnableConfig) -> Any:
        config = _below(config, run_manager)
        given = await self._plan.chain.ainvoke(value, config)
        with on_this_loop() as call:
            work = self._work(value, given, run_manager, config, call)
            return one_or_raise(await in_thread(self._judge, [work]))

    def _judge(self, works: list[Work], cancel: threading.Event | None = None) -> list[Any]:
        return judge_all(self._guard, works, self._settings, cancel)

    def _work(self, value: Any, given: Any, run_manager: BaseRunManager, config: RunnableConfig, call: Caller) -> Work:
        if waits_for_tools(given, self._settings.answer_key):
            return Work(given, ())
        attempts = Attempts(self._plan, value, config, call, run_manager)
        return Work(given, jobs_in(given, self._setting(value, run_manager)), attempts, run_manager)

    def _setting(self, value: Any, run_manager: BaseRunManager) -> Setting:
        return Setting(
            run_manager.run_id,
            run_manager,
            within=True,
            question=question_in(value, self._question_key),
            key=self._settings.answer_key,
            own_model=self._plan.own_model,
        )

    # --- many values --------------------------------------------------------------------------------------------------

    @override
    def batch(
        self,
        inputs: list[Any],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any | None,
    ) -> list[Any]:
        """Return what the chain gives for each input, guarded; the first answers are scored in one padded batch."""
        return self._batch_with_config(self._batch, inputs, config, return_exceptions=return_exceptions)

    @override
    async def abatch(
        self,
        inputs: list[Any],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any | None,
    ) -> list[Any]:
        """Same as `batch`."""
        return await self._abatch_with_config(self._abatch, inputs, config, return_exceptions=return_exceptions)

    def _batch(self, values: list[Any], run_manager: list[Any], config: list[RunnableConfig]) -> list[Any]:
        given = self._plan.chain.batch(values, config, return_exceptions=True)
        works, errors = self._works(values, given, run_manager, config, call_here)
        return _merged(self._judge(works), errors)

    async def _abatch(self, values: list[Any], run_manager: list[Any], config: list[RunnableConfig]) -> list[Any]:
        given = await self._plan.chain.abatch(values, config, return_exceptions=True)
        with on_this_loop() as call:
            works, errors = self._works(values, given, run_manager, config, call)
            return _merged(await in_thread(self._judge, works), errors)

    def _works(
        self, values: list[Any], given: list[Any], managers: list[Any], configs: list[RunnableConfig], call: Caller
    ) -> tuple[list[Work], list[Exception | None]]:
        errors = [value if isinstance(value, Exception) else None for value in given]
        works = [
            self._work(value, answer, manager, config, call)
            for value, answer, manager, config in zip(values, given, managers, configs, strict=True)
            if not isinstance(answer, Exception)
        ]
        return works, errors

    # --- streams ------------------------------------------------------------------------------------------------------

    @override
    def stream(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Iterator[Any]:
        """Yield the guarded value once and whole; with `stream="annotate"` as it comes, and the findings at the end."""
        if not self._annotates:
            yield self.invoke(input, config)
            return
        yield from self._transform_stream_with_config(iter([input]), self._stream, config)

    @override
    async def astream(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> AsyncIterator[Any]:
        """Same as `stream`."""
        if not self._annotates:
            yield await self.ainvoke(input, config)
            return

        async def once() -> AsyncIterator[Any]:
            yield input

        async for chunk in self._atransform_stream_with_config(once(), self._astream, config):
            yield chunk

    @property
    def _annotates(self) -> bool:
        return self._settings.stream == "annotate"

    def _stream(self, inputs: Iterator[Any], run_manager: BaseRunManager, config: RunnableConfig) -> Iterator[Any]:
        for value in inputs:
            whole = None
            for chunk in self._plan.chain.stream(value, config):
                whole = add_chunk(whole, chunk)
                yield chunk
            last = self._annotation(value, whole, run_manager)
            if last is not None:
                yield last

    async def _astream(
        self, inputs: AsyncIterator[Any], run_manager: BaseRunManager, config: RunnableConfig
    ) -> AsyncIterator[Any]:
        async for value in inputs:
            whole = None
            async for chunk in self._plan.chain.astream(value, config):
                whole = add_chunk(whole, chunk)
                yield chunk
            last = await in_thread(self._annotation, value, whole, run_manager)
            if last is not None:
                yield last

    def _annotation(
        self, value: Any, given: Any, run_manager: BaseRunManager, cancel: threading.Event | None = None
    ) -> Any:
        jobs = (
            ()
            if waits_for_tools(given, self._settings.answer_key)
            else jobs_in(given, self._setting(value, run_manager))
        )
        return annotation(Work(given, jobs), self._guard, self._settings, cancel)


def _below(config: RunnableConfig, run_manager: Any) -> RunnableConfig:
    return patch_config(config, callbacks=run_manager.get_child())


def _merged(judged: list[Any], errors: list[Exception | None]) -> list[Any]:
    """Return the judged values with the chain's own errors back in their places."""
    values = iter(judged)
    return [next(values) if error is None else error for error in errors]
