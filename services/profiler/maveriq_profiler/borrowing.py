"""Borrows GPU memory of the allocator to measure in: asked for, kept while it is used, and given back.

maveriq:profiler:memory-held:<hold>   the allocator's latest answer, as JSON. Profilers of one GPU type share a queue,
                                      so any of them may hear the answer to another's question.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any
from uuid import UUID, uuid4

from maveriq.contracts import MemoryFreed, MemoryHeld, MemoryRequested, Message
from maveriq_profiler.measuring import Rig

POLL_S = 0.1
_MORE_THAN_ANY = 2**60
_ASKED_AGAIN = 12  # times before a hold would end: a deployment that needs the memory has it back in seconds


class NoMemory(Exception):
    """Nothing is held, and why; it is worth asking again later."""


class Borrowing:
    def __init__(
        self, redis: Any, publish: Callable[[Message], Awaitable[None]], rig: Rig, devices: Mapping[str, str],
        *, keep_s: float = 60.0, answer_s: float = 30.0,
    ) -> None:  # fmt: skip
        """
        Args:
            devices: id of each GPU that will do -> its name here; empty: any of the type, measured on the rig's own.
            keep_s: what a profiler that died holds is free again after so long.
            answer_s: an allocator that does not answer for so long is taken to be away.
        """
        self._redis = redis
        self._publish = publish
        self._rig = rig
        self._devices = devices
        self._keep_s = keep_s
        self._answer_s = answer_s

    @property
    def num_gpus(self) -> int:
        return max(1, len(self._devices))

    async def largest_bytes(self) -> int:
        """The most that one GPU could ever have free. Raises NoMemory: none is there."""
        answer = await self._ask(self._wish(_MORE_THAN_ANY, tuple(self._devices)))
        if not answer.largest_bytes:
            raise NoMemory(answer.problem)
        return answer.largest_bytes

    @asynccontextmanager
    async def borrowed(self, num_bytes: int, num_gpus: int = 1) -> AsyncGenerator[str, None]:
        """The devices to measure on, with commas between, while their bytes are held.

        Raises NoMemory, also later, within the block: a deployment needs the bytes.
        """
        async with AsyncExitStack() as stack:
            left = dict(self._devices)
            names: list[str] = []
            for _ in range(num_gpus):
                gpu = await stack.enter_async_context(self._one(self._wish(num_bytes, tuple(left))))
                names.append(left.pop(gpu, self._rig.device))
            yield ",".join(names)

    async def on_memory_held(self, message: MemoryHeld) -> None:
        await self._redis.set(_answer(message.hold_id), message.model_dump_json(), px=int(self._keep_s * 1e3))

    @asynccontextmanager
    async def _one(self, asked: MemoryRequested) -> AsyncGenerator[str, None]:
        try:
            answer = await self._ask(asked)
            if answer.gpu is None:
                raise NoMemory(answer.problem)
            user = asyncio.current_task()
            assert user is not None, "a coroutine runs in a task"
            wanted_back: list[str] = []
            keeping = asyncio.create_task(self._keep(asked, user, wanted_back))
            try:
                yield answer.gpu
            except asyncio.CancelledError:
                if wanted_back and not user.uncancel():  # by us, and by nobody else
                    raise NoMemory(wanted_back[0]) from None
                raise
            finally:
                keeping.cancel()
                await asyncio.gather(keeping, return_exceptions=True)
        finally:
            await asyncio.shield(self._publish(MemoryFreed(hold_id=asked.hold_id)))

    def _wish(self, num_bytes: int, gpus: tuple[str, ...]) -> MemoryRequested:
        rig = self._rig
        return MemoryRequested(
            hold_id=uuid4(), rig=rig.name, gpu_type=rig.gpu_type, gpus=gpus, bytes=num_bytes, keep_s=self._keep_s
        )

    async def _ask(self, asked: MemoryRequested) -> MemoryHeld:
        await self._publish(asked)
        for _ in range(int(self._answer_s / POLL_S)):
            text = await self._redis.getdel(_answer(asked.hold_id))
            if text is not None:
                return MemoryHeld.model_validate_json(text)
            await asyncio.sleep(POLL_S)
        raise NoMemory(f"the allocator has not answered for {self._answer_s:.0f} s; is it running?")

    async def _keep(self, asked: MemoryRequested, user: asyncio.Task[Any], wanted_back: list[str]) -> None:
        """Ask again and again. What is no longer lent must not be used: whoever does is stopped."""
        while True:
            await asyncio.sleep(self._keep_s / _ASKED_AGAIN)
            with suppress(NoMemory):  # an allocator that is away takes nothing back
                answer = await self._ask(asked)
                if answer.gpu is None:
                    wanted_back.append(answer.problem)
                    user.cancel()
                    return


def _answer(hold_id: UUID) -> str:
    return f"maveriq:profiler:memory-held:{hold_id}"
