"""Deployments' records on a real store: no fact is lost, whoever else writes at the same moment."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from uuid import UUID, uuid4

import pytest
from redis.asyncio import Redis

from maveriq.contracts import (
    DeploymentReleased,
    FingerprintMeasured,
    Intent,
    IntentAccepted,
    PlacementReserved,
    PlanComputed,
    ReplicaReady,
    State,
)
from maveriq_ingress.models import Models
from maveriq_ingress.statuses import INDEX, KEEP_ENDED_S, Statuses, key_of
from tests.fakes import ADMISSION, FACTS, FINGERPRINT, MODEL, NOW, PLAN, placement


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    connection = Redis.from_url(redis_url, decode_responses=True)
    yield connection
    await connection.aclose()


@pytest.fixture
def statuses(redis: Redis) -> Statuses:
    return Statuses(redis)


def accepted(deployment_id: UUID) -> IntentAccepted:
    return IntentAccepted(deployment_id=deployment_id, admission=ADMISSION)


def ready(deployment_id: UUID, replica: int) -> ReplicaReady:
    return ReplicaReady(deployment_id=deployment_id, replica=replica, token=f"t{replica}", node="n", load_s=1)


async def test_facts_from_two_processes_at_once_are_all_kept(statuses: Statuses, redis_url: str) -> None:
    deployment_id = uuid4()
    replicas = range(12)
    async with Redis.from_url(redis_url, decode_responses=True) as other:
        processes = (statuses, Statuses(other))
        facts = [
            accepted(deployment_id),
            FingerprintMeasured(
                deployment_id=deployment_id, admission=ADMISSION, facts=FACTS, fingerprints=(FINGERPRINT,)
            ),
            PlanComputed(deployment_id=deployment_id, admission=ADMISSION, plan=PLAN),
            *(
                PlacementReserved(deployment_id=deployment_id, node="n1", placement=placement(one, f"t{one}"))
                for one in replicas
            ),
            *(ready(deployment_id, one) for one in replicas),
        ]
        await asyncio.gather(*(process.learn(fact, NOW) for process in processes for fact in facts))
    known = await statuses.get(deployment_id)
    assert known is not None
    assert known.state is State.READY
    assert known.ready_replicas == tuple(replicas)
    assert known.fingerprints == (FINGERPRINT,)
    assert known.plan == PLAN


async def test_of_two_intents_for_one_id_one_wins(statuses: Statuses) -> None:
    deployment_id = uuid4()
    other = ADMISSION.model_copy(update={"intent": Intent(model="smol", max_gpus=2)})
    records = await asyncio.gather(
        statuses.accept(accepted(deployment_id), NOW),
        statuses.accept(IntentAccepted(deployment_id=deployment_id, admission=other), NOW),
    )
    assert records[0].admission == records[1].admission


async def test_a_fact_that_outran_its_intent_counts_once_the_intent_is_there(statuses: Statuses) -> None:
    deployment_id = uuid4()
    await statuses.learn(ready(deployment_id, 0), NOW)
    assert await statuses.get(deployment_id) is None
    assert await statuses.all() == []
    await statuses.accept(accepted(deployment_id), NOW)
    known = await statuses.get(deployment_id)
    assert known is not None
    assert known.state is State.READY


async def test_versions_name_each_deployment_with_its_last_change(statuses: Statuses) -> None:
    first, second = uuid4(), uuid4()
    await statuses.accept(accepted(first), NOW)
    await statuses.accept(accepted(second), NOW + timedelta(seconds=1))
    before = await statuses.versions()
    record = await statuses.learn(ready(first, 0), NOW)
    after = await statuses.versions()
    assert before[second] == after[second]
    assert before[first] < after[first] == record.changed_at
    assert [one.deployment_id for one in await statuses.all()] == [first, second]


async def test_an_ended_deployment_is_kept_for_a_while_and_then_leaves_the_index(
    statuses: Statuses, redis: Redis
) -> None:
    deployment_id = uuid4()
    await statuses.accept(accepted(deployment_id), NOW)
    assert await redis.ttl(key_of(deployment_id)) == -1
    await statuses.learn(DeploymentReleased(deployment_id=deployment_id), NOW)
    assert 0 < await redis.ttl(key_of(deployment_id)) <= KEEP_ENDED_S
    await redis.delete(key_of(deployment_id))  # as its expiry does
    assert await statuses.all() == []
    assert await redis.hlen(INDEX) == 0


async def test_what_could_not_be_passed_on_is_forgotten_unless_a_fact_followed(statuses: Statuses) -> None:
    lost, went_on = uuid4(), uuid4()
    for deployment_id in (lost, went_on):
        await statuses.accept(accepted(deployment_id), NOW)
    await statuses.learn(ready(went_on, 0), NOW)
    for deployment_id in (lost, went_on):
        await statuses.forget(deployment_id)
    assert list(await statuses.versions()) == [went_on]


async def test_intents_that_nobody_answered_can_be_passed_on_again(statuses: Statuses) -> None:
    waiting, answered = uuid4(), uuid4()
    for deployment_id in (waiting, answered):
        await statuses.accept(accepted(deployment_id), NOW)
    await statuses.learn(ready(answered, 0), NOW)
    assert await statuses.accepted() == [accepted(waiting)]


async def test_the_last_registration_of_a_model_counts(redis: Redis) -> None:
    models = Models(redis)
    moved = MODEL.model_copy(update={"source": "/elsewhere"})
    await models.register(MODEL, NOW)
    await models.register(moved, NOW)
    found = await models.get(MODEL.name)
    assert found is not None
    assert found.model == moved
    assert list(await models.all()) == [MODEL.name]
    assert await models.get("other") is None
