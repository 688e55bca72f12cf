"""Running a service: it ends when told to, and a bad setting says which."""

import asyncio
from contextlib import suppress

import pytest

from maveriq.running import end, side_by_side
from maveriq.settings import BadSetting


async def test_a_service_whose_cancellation_was_swallowed_is_cancelled_again() -> None:
    async def deaf_once() -> None:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(60)
        await asyncio.sleep(60)

    serving = asyncio.ensure_future(deaf_once())
    await asyncio.sleep(0)
    await end(serving, patience_s=0.01)
    assert serving.cancelled()


async def test_a_service_that_ended_by_itself_keeps_its_result() -> None:
    async def done() -> None:
        return None

    serving = asyncio.ensure_future(done())
    await asyncio.wait({serving})
    await end(serving)
    assert serving.result() is None


async def test_one_that_fails_ends_those_beside_it_and_is_heard() -> None:
    ended: list[str] = []

    async def long() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.append("long")

    async def failing() -> None:
        await asyncio.sleep(0)
        raise BadSetting("MAVERIQ_X")

    with pytest.raises(BadSetting, match="MAVERIQ_X"):
        await side_by_side(long(), failing())
    assert ended == ["long"]


async def test_those_side_by_side_end_together_when_they_are_told_to_twice() -> None:
    ended: list[int] = []

    async def careful(number: int) -> None:
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.01)
            ended.append(number)

    serving = asyncio.ensure_future(side_by_side(careful(1), careful(2)))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    serving.cancel()
    await asyncio.sleep(0)
    serving.cancel()
    await asyncio.wait({serving})
    assert serving.cancelled()
    assert ended == [1, 2]
