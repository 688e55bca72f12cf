"""Whose turn it is to measure: what an intent waits for goes first, and a calibration's model is stopped for it.

It is run again afterwards: a producer's seconds are dearer than a machine's.
"""

import asyncio
from collections.abc import Coroutine, Generator
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")


class GaveWay(Exception):
    """It was stopped for an intent; to be done again when there is none."""


class Turns:
    def __init__(self) -> None:
        self._num_intents = 0
        self._any, self._none = asyncio.Event(), asyncio.Event()
        self._none.set()

    @contextmanager
    def of_intent(self) -> Generator[None]:
        """While an intent's model is measured."""
        self._num_intents += 1
        self._none.clear()
        self._any.set()
        try:
            yield
        finally:
            self._num_intents -= 1
            if not self._num_intents:
                self._any.clear()
                self._none.set()

    async def after_intents(self) -> None:
        """Returns when no intent's model is measured."""
        await self._none.wait()

    async def giving_way(self, work: Coroutine[Any, Any, T]) -> T:
        """Raises GaveWay: an intent came, and the work was cancelled."""
        working, wanted = asyncio.ensure_future(work), asyncio.ensure_future(self._any.wait())
        try:
            await asyncio.wait({working, wanted}, return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                raise GaveWay("the model of an intent is measured first")
            return working.result()
        finally:
            for task in (working, wanted):
                task.cancel()
            await asyncio.gather(working, wanted, return_exceptions=True)
