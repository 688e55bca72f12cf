"""What has arrived for one request: chunks put in by the mailbox, taken out in order by whoever waits."""

import asyncio

from maveriq.contracts import Chunk, ErrorCode, InferenceError
from maveriq.ordering import Ordering

# The bus keeps order: a missing chunk was lost with a connection. Where the worker lost its own too, the request is
# handed out again and told from its start. This is how long that may take, the wait for a free slot included.
GAP_S = 10.0


class RequestFailed(Exception):
    """A request has no (further) answer; `error` says why."""

    def __init__(self, error: InferenceError) -> None:
        where = f"{error.field}: " if error.field else ""
        super().__init__(f"{where}{error.problem}; {error.remedy}")
        self.error = error


class Inbox:
    """Holds the chunks of one request. One puts, one takes."""

    __slots__ = ("_failure", "_gap", "_late", "_loop", "_ordering", "_ready", "_waiter")

    def __init__(self, deadline_s: float, late: InferenceError) -> None:
        """Args:
        deadline_s: from now; `late` is then the failure.
        """
        self._loop = asyncio.get_running_loop()
        self._ordering = Ordering()
        self._ready: list[Chunk] = []
        self._waiter: asyncio.Future[None] | None = None
        self._failure: InferenceError | None = None
        self._gap: asyncio.TimerHandle | None = None
        self._late = self._loop.call_later(deadline_s, self.fail, late)

    def put(self, chunk: Chunk) -> None:
        """The hot path: once a token."""
        if chunk.error is not None:
            self.fail(chunk.error)
            return
        new = self._ordering.take(chunk)
        self._ready += new
        if not new or self._gap is not None:
            self._watch_gap()
        waiter = self._waiter
        if waiter is not None and self._ready:
            self._waiter = None
            if not waiter.done():
                waiter.set_result(None)

    def fail(self, error: InferenceError) -> None:
        """End the request once what arrived before is taken."""
        self._failure = error
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    async def take(self) -> list[Chunk]:
        """All that can be yielded now, in order; waits for the first.

        Raises:
            RequestFailed: an error chunk came, `fail` was called, or a gap stayed open for GAP_S.
        """
        while not self._ready:
            if self._failure is not None:
                raise RequestFailed(self._failure)
            self._waiter = self._loop.create_future()
            await self._waiter
        ready, self._ready = self._ready, []
        return ready

    def close(self) -> None:
        """Leave no timer behind."""
        self._late.cancel()
        if self._gap is not None:
            self._gap.cancel()

    def _watch_gap(self) -> None:
        if self._ordering.has_gap and self._gap is None:
            lost = InferenceError(
                code=ErrorCode.INTERRUPTED,
                problem="chunks were lost with a connection",
                remedy="send the request again",
            )
            self._gap = self._loop.call_later(GAP_S, self.fail, lost)
        elif not self._ordering.has_gap and self._gap is not None:
            self._gap.cancel()
            self._gap = None
