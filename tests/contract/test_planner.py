"""The planner as its neighbours see it: messages in, messages out, through JSON."""

import json
from collections.abc import Mapping
from typing import Any, cast

import pytest

from maveriq.bus import Bus, Handler, Rejected
from maveriq.bus.handling import check_handlers, decode, replies
from maveriq.contracts import (
    Admission,
    Basis,
    DeploymentFailed,
    FailureReason,
    FingerprintMeasured,
    Histogram,
    Message,
    PlanComputed,
    PlanPreviewed,
    Slo,
)
from maveriq.topology import PLANNER, Service
from maveriq_planner.__main__ import run
from maveriq_planner.handlers import Handlers
from tests.unit.planner.measurements import (
    BIG,
    BIG_MODEL,
    DEPLOYMENT,
    MODEL,
    Truth,
    calibration,
    fingerprint,
    intent,
    measured,
)
from tests.unit.planner.test_fleets import NEW, OLD, PRICES, free, wanted


async def answer(event: FingerprintMeasured) -> Message:
    """Both ways through the JSON that the broker would carry."""
    cause = decode(FingerprintMeasured, FingerprintMeasured.topic, event.model_dump_json().encode())
    assert cause == event
    (reply,) = replies(PLANNER, await Handlers(max_pp=4).on_fingerprint_measured(cause))
    sent = decode(type(reply), reply.topic, reply.model_dump_json().encode())
    assert sent == reply
    return sent


async def test_a_feasible_intent_yields_candidates_best_first() -> None:
    reply = await answer(measured(intent(slo=Slo(ttft_ms=5000))))
    assert isinstance(reply, PlanComputed)
    assert reply.deployment_id == DEPLOYMENT
    assert reply.admission == measured(intent(slo=Slo(ttft_ms=5000))).admission
    scores = [candidate.score for candidate in reply.plan.candidates]
    assert scores == sorted(scores)
    assert reply.plan.num_considered == 4 * 4 * 4
    assert {candidate.configuration.pp for candidate in reply.plan.candidates} == {1, 2, 3, 4}


async def test_a_calibrated_gpu_type_needs_no_fingerprint() -> None:
    """Every field that a prediction has is filled, but for a price that nobody gave."""
    wanted = intent(slo=Slo(ttft_ms=500, percentile=99), rate=5)
    accepted = Admission(intent=wanted, model=BIG_MODEL)
    event = measured(wanted, admission=accepted, facts=BIG, fingerprints=(), calibrations=(calibration(),))
    reply = await answer(event)
    assert isinstance(reply, PlanComputed)
    for candidate in (*reply.plan.candidates, *reply.plan.front):
        p = candidate.prediction
        assert p.basis is Basis.CALIBRATION
        missing = {name for name in type(p).model_fields if getattr(p, name) is None}
        assert missing <= {"price_per_hour", "price_per_million_tokens", "accuracy"}


async def test_a_dry_run_is_answered_with_the_same_plan_which_nobody_places() -> None:
    shown = await answer(measured(intent(), dry_run=True))
    placed = await answer(measured(intent()))
    assert isinstance(shown, PlanPreviewed)
    assert isinstance(placed, PlanComputed)
    assert shown.plan == placed.plan


async def test_an_infeasible_intent_fails_with_the_reason_and_the_nearest_that_would_be_met() -> None:
    reply = await answer(measured(intent(slo=Slo(tpot_ms=5))))
    assert isinstance(reply, DeploymentFailed)
    assert reply.reason is FailureReason.NO_FEASIBLE_PLAN
    assert "slo.tpot_ms" in reply.detail
    for offer in reply.counteroffers:
        assert isinstance(await answer(measured(offer.intent)), PlanComputed)
    assert "slo.tpot_ms" in {offer.constraint for offer in reply.counteroffers}


async def test_a_workload_beyond_the_models_context_fails_by_name() -> None:
    reply = await answer(measured(intent(input_tokens=9000)))
    assert isinstance(reply, DeploymentFailed)
    assert "workload.input_tokens" in reply.detail


async def test_the_same_message_twice_gets_the_same_answer() -> None:
    assert await answer(measured(intent())) == await answer(measured(intent()))


def broken(**changes: object) -> bytes:
    return json.dumps(measured(intent()).model_dump(mode="json") | changes).encode()


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b'{"deployment_id": ', ""),
        (b"[]", ""),
        (broken(deployment_id="seven"), "deployment_id"),
        (broken(fingerprints=[]), "fingerprints"),  # and no calibration: the message says so
        (broken(facts=None), "facts"),
        (broken(admission={"intent": {"model": "m", "slos": {}}}), "admission.intent.slos"),
    ],
)
def test_a_malformed_message_is_refused_by_field(body: bytes, field: str) -> None:
    with pytest.raises(Rejected) as refused:
        decode(FingerprintMeasured, FingerprintMeasured.topic, body)
    assert field in {fault.field for fault in refused.value.faults}


def test_an_unknown_version_is_refused() -> None:
    with pytest.raises(Rejected, match=r"fingerprint\.measured\.v2"):
        decode(FingerprintMeasured, "fingerprint.measured.v2", measured(intent()).model_dump_json().encode())


class RecordingBus:
    """Runs no service: checks and keeps what it was asked to run."""

    def __init__(self) -> None:
        self.ran: list[tuple[Service, list[Handler[Any]]]] = []

    async def run(self, service: Service, handlers: list[Handler[Any]], *, node: str | None = None) -> None:
        check_handlers(service, handlers)
        self.ran.append((service, handlers))


async def test_the_service_runs_as_the_topology_says_with_depth_and_prices_from_the_environment() -> None:
    bus = RecordingBus()
    env: Mapping[str, str] = {"MAVERIQ_MAX_PP": "2", "MAVERIQ_PRICES": "cpu-1t=0.05"}
    await run(cast(Bus, bus), env)
    ((service, (handler,)),) = bus.ran
    assert service is PLANNER
    reply = await handler.run(measured(intent()))
    assert isinstance(reply, PlanComputed)
    assert max(candidate.configuration.pp for candidate in reply.plan.candidates) == 2
    best = reply.plan.candidates[0]
    assert best.prediction.price_per_hour == pytest.approx(0.05 * best.configuration.num_gpus)


async def test_gpu_types_that_share_requests_by_size_more_cheaply_than_one_are_planned_as_a_fleet() -> None:
    admission = Admission(intent=wanted(), model=MODEL, fragments=free(cheap=8, fast=8))
    event = measured(wanted(), admission=admission, fingerprints=(OLD, NEW))
    cause = decode(FingerprintMeasured, FingerprintMeasured.topic, event.model_dump_json().encode())
    reply = await Handlers(max_pp=1, prices=PRICES).on_fingerprint_measured(cause)
    assert isinstance(reply, PlanComputed)
    sent = decode(PlanComputed, PlanComputed.topic, reply.model_dump_json().encode())
    assert sent == reply
    fleet = sent.plan.fleet
    assert fleet is not None
    assert fleet.single_score is not None
    assert fleet.score < fleet.single_score
    assert {served.gpu_type for one in fleet.routes for served in one.served_by} == set(fleet.gpu_types)


async def test_where_no_type_meets_the_mean_request_the_fleet_that_meets_each_size_is_the_plan() -> None:
    """One type reads prompts fast, the other writes answers fast; half of the requests are all prompt, half all answer.

    The memory is others': the fleet is planned over what comes back, and waits.
    """
    reader = fingerprint(Truth(layer=6, layer_request=0.3, ends=20, flop=1e-8), gpu_type="cpu-1t")
    writer = fingerprint(Truth(layer=0.5, layer_request=0.04, ends=2, flop=8e-8), gpu_type="new")
    sizes = Histogram(
        input_edges=(16, 400), output_edges=(4, 128), distribution=((0, 0.5), (0.5, 0)), request_rate_per_s=0.3
    )
    held = tuple(
        one.model_copy(update={"free_bytes": 0, "held_bytes": one.free_bytes}) for one in free(cheap=2, fast=2)
    )
    asked = wanted(sizes, slo=Slo(e2e_ms=3000))
    admission = Admission(intent=asked, model=MODEL, fragments=held)
    event = measured(asked, admission=admission, fingerprints=(reader, writer))
    reply = await Handlers(max_pp=1, prices=PRICES).on_fingerprint_measured(event)
    assert isinstance(reply, PlanComputed)
    assert decode(PlanComputed, PlanComputed.topic, reply.model_dump_json().encode()) == reply
    assert reply.plan.candidates == ()
    assert reply.plan.fleet is not None
    assert {one.input_up_to: one.served_by[0].gpu_type for one in reply.plan.fleet.routes} == {16: "new", 400: "cpu-1t"}
    assert [part.prediction.e2e_ms <= 3000 for part in reply.plan.offered] == [True, True]
    bounded = asked.model_copy(update={"workload": asked.workload.model_copy(update={"concurrency": 8})})
    refused = await Handlers(max_pp=1, prices=PRICES).on_fingerprint_measured(
        event.model_copy(update={"admission": event.admission.model_copy(update={"intent": bounded})})
    )
    assert isinstance(refused, DeploymentFailed)
    assert "workload.concurrency" in refused.detail
