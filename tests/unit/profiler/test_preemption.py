"""A calibration gives way to what deployments wait for: their models' measurements, and engines that start."""

import asyncio
from uuid import uuid4

import pytest

from maveriq.bus.inprocess import InProcessBus
from maveriq.contracts import (
    Message,
    Placement,
    PlacementReserved,
    ReplicaFailed,
    ReplicaLost,
    ReplicaReady,
    ReplicaStopped,
    Stage,
)
from maveriq_profiler.preemption import Preempted, Preemption
from maveriq_profiler.starts import Starts
from tests.unit.allocator.plans import MODEL, candidate

DEPLOYMENT = uuid4()
TOLD = {"deployment_id": DEPLOYMENT, "replica": 0, "token": "t", "node": "n"}


def reserved(gpu_type: str) -> PlacementReserved:
    stages = (Stage(gpus=("n/0",), num_layers=8, reserved_bytes=100),)
    placed = Placement(
        replica=0, token="t", node="n", model=MODEL, candidate=candidate(gpu_type=gpu_type), stages=stages
    )
    return PlacementReserved(deployment_id=DEPLOYMENT, node="n", placement=placed)


@pytest.mark.parametrize(
    "end",
    [
        ReplicaReady(**TOLD, load_s=1),
        ReplicaFailed(**TOLD, detail="no"),
        ReplicaLost(**TOLD, detail="silent"),
        ReplicaStopped(**TOLD),
    ],
    ids=lambda end: end.topic,
)
async def test_an_engine_that_starts_on_this_processor_goes_first_until_its_start_has_ended(
    end: Message, bus: InProcessBus
) -> None:
    preemption = Preemption()
    await Starts(preemption, "cpu-1t").open(bus)
    calibrating = asyncio.create_task(preemption.preemptible(asyncio.sleep(60)))
    await bus.publish(reserved("cpu-1t"))
    with pytest.raises(Preempted):
        await calibrating
    await bus.publish(end)
    await preemption.after_deployments()


async def test_an_engine_that_starts_elsewhere_disturbs_nothing() -> None:
    preemption = Preemption()
    Starts(preemption, "cpu-1t").hear(reserved("NVIDIA L4"))
    assert await preemption.preemptible(asyncio.sleep(0, "measured")) == "measured"


async def test_of_several_that_are_waited_for_the_last_counts() -> None:
    preemption = Preemption()
    preemption.begin("engine")
    with preemption.by_intent():
        preemption.end("engine")
        with pytest.raises(Preempted):
            await preemption.preemptible(asyncio.sleep(60))
    await preemption.after_deployments()
