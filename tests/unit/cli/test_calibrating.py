"""`maveriq calibrate` and `maveriq calibrations`: what is asked for, what is told, and how it ends."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from maveriq.cli import calibrating
from maveriq.contracts import CalibrationProgressed
from tests.unit.cli.conftest import Called, Events, ScriptedIngress
from tests.unit.profiler.calibrations import calibration

Call = Callable[..., Called]
IDS = ("11111111-0000-4000-8000-000000000000", "22222222-0000-4000-8000-000000000000")
TYPES = ("cpu-1t", "NVIDIA L4")


def news(which: int, num_done: int, **other: Any) -> dict[str, Any]:
    told = CalibrationProgressed(
        calibration_id=IDS[which], node=f"rig-{which}", engine="torch", gpu_type=TYPES[which], num_done=num_done,
        num_planned=2, spent_s=num_done * 7.5, budget_s=60, **other,
    )  # fmt: skip
    return told.model_dump(mode="json")


def starts(ingress: ScriptedIngress, *following: list[dict[str, Any]], known: tuple[str, ...] = TYPES) -> None:
    """Ingress starts one calibration for each list of news."""
    asked = [{"calibration_id": IDS[n], "node": f"rig-{n}", "budget_s": None} for n in range(len(following))]
    ingress.answer("POST /v1/calibrations", {"data": asked}, 202)
    for which, told in enumerate(following):
        ingress.answer(f"GET /v1/calibrations/{IDS[which]}/events", Events(told))
    fitted = [calibration(gpu_type).model_dump(mode="json") for gpu_type in known]
    ingress.answer("GET /v1/calibrations", {"data": fitted, "under_way": [news(0, 1, measuring="deep")]})


def test_a_calibration_is_followed_and_summed_up_with_its_cost_and_residuals(
    ingress: ScriptedIngress, call: Call
) -> None:
    starts(ingress, [news(0, 0, measuring="deep"), news(0, 1, measuring="wide"), news(0, 2, finished=True)])
    called = call("calibrate", "--node", "vm", "--budget-s", "60", "--precision", "int8")
    assert called.code == 0
    assert ingress.asked[0] == ("POST /v1/calibrations", {"node": "vm", "budget_s": 60.0, "precisions": ["int8"]})
    assert "0 of 2 models, 0 of 60 GPU-seconds; measuring deep" in called.out
    assert "2 of 2 models, 15 of 60 GPU-seconds" in called.out
    assert "9 GPU-seconds" in called.out and "1 % (median), 10 % (nine in ten)" in called.out


def test_all_gpu_types_are_followed_at_once(ingress: ScriptedIngress, call: Call) -> None:
    starts(ingress, [news(0, 2, finished=True)], [news(1, 1), news(1, 2, finished=True, problem="the budget is spent")])
    called = call("calibrate", "--json")
    assert called.code == 0
    told = json.loads(called.out)
    assert [one["gpu_type"] for one in told["progress"]] == list(TYPES)
    assert [one["gpu_type"] for one in told["calibrations"]] == list(TYPES)


def test_a_gpu_type_that_stays_uncalibrated_is_an_error_with_the_reason(ingress: ScriptedIngress, call: Call) -> None:
    starts(ingress, [news(0, 0, finished=True, problem="give the GPU more memory")], known=())
    called = call("calibrate")
    assert called.code == 1
    assert called.err.startswith("maveriq: ") and "give the GPU more memory" in called.err


def test_an_ingress_that_stops_telling_is_an_error_not_a_wait(ingress: ScriptedIngress, call: Call) -> None:
    starts(ingress, [news(0, 1)])
    called = call("calibrate")
    assert called.code == 1 and "maveriq calibrations" in called.err


def test_leaving_says_that_it_goes_on(ingress: ScriptedIngress, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    starts(ingress, [])

    def left(self: calibrating.Following) -> list[CalibrationProgressed]:
        raise KeyboardInterrupt

    monkeypatch.setattr(calibrating.Following, "to_the_end", left)
    called = call("calibrate")
    assert called.code == 0
    assert "rig-0 goes on" in called.out and "maveriq calibrations" in called.out


def test_calibrations_shows_how_far_each_is_to_be_trusted(ingress: ScriptedIngress, call: Call) -> None:
    starts(ingress)
    called = call("calibrations")
    assert called.code == 0
    assert "2 models, 9 samples" in called.out and "TP 1; stages 1, 2; batch to 8" in called.out
    assert "under way: cpu-1t (torch): 1 of 2 models" in called.out
    assert [one["gpu_type"] for one in json.loads(call("calibrations", "--json").out)["data"]] == list(TYPES)
    ingress.answer("GET /v1/calibrations", {"data": [], "under_way": []})
    assert "maveriq calibrate" in call("calibrations").out
