"""Calls of one script that are made at the same moment are one command to Redis, with one answer for all.

While groups are under way the next one gathers, as in a database's group commit. A client of Redis pays far more for a
command and its answer than the script takes (benchmarks/reservations.py), and a lone call still goes at once.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from redis.exceptions import NoScriptError

from maveriq_allocator.store import Store

MAX_UNDER_WAY = 2  # groups: one is put together while Redis works on the other
MAX_TOGETHER = 24  # more: all clients of a busy service wait for one group, and Redis for the next

_EACH = """
local function call(KEYS, ARGV)
%s
end
-- ARGV: how many calls; of each its numbers of keys and of arguments; then the arguments of all. KEYS: those of all.
local answers, key, arg = {}, 0, 1 + 2 * ARGV[1]
for number = 1, ARGV[1] do
  local keys, args = {}, {}
  for i = 1, ARGV[2 * number] do
    key = key + 1
    keys[i] = KEYS[key]
  end
  for i = 1, ARGV[2 * number + 1] do
    arg = arg + 1
    args[i] = ARGV[arg]
  end
  local is_well, answer = pcall(call, keys, args)
  answers[number] = is_well and answer or {err = type(answer) == 'table' and answer.err or tostring(answer)}
end
return answers
"""


@dataclass(frozen=True, slots=True)
class _Call:
    keys: Sequence[str]
    args: Sequence[str | bytes]
    answer: "asyncio.Future[Any]"


class GroupedScript:
    def __init__(self, redis: Store, text: str) -> None:
        self._redis = redis
        self._text = _EACH.replace("%s", text)
        self._sha: str | None = None
        self._gathered: list[_Call] = []
        self._num_sending = 0
        self._sending: set[asyncio.Task[None]] = set()
        """Kept, or they might be collected while they run."""

    async def __call__(self, keys: Sequence[str], args: Sequence[str | bytes]) -> Any:
        call = _Call(keys, args, asyncio.get_running_loop().create_future())
        self._gathered.append(call)
        if self._num_sending < MAX_UNDER_WAY:
            self._num_sending += 1
            task = asyncio.create_task(self._send())
            self._sending.add(task)
            task.add_done_callback(self._sending.discard)
        return await call.answer

    async def _send(self) -> None:
        try:
            while self._gathered:
                group, self._gathered = self._gathered[:MAX_TOGETHER], self._gathered[MAX_TOGETHER:]
                await self._answer(group)
        finally:  # in the same step that found nobody waiting: whoever comes next is not left behind
            self._num_sending -= 1

    async def _answer(self, group: Sequence[_Call]) -> None:
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
        sizes = [size for call in group for size in (len(call.keys), len(call.args))]
        touched = [key for call in group for key in call.keys]
        told = [len(group), *sizes, *(arg for call in group for arg in call.args)]
        if self._sha is None:
            self._sha = await self._redis.script_load(self._text)
        try:
            answers: list[Any] = await self._redis.evalsha(self._sha, len(touched), *touched, *told)
        except NoScriptError:  # Redis restarted
            await self._redis.script_load(self._text)
            answers = await self._redis.evalsha(self._sha, len(touched), *touched, *told)
        return answers
