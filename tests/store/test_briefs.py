"""Lists of deployments are short, current, and read only what changed."""

from collections.abc import AsyncIterator, Iterable
from datetime import UTC, datetime
from uuid import UUID

import pytest
from redis.asyncio import Redis

from maveriq.contracts import Deployment, DeploymentReleased
from maveriq_ingress.briefs import Briefs
from maveriq_ingress.statuses import Statuses, key_of
from tests.unit.allocator.plans import candidate, computed

ONE, OTHER = UUID(int=1), UUID(int=2)


class Counting(Statuses):
    """What was read, deployment by deployment."""

    async def read(self, deployment_ids: Iterable[UUID]) -> list[Deployment]:
        wanted = list(deployment_ids)
        read.extend(wanted)
        return await super().read(wanted)


read: list[UUID] = []


@pytest.fixture
async def statuses(redis_url: str) -> AsyncIterator[Counting]:
    client = Redis.from_url(redis_url, decode_responses=True)
    read.clear()
    yield Counting(client)
    await client.aclose()


async def test_what_changed_is_read_again_and_what_is_gone_leaves(statuses: Counting) -> None:
    briefs = Briefs(statuses)
    for each in (ONE, OTHER):
        await statuses.learn(computed(candidate(), candidate(pp=2), deployment_id=each), datetime.now(UTC))
    first = [Deployment.model_validate_json(text) for text in await briefs.all()]
    assert [each.deployment_id for each in first] == read == [ONE, OTHER]
    assert first[0].plan is not None
    assert first[0].plan.candidates == (candidate(),)
    await statuses.learn(DeploymentReleased(deployment_id=OTHER), datetime.now(UTC))
    again = [Deployment.model_validate_json(text) for text in await briefs.all()]
    assert [each.state for each in again] == ["planned", "released"]
    assert read == [ONE, OTHER, OTHER]
    await statuses.redis.delete(key_of(OTHER))
    await statuses.all()
    assert len(await briefs.all()) == 1
