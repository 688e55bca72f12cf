"""Running a service: it ends when told to, and a bad setting says which."""

import asyncio
from contextlib import suppress

import pytest

from maveriq.running import amqp_url, end
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


def test_an_address_that_is_no_brokers_names_the_variable() -> None:
    with pytest.raises(BadSetting, match="MAVERIQ_AMQP_URL='localhost': expected amqp://"):
        amqp_url({"MAVERIQ_AMQP_URL": "localhost"})
