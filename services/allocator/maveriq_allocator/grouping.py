"""Calls of one script that are made at the same moment travel to Redis together: one round trip for all of them.

While groups are under way the next one gathers, as in a database's group commit. A client of Redis pays far more for a
round trip than the script takes (benchmarks/reservations.py), and a lone call still goes at once.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from redis.exceptions import NoScriptError, RedisError

from maveriq_allocator.store import Store

MAX_UNDER_WAY = 2  # groups: one is put together while Redis works on the other
MAX_TOGETHER = 128  # several milliseconds of Redis' time


@dataclass(frozen=True, slots=True)
class _Call:
    keys: Sequence[str]
    args: Sequence[str | bytes]
    answer: "asyncio.Future[Any]"


class GroupedScript:
    def __init__(self, redis: Store, text: str) -> None:
        self._redis = redis
        self._text = text
        self._sha: str | None = None
        self._gathered: list[_Call] = []
        self._sending: set[asyncio.Task[None]] = set()

    async def __call__(self, keys: Sequence[str], args: Sequence[str | bytes]) -> Any:
        call = _Call(keys, args, asyncio.get_running_loop().create_future())
        self._gathered.append(call)
        if len(self._sending) < MAX_UNDER_WAY:
            task = asyncio.create_task(self._send())
            self._sending.add(task)
            task.add_done_callback(self._sending.discard)
        return await call.answer

    async def _send(self) -> None:
        while self._gathered:
            group, self._gathered = self._gathered[:MAX_TOGETHER], self._gathered[MAX_TOGETHER:]
            running = asyncio.ensure_future(self._run(group))
            await asyncio.wait({running})
            failed = running.exception()
            answers: list[Any] = [failed] * len(group) if failed else running.result()
            for call, answer in zip(group, answers, strict=True):
                if call.answer.done():  # whoever asked is gone
                    continue
                if isinstance(answer, BaseException):
                    call.answer.set_exception(answer)
                else:
                    call.answer.set_result(answer)

    async def _run(self, group: Sequence[_Call]) -> list[Any]:
        if self._sha is None:
            self._sha = await self._redis.script_load(self._text)
        answers = await self._execute(group)
        unknown = [number for number, answer in enumerate(answers) if isinstance(answer, NoScriptError)]
        if unknown:  # Redis restarted
            await self._redis.script_load(self._text)
            again = await self._execute([group[number] for number in unknown])
            for number, answer in zip(unknown, again, strict=True):
                answers[number] = answer
        return answers

    async def _execute(self, group: Sequence[_Call]) -> list[Any]:
        async with self._redis.pipeline(transaction=False) as pipeline:
            for call in group:
                pipeline.evalsha(self._sha, len(call.keys), *call.keys, *call.args)
            answers: list[Any | RedisError] = await pipeline.execute(raise_on_error=False)
        return answers
