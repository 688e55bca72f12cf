"""Calibrations at the door: asked for, followed and listed; a missed prediction in its deployment's record."""

import json
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID, uuid4

import pytest

from maveriq.bus.inprocess import InProcessBroker, InProcessBus
from maveriq.bus.queues import QueueSpec
from maveriq.contracts import (
    CalibrationProgressed,
    CalibrationRequested,
    CalibrationUpdated,
    DeploymentFailed,
    FailureReason,
    Gpu,
    GpuState,
    InventoryChanged,
    PlacementReserved,
    PredictionMissed,
)
from tests.door import Door, quiet_ingress
from tests.fakes import placement
from tests.unit.profiler.calibrations import calibration

RUN = uuid4()


@pytest.fixture
async def door(redis_url: str, bus: InProcessBus) -> AsyncIterator[Door]:
    async with quiet_ingress(redis_url, bus) as opened:
        for node, gpu_type in (("a", "cpu-1t"), ("b", "cpu-1t"), ("c", "NVIDIA L4")):
            gpus = (GpuState(gpu=Gpu(id=f"{node}/0", gpu_type=gpu_type, total_bytes=9, foreign_bytes=0)),)
            await bus.publish(InventoryChanged(node=node, engine="torch", gpus=gpus))
        await opened.until(lambda: _knows(opened, 3))
        yield opened


async def _knows(door: Door, nodes: int) -> bool:
    return len((await door.http.get("/v1/gpus")).json()["data"]) == nodes


def profilers(broker: InProcessBroker, *rigs: str) -> None:
    for rig in rigs:
        broker.declare(QueueSpec(name=rig, bindings=(f"{CalibrationRequested.topic}.{rig}",)))


def asked(broker: InProcessBroker, rig: str) -> list[dict[str, Any]]:
    return [json.loads(letter.body) for letter in broker.dead_letters(rig)]


def progressed(num_done: int, *, finished: bool = False) -> CalibrationProgressed:
    return CalibrationProgressed(
        calibration_id=RUN, node="torch-cpu-1t", engine="torch", gpu_type="cpu-1t", num_done=num_done, num_planned=3,
        spent_s=1.5, budget_s=60, finished=finished,
    )  # fmt: skip


async def test_without_a_name_every_gpu_type_of_the_cluster_is_calibrated_once(
    door: Door, broker: InProcessBroker
) -> None:
    profilers(broker, "torch-cpu-1t", "torch-nvidia-l4")
    answer = await door.http.post("/v1/calibrations", json={"budget_s": 45, "precisions": ["int4"]})
    assert answer.status_code == 202
    told = answer.json()["data"]
    assert [one["node"] for one in told] == ["torch-cpu-1t", "torch-nvidia-l4"]
    assert [asked(broker, one["node"]) for one in told] == [[one] for one in told]
    assert [(one["budget_s"], one["precisions"]) for one in told] == [(45, ["int4"])] * 2


@pytest.mark.parametrize(
    "body",
    [{"node": "c"}, {"node": "torch-nvidia-l4"}, {"gpu_type": "NVIDIA L4"}, {"node": "c", "gpu_type": "NVIDIA L4"}],
)
async def test_a_node_a_rig_and_a_gpu_type_name_what_is_meant(
    door: Door, broker: InProcessBroker, body: dict[str, str]
) -> None:
    profilers(broker, "torch-cpu-1t", "torch-nvidia-l4")
    told = (await door.http.post("/v1/calibrations", json=body)).json()["data"]
    assert [one["node"] for one in told] == ["torch-nvidia-l4"]
    assert asked(broker, "torch-cpu-1t") == []


@pytest.mark.parametrize(
    ("body", "status", "param", "words"),
    [
        ({"node": "z"}, 404, "node", "a (cpu-1t)"),
        ({"gpu_type": "H100"}, 404, "gpu_type", "c (NVIDIA L4)"),
        ({"node": "a", "gpu_type": "NVIDIA L4"}, 404, "gpu_type", "a (cpu-1t)"),
        ({"budget_s": 0}, 400, "budget_s", "greater than 0"),
        ({"precisions": ["fp8"]}, 400, "precisions", "no engine makes fp8 of single layers"),
        ({"budget": 9}, 400, "budget", ""),
        ({"node": "c"}, 503, None, "no profiler measures torch-nvidia-l4"),
    ],
)
async def test_what_cannot_be_calibrated_is_refused_with_the_field_and_the_remedy(
    door: Door, body: dict[str, Any], status: int, param: str | None, words: str
) -> None:
    answer = await door.http.post("/v1/calibrations", json=body)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert error["param"] == param and words in error["message"]


async def test_a_calibration_is_followed_to_its_end(door: Door) -> None:
    followed: list[dict[str, Any]] = []
    await door.bus.publish(progressed(1))
    async with door.http.stream("GET", f"/v1/calibrations/{RUN}/events") as events:
        async for line in events.aiter_lines():
            if line.startswith("data: "):
                followed.append(json.loads(line.removeprefix("data: ")))
                await door.bus.publish(progressed(len(followed) + 1, finished=len(followed) == 2))
    assert [(one["num_done"], one["finished"]) for one in followed] == [(1, False), (2, False), (3, True)]


async def test_a_calibration_that_was_just_asked_for_is_followed_from_any_ingress(
    door: Door, broker: InProcessBroker, redis_url: str
) -> None:
    profilers(broker, "torch-nvidia-l4")
    told = (await door.http.post("/v1/calibrations", json={"node": "c"})).json()["data"]
    run = progressed(3, finished=True).model_copy(update={"calibration_id": UUID(told[0]["calibration_id"])})
    where = f"/v1/calibrations/{run.calibration_id}/events"
    async with quiet_ingress(redis_url, door.bus) as another, another.http.stream("GET", where) as events:
        assert events.status_code == 200
        await door.bus.publish(run)
        lines = [line async for line in events.aiter_lines() if line.startswith("data: ")]
    assert [json.loads(line.removeprefix("data: "))["num_done"] for line in lines] == [3]


async def test_a_calibration_that_nobody_knows_is_refused_with_what_to_do(door: Door) -> None:
    refused = [uuid4(), "seven"]
    answers = [await door.http.get(f"/v1/calibrations/{one}/events") for one in refused]
    assert [answer.status_code for answer in answers] == [404, 400]
    error = answers[0].json()["error"]
    assert (error["param"], error["code"]) == ("calibration_id", "calibration_not_found")
    assert "GET /v1/calibrations lists those under way" in error["message"]


async def test_what_is_known_and_what_is_under_way_is_listed(door: Door) -> None:
    later = calibration(version=2, fitted_at=calibration().fitted_at.replace(year=2027))
    for known in (calibration(), later, calibration()):  # and an earlier one comes again
        await door.bus.publish(CalibrationUpdated(calibration=known))
    await door.bus.publish(progressed(1))

    async def listed() -> dict[str, Any]:
        found: dict[str, Any] = (await door.http.get("/v1/calibrations")).json()
        return found

    async def both() -> bool:
        found = await listed()
        return bool(found["under_way"]) and [one["version"] for one in found["data"]] == [2]

    await door.until(both)
    assert (await listed())["under_way"][0]["num_done"] == 1
    await door.bus.publish(progressed(3, finished=True))
    await door.bus.publish(progressed(2))

    async def ended() -> bool:
        return not (await listed())["under_way"]

    await door.until(ended)


async def test_a_missed_prediction_is_in_its_deployments_record_and_its_events(door: Door) -> None:
    deployment_id = await door.deploy()
    missed = PredictionMissed(
        deployment_id=deployment_id, what="decode_ms", batch=4, measured_ms=9.0, predicted_ms=3.0,
        interval_ms=(2.7, 3.3),
    )  # fmt: skip
    await door.bus.publish(missed)
    async with door.http.stream("GET", f"/v1/deployments/{deployment_id}/events") as events:
        async for line in events.aiter_lines():
            told = json.loads(line.removeprefix("data: ")) if line.startswith("data: ") else {}
            if told.get("prediction_missed"):
                break
    assert PredictionMissed.model_validate(told["prediction_missed"]) == missed
    assert told["state"] == "ready"


async def test_planning_again_without_a_result_ends_nothing_that_runs(door: Door) -> None:
    deployment_id = await door.deploy()
    await door.bus.publish(PlacementReserved(deployment_id=deployment_id, node="n1", placement=placement()))
    await door.until(lambda: _is_placed(door, deployment_id))
    await door.bus.publish(failed(deployment_id))
    await door.bus.publish(InventoryChanged(node="d", engine="torch", gpus=()))
    await door.until(lambda: _knows(door, 4))
    assert await door.state(deployment_id) == "ready"


async def test_a_first_plan_without_a_result_ends_the_deployment(door: Door) -> None:
    deployment_id = await door.deploy()  # ready by word alone: nothing was placed
    await door.bus.publish(failed(deployment_id))
    await door.until(lambda: _is(door, deployment_id, "failed"))


def failed(deployment_id: UUID) -> DeploymentFailed:
    return DeploymentFailed(deployment_id=deployment_id, reason=FailureReason.NO_FEASIBLE_PLAN, detail="too slow")


async def _is(door: Door, deployment_id: UUID, state: str) -> bool:
    return await door.state(deployment_id) == state


async def _is_placed(door: Door, deployment_id: UUID) -> bool:
    return bool((await door.http.get(f"/v1/deployments/{deployment_id}")).json()["placements"])
