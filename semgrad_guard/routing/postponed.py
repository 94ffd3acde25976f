"""A new attempt that is made outside of the guard's call."""

from __future__ import annotations

from semgrad_guard.flow import Progress


class PostponedError(Exception):
    """Raised by `RetrievingChain.answer_again` when the new answer will come as another call.

    An agent searches again by going on with its graph: the guard's run ends here without a record, and the agent's next
    final answer is judged by `Guard.run(exchange, resources, progress=error.progress)`.
    """

    def __init__(self) -> None:
        """Begin without a progress; the guard fills it in."""
        self.progress = Progress()
        super().__init__("the new answer comes in another call")
