"""The allocator as its neighbours see it: messages in, messages out, through JSON, on a real Redis."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any, TypeVar, cast

import pytest

from maveriq.bus import Bus, Handler, Rejected
from maveriq.bus.handling import check_handlers, decode, replies
from maveriq.contracts import (
    DeploymentDraining,
    DeploymentFailed,
    DeploymentKept,
    DeploymentReleased,
    DeploymentWaiting,
    FailureReason,
    InventoryChanged,
    Message,
    NodeReported,
    NodeStarted,
    PlacementReserved,
    PlanComputed,
    ReleaseAccepted,
    ReplicaFailed,
    ReplicaReady,
    ReplicaStopped,
)
from maveriq.topology import ALLOCATOR, Service
from maveriq_allocator.__main__ import bound, run, wire
from maveriq_allocator.settings import Settings
from maveriq_allocator.store import connect
from tests.unit.allocator.plans import DEPLOYMENT, candidate, computed, memory, reported

M = TypeVar("M", bound=Message)


class Allocator:
    """One allocator process, fed by hand."""

    def __init__(self, redis_url: str) -> None:
        self._redis = connect(redis_url)
        self._handlers = {h.message: h for h in bound(wire(self._redis, Settings(redis_url, 60.0)))}

    async def tell(self, message: Message) -> list[Message]:
        """Both ways through the JSON that the broker would carry; without copies of records."""
        cause = decode(type(message), message.topic, message.model_dump_json().encode())
        returned = replies(ALLOCATOR, await self._handlers[type(message)].run(cause))
        told = [decode(type(reply), reply.topic, reply.model_dump_json().encode()) for reply in returned]
        return [reply for reply in told if not isinstance(reply, DeploymentKept)]

    async def close(self) -> None:
        await self._redis.aclose()


@pytest.fixture
async def allocator(redis_url: str) -> AsyncIterator[Allocator]:
    allocator = Allocator(redis_url)
    yield allocator
    await allocator.close()


def of_type(kind: type[M], messages: list[Message]) -> list[M]:
    return [message for message in messages if isinstance(message, kind)]


def held(messages: list[Message]) -> dict[str, int]:
    """Bytes held of each GPU, as last told."""
    states = [state for message in of_type(InventoryChanged, messages) for state in message.gpus]
    return {state.gpu.id: sum(holding.bytes for holding in state.holdings) for state in states}


def ready(order: PlacementReserved) -> ReplicaReady:
    at = order.placement
    return ReplicaReady(deployment_id=order.deployment_id, replica=at.replica, token=at.token, node=at.node, load_s=1)


def failed(order: PlacementReserved, detail: str = "out of memory", *, unusable: bool = False) -> ReplicaFailed:
    at = order.placement
    return ReplicaFailed(
        deployment_id=order.deployment_id, replica=at.replica, token=at.token, node=at.node, detail=detail,
        checkpoint_unusable=unusable,
    )  # fmt: skip


def stopped(order: PlacementReserved | DeploymentDraining) -> ReplicaStopped:
    at = order.placement if isinstance(order, PlacementReserved) else order
    return ReplicaStopped(deployment_id=order.deployment_id, replica=at.replica, token=at.token, node=at.node)


async def place(allocator: Allocator, plan: PlanComputed) -> list[PlacementReserved]:
    return of_type(PlacementReserved, await allocator.tell(plan))


async def test_a_report_is_answered_with_what_the_node_has(allocator: Allocator) -> None:
    (reply,) = await allocator.tell(reported("a", 100, 80, foreign=[30]))
    assert isinstance(reply, InventoryChanged)
    assert (reply.node, reply.engine) == ("a", "torch")
    assert [state.free_bytes for state in reply.gpus] == [70, 80]


async def test_a_plan_reserves_uneven_stages_on_fragments(allocator: Allocator) -> None:
    await allocator.tell(reported("a", 100, 100, foreign=[30, 55]))
    wanted = computed(candidate(pp=1), candidate(pp=2, stage=memory(layer=10, last=15)), num_layers=9)
    answer = await allocator.tell(wanted)
    (order,) = of_type(PlacementReserved, answer)
    assert (order.deployment_id, order.node) == (DEPLOYMENT, "a")
    assert order.placement.candidate == wanted.plan.candidates[1]
    assert order.placement.model == wanted.admission.model
    assert order.placement.layers in ((4, 5), (5, 4))
    assert held(answer) == {gpu: stage.reserved_bytes for stage in order.placement.stages for gpu in stage.gpus}


async def test_every_replica_gets_its_own_order_or_none_does(allocator: Allocator) -> None:
    await allocator.tell(reported("a", 170))
    await allocator.tell(reported("b", 90))
    orders = await place(allocator, computed(replicas=3))
    assert sorted((order.placement.replica, order.node) for order in orders) == [(0, "b"), (1, "a"), (2, "a")]
    assert len({order.placement.token for order in orders}) == 3


async def test_no_room_fails_with_what_was_needed_and_what_there_was(allocator: Allocator) -> None:
    await allocator.tell(reported("a", 170))
    answer = await allocator.tell(computed(replicas=3))
    assert of_type(PlacementReserved, answer) == []
    (failure,) = of_type(DeploymentFailed, answer)
    assert failure.reason is FailureReason.NO_CAPACITY
    assert "3 x 1 GPU(s) A6000" in failure.detail
    assert "80 B free on each" in failure.detail
    assert "a: 170 B" in failure.detail
    (node,) = of_type(InventoryChanged, await allocator.tell(reported("a", 170)))
    assert node.gpus[0].holdings == ()


async def test_without_any_node_the_plan_waits_for_the_missing_type(allocator: Allocator) -> None:
    (waiting,) = await allocator.tell(computed())
    assert isinstance(waiting, DeploymentWaiting)
    assert "no node with engine torch has a A6000" in waiting.detail


async def test_a_failed_replica_goes_on_with_the_next_candidate_in_the_bytes_it_gave_back(
    allocator: Allocator,
) -> None:
    await allocator.tell(reported("a", 80, 80))
    (first,) = await place(allocator, computed(candidate(pp=2, stage=memory(layer=20)), candidate(pp=2)))
    answer = await allocator.tell(failed(first))
    (second,) = of_type(PlacementReserved, answer)
    assert second.placement.token != first.placement.token
    assert held(answer) == {"a/0": 40, "a/1": 40}
    assert await allocator.tell(failed(first)) == answer


async def test_a_checkpoint_that_cannot_be_used_is_not_tried_again_with_another_candidate(
    allocator: Allocator,
) -> None:
    await allocator.tell(reported("a", 80, 80))
    (order,) = await place(allocator, computed(candidate(), candidate(pp=2)))
    (failure,) = of_type(DeploymentFailed, await allocator.tell(failed(order, "no such folder", unusable=True)))
    assert failure.reason is FailureReason.ENGINE_FAILED
    assert "no such folder" in failure.detail


async def test_a_replica_that_died_after_it_was_ready_gets_its_own_candidate_again(allocator: Allocator) -> None:
    await allocator.tell(reported("a", 80, 80))
    (first,) = await place(allocator, computed(candidate(pp=2), candidate()))
    await allocator.tell(ready(first))
    (second,) = of_type(PlacementReserved, await allocator.tell(failed(first)))
    assert second.placement.candidate == first.placement.candidate
    (third,) = of_type(PlacementReserved, await allocator.tell(failed(second)))
    assert third.placement.candidate != first.placement.candidate


async def test_when_no_candidate_is_left_the_others_drain_and_the_deployment_fails(allocator: Allocator) -> None:
    await allocator.tell(reported("a", 80, 80))
    first, second = await place(allocator, computed(replicas=2))
    await allocator.tell(ready(first))
    answer = await allocator.tell(failed(second, "device lost"))
    draining, failing = of_type(DeploymentDraining, answer)
    (failure,) = of_type(DeploymentFailed, answer)
    assert (draining.token, draining.node) == (first.placement.token, "a")
    assert failing.token == second.placement.token
    assert failure.reason is FailureReason.ENGINE_FAILED
    assert "device lost" in failure.detail
    assert sorted(held(answer).values()) == [0, 80]
    assert held(await allocator.tell(stopped(draining))) == {"a/0": 0, "a/1": 0}


async def test_when_candidates_are_left_that_no_longer_fit_the_reason_is_capacity(allocator: Allocator) -> None:
    await allocator.tell(reported("a", 80))
    (order,) = await place(allocator, computed(candidate(), candidate(stage=memory(layer=11))))
    (failure,) = of_type(DeploymentFailed, await allocator.tell(failed(order)))
    assert failure.reason is FailureReason.NO_CAPACITY
    assert "out of memory" in failure.detail
    assert "88 B" in failure.detail


async def test_a_release_drains_every_replica_and_ends_when_the_last_has_stopped(allocator: Allocator) -> None:
    await allocator.tell(reported("a", 80, 80))
    orders = await place(allocator, computed(replicas=2))
    draining = of_type(DeploymentDraining, await allocator.tell(ReleaseAccepted(deployment_id=DEPLOYMENT)))
    assert {d.token for d in draining} == {order.placement.token for order in orders}
    first = await allocator.tell(stopped(draining[0]))
    assert of_type(DeploymentReleased, first) == []
    assert sorted(held(first).values()) == [0, 80]
    last = await allocator.tell(stopped(draining[1]))
    assert of_type(DeploymentReleased, last) == [DeploymentReleased(deployment_id=DEPLOYMENT)]
    assert set(held(last).values()) == {0}


async def test_a_release_before_the_plan_ends_at_once_and_the_late_plan_reserves_nothing(allocator: Allocator) -> None:
    await allocator.tell(reported("a", 80))
    assert await allocator.tell(ReleaseAccepted(deployment_id=DEPLOYMENT)) == [
        DeploymentReleased(deployment_id=DEPLOYMENT)
    ]
    assert await place(allocator, computed()) == []
    assert held(await allocator.tell(reported("a", 80))) == {"a/0": 0}


async def test_a_replica_that_fails_while_draining_is_not_placed_again(allocator: Allocator) -> None:
    await allocator.tell(reported("a", 80, 80))
    (order,) = await place(allocator, computed(candidate(), candidate()))
    await allocator.tell(ReleaseAccepted(deployment_id=DEPLOYMENT))
    answer = await allocator.tell(failed(order))
    assert of_type(PlacementReserved, answer) == []
    assert of_type(DeploymentReleased, answer) == [DeploymentReleased(deployment_id=DEPLOYMENT)]
    assert set(held(answer).values()) == {0}


async def test_a_worker_that_came_up_is_told_again_with_the_same_tokens(allocator: Allocator) -> None:
    for name in ("a", "b"):
        await allocator.tell(reported(name, 80))
    orders = await place(allocator, computed(replicas=2))
    await allocator.tell(ready(orders[0]))
    assert await allocator.tell(NodeStarted(node="a")) == [order for order in orders if order.node == "a"]
    await allocator.tell(ReleaseAccepted(deployment_id=DEPLOYMENT))
    (draining,) = await allocator.tell(NodeStarted(node="b"))
    assert isinstance(draining, DeploymentDraining)
    assert await allocator.tell(NodeStarted(node="nobody")) == []


async def test_a_replica_that_starts_after_its_deployment_ended_is_told_to_stop(allocator: Allocator) -> None:
    """Its order and the draining go through different queues: the worker may see them the other way round."""
    await allocator.tell(reported("a", 80))
    (order,) = await place(allocator, computed())
    (draining,) = await allocator.tell(ReleaseAccepted(deployment_id=DEPLOYMENT))
    await allocator.tell(stopped(order))
    assert await allocator.tell(ready(order)) == [draining]


async def test_ready_in_good_order_causes_nothing(allocator: Allocator) -> None:
    await allocator.tell(reported("a", 80))
    (order,) = await place(allocator, computed())
    assert await allocator.tell(ready(order)) == []


async def test_every_message_twice_changes_nothing_and_is_answered_alike(allocator: Allocator) -> None:
    async def twice(message: Message) -> list[Message]:
        answer = await allocator.tell(message)
        assert await allocator.tell(message) == answer
        return answer

    await twice(reported("a", 80, 80, 80))
    (first,) = of_type(PlacementReserved, await twice(computed(candidate(), candidate(pp=2), candidate())))
    await twice(ready(first))
    (second,) = of_type(PlacementReserved, await twice(failed(first)))
    await twice(NodeStarted(node="a"))
    draining, failing = of_type(DeploymentDraining, await twice(ReleaseAccepted(deployment_id=DEPLOYMENT)))
    assert draining.token == second.placement.token
    assert failing.token == first.placement.token
    await twice(stopped(failing))
    await twice(stopped(draining))
    await twice(ReleaseAccepted(deployment_id=DEPLOYMENT))
    assert held(await allocator.tell(reported("a", 80, 80, 80))) == {"a/0": 0, "a/1": 0, "a/2": 0}


async def test_a_failed_plan_twice_fails_twice_in_the_same_words(allocator: Allocator) -> None:
    await allocator.tell(reported("a", 79))
    answer = await allocator.tell(computed())
    await allocator.tell(reported("a", 200))
    assert await allocator.tell(computed()) == answer


async def test_a_node_that_fell_silent_gets_nothing_and_is_named(allocator: Allocator, redis_url: str) -> None:
    for name in ("a", "b"):
        await allocator.tell(reported(name, 80))
    redis = connect(redis_url)
    await redis.hincrby("maveriq:allocator:node:a", "heard_at_ms", -61_000)
    await redis.aclose()
    (waiting,) = of_type(DeploymentWaiting, await allocator.tell(computed(replicas=2)))
    assert "nodes that no longer report: a" in waiting.detail


def broken(**changes: object) -> bytes:
    return json.dumps(computed().model_dump(mode="json") | changes).encode()


@pytest.mark.parametrize(
    ("message", "body", "field"),
    [
        (PlanComputed, b'{"deployment_id": ', ""),
        (PlanComputed, b"[]", ""),
        (PlanComputed, broken(deployment_id="seven"), "deployment_id"),
        (PlanComputed, broken(plan={"candidates": 7}), "plan.candidates"),
        (NodeReported, b'{"node": "a.b", "engine": "torch", "gpus": []}', "node"),
        (NodeReported, b'{"node": "a", "engine": "torch", "gpus": []}', "gpus"),
        (NodeStarted, b"{}", "node"),
        (ReplicaReady, b'{"replica": "first"}', "replica"),
        (ReplicaFailed, b'{"replica": 0}', "token"),
        (ReplicaStopped, b"null", ""),
        (ReleaseAccepted, b'{"deployment_id": 7}', "deployment_id"),
    ],
)
def test_a_malformed_message_is_refused_by_field(message: type[Message], body: bytes, field: str) -> None:
    with pytest.raises(Rejected) as refused:
        decode(message, message.topic, body)
    assert field in {fault.field for fault in refused.value.faults}


@pytest.mark.parametrize("message", ALLOCATOR.consumes)
def test_an_unknown_version_is_refused(message: type[Message]) -> None:
    unknown = message.topic.removesuffix(".v1") + ".v2"
    with pytest.raises(Rejected, match=unknown.replace(".", r"\.")):
        decode(message, unknown, b"{}")


class RecordingBus:
    """Checks and keeps what it was asked to run, until cancelled."""

    def __init__(self) -> None:
        self.ran: asyncio.Future[list[Handler[Any]]] = asyncio.get_running_loop().create_future()

    async def run(self, service: Service, handlers: list[Handler[Any]], *, node: str | None = None) -> None:
        assert service is ALLOCATOR
        check_handlers(service, handlers)
        self.ran.set_result(handlers)
        await asyncio.Event().wait()


async def test_the_service_runs_as_the_topology_says_on_the_store_of_the_environment(redis_url: str) -> None:
    bus = RecordingBus()
    serving = asyncio.create_task(run(cast(Bus, bus), {"MAVERIQ_REDIS_URL": redis_url}))
    handlers = {handler.message: handler for handler in await bus.ran}
    assert await handlers[NodeReported].run(reported("a", 100))
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await serving
