"""A node's GPU type is calibrated when the system starts, by processes, and goes on after a kill."""

import json
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.system import System

PATIENCE_S = 60.0


@pytest.fixture
def system(cache_dir: Path, rabbitmq_url: str, redis_url: str) -> Iterator[System]:
    settings = {"MAVERIQ_CALIBRATE": "on", "MAVERIQ_CALIBRATION_BUDGET_S": "1", "MAVERIQ_NODE": "calibrated"}
    with System(rabbitmq_url, redis_url, devices="cpu:0=2GiB", cache_dir=cache_dir, **settings) as running:
        yield running


def told(system: System, path: str) -> Any:
    with urllib.request.urlopen(f"{system.url}{path}", timeout=5) as answer:
        return json.load(answer)


def until(system: System, check: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """The calibration under way, once it is so far."""
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        for progress in told(system, "/v1/calibrations")["under_way"]:
            if check(progress):
                found: dict[str, Any] = progress
                return found
        time.sleep(0.2)
    raise AssertionError(f"not in {PATIENCE_S:.0f} s\n{system.logs()}")


def test_a_gpu_type_is_calibrated_at_the_start_in_held_memory_and_a_killed_profiler_goes_on(system: System) -> None:
    first = until(system, lambda progress: bool(progress["measuring"]))
    assert (first["node"], first["num_done"], first["num_planned"], first["budget_s"]) == ("torch-cpu-1t", 0, 2, 1.0)
    (node,) = told(system, "/v1/gpus")["data"]
    (holding,) = node["gpus"][0]["holdings"]
    assert holding["calibration"] and holding["bytes"] > 0
    system.kill("profiler")
    system.start("profiler")
    _, going_on = begun(system, 2)  # with another model, for the dead one's claim still holds
    resumed = until(system, lambda progress: progress["measuring"] == going_on != first["measuring"])
    assert resumed["calibration_id"] == first["calibration_id"]


def begun(system: System, count: int) -> list[str]:
    """The items that profilers began to measure, in order, once there are so many."""
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        lines = (json.loads(line) for line in system.log("profiler").read_text().splitlines() if line.startswith("{"))
        items = [line["item"] for line in lines if line["event"] == "measuring"]
        if len(items) >= count:
            return items
        time.sleep(0.2)
    raise AssertionError(f"not in {PATIENCE_S:.0f} s\n{system.logs()}")
