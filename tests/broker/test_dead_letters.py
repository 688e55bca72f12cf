"""Dead letters are listed with their reasons, as often as one likes, and returned to where they came from."""

import asyncio
from uuid import uuid4

from maveriq.bus import Handler
from maveriq.bus.rabbitmq import RabbitMqBus
from maveriq.contracts import FingerprintMeasured
from maveriq.dead_letters import DeadLetter, dead_letters
from maveriq.topology import PLANNER
from tests.broker.sides import until
from tests.fakes import ADMISSION, FACTS, FINGERPRINT


async def found(url: str, *, back: bool = False) -> list[DeadLetter]:
    return [letter async for letter in dead_letters(url, PLANNER.dead_queue, back=back)]


async def test_they_are_listed_time_and_again_and_handled_once_they_are_back(
    rabbitmq_url: str, rabbitmq_bus: RabbitMqBus
) -> None:
    handled: list[FingerprintMeasured] = []
    broken = True

    async def handle(message: FingerprintMeasured) -> None:
        if broken:
            raise ArithmeticError("no such law")
        handled.append(message)

    bus = await RabbitMqBus.connect(rabbitmq_url, retry_delay_s=lambda attempt: 0.0)
    ready = asyncio.Event()
    serving = asyncio.ensure_future(bus.run(PLANNER, [Handler(FingerprintMeasured, handle)], ready=ready.set))
    await ready.wait()
    message = FingerprintMeasured(
        deployment_id=uuid4(), admission=ADMISSION, facts=FACTS, fingerprints=(FINGERPRINT,), calibrations=()
    )
    id = uuid4()
    await rabbitmq_bus.publish(message, id=id)
    for _ in range(100):
        if letters := await found(rabbitmq_url):
            break
        await asyncio.sleep(0.05)

    (letter,) = letters
    assert letter == (await found(rabbitmq_url))[0], "as often as one likes"
    assert (letter.topic, letter.message_id) == (message.topic, str(id))
    assert (letter.deployment_id, letter.came_from) == (str(message.deployment_id), PLANNER.queue(FingerprintMeasured))
    assert letter.reason == "failed 5 times, at last with ArithmeticError: no such law"
    assert not letter.is_back

    broken = False
    (returned,) = await found(rabbitmq_url, back=True)
    assert returned.is_back
    await until(lambda: handled == [message])
    assert await found(rabbitmq_url) == []
    serving.cancel()
    await asyncio.wait([serving])
    await bus.close()
