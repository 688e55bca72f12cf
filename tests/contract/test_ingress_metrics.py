"""GET /metrics: deployments by state, GPU memory, missed predictions and calibrations, as Prometheus reads them."""

from collections.abc import AsyncIterator
from uuid import uuid4

import pytest
from prometheus_client.parser import text_string_to_metric_families

from maveriq.bus.inprocess import InProcessBus
from maveriq.contracts import CalibrationUpdated, Gpu, GpuState, Holding, InventoryChanged, PredictionMissed
from tests.door import Door, quiet_ingress
from tests.unit.profiler.calibrations import calibration

ON = {"engine": "torch", "gpu_type": "cpu-1t"}


@pytest.fixture
async def door(redis_url: str, bus: InProcessBus) -> AsyncIterator[Door]:
    async with quiet_ingress(redis_url, bus) as opened:
        yield opened


async def value(door: Door, name: str, **labels: str) -> float | None:
    """Of a metric; None: it is not told."""
    answer = await door.http.get("/metrics")
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/plain")
    found = [
        sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
        if sample.name == name and sample.labels == labels
    ]
    return found[0] if found else None


async def test_deployments_are_told_by_state_and_a_missed_prediction_is_counted(door: Door) -> None:
    assert await value(door, "maveriq_deployments", state="ready") == 0
    deployment_id = await door.deploy()
    assert await value(door, "maveriq_deployments", state="ready") == 1
    missed = PredictionMissed(
        deployment_id=deployment_id, what="decode_ms", batch=4, measured_ms=9.0, predicted_ms=3.0,
        interval_ms=(2.7, 3.3), **ON,
    )  # fmt: skip
    await door.bus.publish(missed)

    async def counted() -> bool:
        return await value(door, "maveriq_predictions_missed_total", what="decode_ms", **ON) == 1

    await door.until(counted)


async def test_memory_is_told_by_gpu_type_and_holder_and_goes_with_its_node(door: Door) -> None:
    gpu = Gpu(id="n1/0", gpu_type="L4", total_bytes=100, foreign_bytes=10)
    state = GpuState(gpu=gpu, holdings=(Holding(deployment_id=uuid4(), replica=0, bytes=60),))
    await door.bus.publish(InventoryChanged(node="n1", engine="torch", gpus=(state, state)))

    async def reports(state: str) -> bool:
        return await value(door, "maveriq_gpus", gpu_type="L4", state=state) == 2

    await door.until(lambda: reports("reporting"))
    told = [await value(door, "maveriq_gpu_bytes", gpu_type="L4", of=of) for of in ("reserved", "foreign", "free")]
    assert told == [120, 20, 60]
    await door.bus.publish(InventoryChanged(node="n1", engine="torch", gpus=(state, state), silent=True))
    await door.until(lambda: reports("silent"))
    assert await value(door, "maveriq_gpus", gpu_type="L4", state="reporting") is None


async def test_a_calibration_tells_its_version_and_how_well_it_fits(door: Door) -> None:
    known = calibration(version=3)
    await door.bus.publish(CalibrationUpdated(calibration=known))
    on = {"engine": known.engine, "gpu_type": known.gpu_type}

    async def told() -> bool:
        return await value(door, "maveriq_calibration_version", **on) == 3

    await door.until(told)
    assert await value(door, "maveriq_calibration_residual_ratio", **on) == known.latency_residuals.median
    assert await value(door, "maveriq_calibration_models", **on) == known.scope.num_models
    assert await value(door, "maveriq_calibration_drift_ratio", what="decode_ms", **on) == known.decode_drift
