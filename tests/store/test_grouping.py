"""Calls that travel together are answered each for itself, and nobody is left waiting."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from redis.exceptions import ResponseError

from maveriq_allocator import grouping
from maveriq_allocator.grouping import GroupedScript
from maveriq_allocator.store import Store, connect

SCRIPT = """
if ARGV[1] == 'refused' then
  return redis.error_reply('REFUSED by the script')
elseif ARGV[1] == 'broken' then
  return redis.call('NOSUCH')
end
redis.call('INCR', KEYS[1])
return {KEYS[1], ARGV[1], #ARGV}
"""


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Store]:
    client = connect(redis_url)
    yield client
    await client.aclose()


async def test_each_call_has_its_own_keys_arguments_and_answer(redis: Store) -> None:
    script = GroupedScript(redis, SCRIPT)
    calls = [script([f"k{n}", "other"][: 1 + n % 2], [str(n), *"ab"][: 1 + n % 3]) for n in range(40)]
    answers = await asyncio.gather(*calls)
    assert answers == [[f"k{n}", str(n), 1 + n % 3] for n in range(40)]


async def test_what_fails_in_one_call_is_that_calls_alone(redis: Store) -> None:
    script = GroupedScript(redis, SCRIPT)
    told = ["a", "refused", "b", "broken", "c"]
    answers = await asyncio.gather(*(script(["k"], [each]) for each in told), return_exceptions=True)
    assert [type(answer) for answer in answers] == [list, ResponseError, list, ResponseError, list]
    assert "by the script" in str(answers[1])
    assert await redis.get("k") == "3"


async def test_a_redis_that_has_forgotten_the_script_is_told_it_again(redis: Store) -> None:
    script = GroupedScript(redis, SCRIPT)
    await script(["k"], ["a"])
    await redis.script_flush()
    assert await asyncio.gather(*(script(["k"], [str(n)]) for n in range(3))) == [["k", str(n), 1] for n in range(3)]


@pytest.mark.parametrize("under_way", [1, 2])
async def test_whoever_asks_as_a_group_ends_is_not_left_behind(
    redis: Store, monkeypatch: pytest.MonkeyPatch, under_way: int
) -> None:
    monkeypatch.setattr(grouping, "MAX_UNDER_WAY", under_way)
    script = GroupedScript(redis, SCRIPT)

    async def client(number: int) -> None:
        for _ in range(30):
            await script([f"k{number}"], ["a"])

    async with asyncio.timeout(30):
        await asyncio.gather(*(client(number) for number in range(8)))
    assert await redis.get("k7") == "30"
