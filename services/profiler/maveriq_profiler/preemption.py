"""Preemption: what a deployment waits for goes first, and a calibration's model is stopped for it.

It is run again afterwards: a producer's seconds are dearer than a machine's.
"""

import asyncio
from collections.abc import Coroutine, Generator
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")


class Preempted(Exception):
    """Stopped for a deployment; to be done again when none is on its way."""


class Preemption:
    def __init__(self) -> None:
        self._awaited: set[object] = set()
        self._any, self._none = asyncio.Event(), asyncio.Event()
        self._none.set()

    def begin(self, what: object) -> None:
        """A deployment waits for this. Again is harmless."""
        self._awaited.add(what)
        self._none.clear()
        self._any.set()

    def end(self, what: object) -> None:
        """It waits no more. Again is harmless."""
        self._awaited.discard(what)
        if not self._awaited:
            self._any.clear()
            self._none.set()

    @contextmanager
    def by_intent(self) -> Generator[None]:
        """While an intent's model is measured."""
        what = object()
        self.begin(what)
        try:
            yield
        finally:
            self.end(what)

    async def after_deployments(self) -> None:
        """Returns when none is waited for."""
        await self._none.wait()

    async def preemptible(self, work: Coroutine[Any, Any, T]) -> T:
        """Raises Preempted: a deployment came, and the work was cancelled."""
        working, wanted = asyncio.ensure_future(work), asyncio.ensure_future(self._any.wait())
        try:
            await asyncio.wait({working, wanted}, return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                raise Preempted("a deployment is on its way and goes first")
            return working.result()
        finally:
            for task in (working, wanted):
                task.cancel()
            await asyncio.gather(working, wanted, return_exceptions=True)
