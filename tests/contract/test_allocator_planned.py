"""Pipelines that the planner has split, from plan to orders: messages through JSON, on a real Redis."""

from collections.abc import AsyncIterator
from uuid import UUID

import pytest

from maveriq.contracts import (
    DefragmentationProgressed,
    DefragmentationRequested,
    DeploymentFailed,
    DeploymentWaiting,
    FailureReason,
    MoveRequested,
    PlacementConfirmed,
    PlacementRequested,
    PlacementReserved,
    Precision,
    ReplicaFailed,
    ReplicaLost,
    Stage,
)
from maveriq_allocator.quotas import parse_quotas
from tests.store.allocators import GRACE_S, Allocators, of_type, ready, report
from tests.unit.allocator.plans import DEPLOYMENT, candidate, computed, planned

PIPELINE = planned((30, 3), (50, 4), (10, 1))


@pytest.fixture
async def allocators(redis_url: str) -> AsyncIterator[Allocators]:
    made = Allocators(redis_url)
    yield made
    await made.redis.aclose()


async def placed(allocators: Allocators, *free_bytes: int) -> PlacementReserved:
    await allocators.tell(report("a", *free_bytes))
    (order,) = of_type(PlacementReserved, await allocators.tell(computed(PIPELINE)))
    return order


async def test_the_worker_is_told_the_stages_as_planned_with_the_precision_of_each_layer(
    allocators: Allocators,
) -> None:
    order = await placed(allocators, 12, 31, 52)
    int8, full = Precision.INT8, Precision.FP16
    assert order.placement.stages == (
        Stage(gpus=("a/1",), num_layers=3, reserved_bytes=30, gpu_type="A6000", precisions=(int8, int8, full)),
        Stage(gpus=("a/2",), num_layers=4, reserved_bytes=50, gpu_type="A6000", precisions=(int8, int8, int8, full)),
        Stage(gpus=("a/0",), num_layers=1, reserved_bytes=10, gpu_type="A6000", precisions=(full,)),
    )
    assert order.placement.candidate.stages == PIPELINE.stages
    assert await allocators.held() == {"a/1": 30, "a/2": 50, "a/0": 10}


async def test_where_it_does_not_fit_the_next_candidate_is_taken(allocators: Allocators) -> None:
    await allocators.tell(report("a", 49, 49, 49))
    (order,) = of_type(PlacementReserved, await allocators.tell(computed(PIPELINE, candidate(pp=3))))
    assert order.placement.candidate.stages == ()
    assert all(stage.precisions == () for stage in order.placement.stages)


async def test_it_waits_with_the_bytes_that_each_stage_needs(allocators: Allocators) -> None:
    await placed(allocators, 30, 50, 10)
    (waiting,) = of_type(DeploymentWaiting, await allocators.tell(computed(PIPELINE, deployment_id=UUID(int=9))))
    assert "30 B free on a A6000 for 3 layers, 50 B free on a A6000 for 4 layers" in waiting.detail
    assert "short of stages: a comes closest, where 0 of 3 stages find a GPU each" in waiting.detail


async def test_what_could_never_fit_fails_at_once(allocators: Allocators) -> None:
    await allocators.tell(report("a", 30, 49, 10))
    (failure,) = of_type(DeploymentFailed, await allocators.tell(computed(PIPELINE)))
    assert failure.reason is FailureReason.NO_CAPACITY
    assert "it would not fit if nothing else ran either" in failure.detail


async def test_a_failure_for_memory_teaches_that_its_stages_need_more(allocators: Allocators) -> None:
    order = await placed(allocators, 30, 50, 10)
    at = order.placement
    failed = ReplicaFailed(
        deployment_id=DEPLOYMENT, replica=0, token=at.token, node="a", detail="CUDA out of memory", out_of_memory=True
    )
    await allocators.tell(failed)
    await allocators.tell(report("b", 34, 55, 15))
    again = await allocators.tell(computed(PIPELINE, deployment_id=UUID(int=9)))
    assert of_type(PlacementReserved, again) == []
    await allocators.tell(report("c", 35, 55, 15))
    (order,) = of_type(PlacementReserved, await allocators.tell(computed(PIPELINE, deployment_id=UUID(int=8))))
    assert [stage.reserved_bytes for stage in order.placement.stages] == [35, 55, 15]


async def test_its_bytes_count_on_its_tenants_quota(redis_url: str) -> None:
    allocators = Allocators(redis_url, quotas=parse_quotas("*=89B"))
    await allocators.tell(report("a", 30, 50, 10))
    (failure,) = of_type(DeploymentFailed, await allocators.tell(computed(PIPELINE)))
    assert failure.reason is FailureReason.QUOTA_EXCEEDED
    await allocators.redis.aclose()


async def test_a_replica_that_moves_keeps_its_stages_and_precisions(allocators: Allocators) -> None:
    order = await placed(allocators, 30, 50, 10)
    await allocators.tell(ready(order))
    await allocators.tell(report("b", 11, 31, 51))
    asked = DefragmentationRequested(defragmentation_id=UUID(int=77), apply=True, free_gpu="a/1")
    told, due = await allocators.tell(asked)
    assert isinstance(told, DefragmentationProgressed) and isinstance(due, MoveRequested)
    (copy,) = of_type(PlacementReserved, await allocators.tell(due))
    assert copy.placement.candidate == order.placement.candidate
    assert [stage.gpus for stage in copy.placement.stages] == [("b/1",), ("b/2",), ("b/0",)]
    kept = [(stage.precisions, stage.reserved_bytes) for stage in order.placement.stages]
    assert [(stage.precisions, stage.reserved_bytes) for stage in copy.placement.stages] == kept


async def test_redis_emptied_it_is_taken_back_as_it_runs(allocators: Allocators) -> None:
    order = await placed(allocators, 30, 50, 10)
    await allocators.redis.flushall()
    await allocators.tell(report("a", 30, 50, 10, running=[order]))
    answer = await allocators.tell(PlacementConfirmed(deployment_id=DEPLOYMENT, placement=order.placement))
    assert of_type(PlacementReserved, answer) == [order]
    assert await allocators.held() == {"a/0": 30, "a/1": 50, "a/2": 10}


async def test_a_lost_replica_waits_until_its_planned_stages_find_gpus_again(allocators: Allocators) -> None:
    order = await placed(allocators, 30, 50, 10)
    await allocators.tell(ready(order))
    lost = ReplicaLost(deployment_id=DEPLOYMENT, replica=0, token=order.placement.token, node="a", detail="gone")
    answer = await allocators.tell(lost)
    (waiting,) = of_type(DeploymentWaiting, answer)
    assert "replica 0 is lost (gone)" in waiting.detail
    await allocators.listen(GRACE_S * 2)
    (due,) = of_type(PlacementRequested, await allocators.tell(report("b", 50, 30, 10)))
    (again,) = of_type(PlacementReserved, await allocators.tell(due))
    assert [stage.gpus for stage in again.placement.stages] == [("b/1",), ("b/0",), ("b/2",)]
