"""Provisioning from end to end, without a cluster: workload, catalogue and terms in; the cheapest fleet out."""

import json
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from maveriq.contracts import Intent, Slo, Workload
from maveriq.contracts.fault import faults
from maveriq.contracts.provisioning import (
    Catalogue,
    Fleet,
    FleetTerms,
    Histogram,
    LawSources,
    ProvisioningRefused,
    ProvisioningRequest,
    RentableGpu,
)
from maveriq_planner.columns import columns_of
from maveriq_planner.memory import GIB
from maveriq_planner.provision import provision
from maveriq_planner.provisioning.answering import shipped
from maveriq_planner.provisioning.law_throughput import ways_to_run
from maveriq_planner.provisioning.traces import read_trace
from maveriq_planner.provisioning.workload import demand_of_histogram, demand_of_trace, edges_of
from maveriq_planner.replicas import highest_rate_per_ms
from tests.unit.planner.measurements import FACTS, MODEL, calibration, space_of

DATA = Path(__file__).parents[4] / "shared" / "data"
EXAMPLE: dict[str, Any] = {
    "gpu_info": {
        "A10G": {"cost": 1.01, "tputs": [[2, 1], [5, 2]]},
        "A100-80GB": {"cost": 3.67, "tputs": [[20, 20], [40, 20]]},
    },
    "workload_distribution": [[0.2, 0.1], [0.5, 0.2]],
    "total_request_rate": 30.0,
    "slice_factor": 1,
}
EDGES = {"input_edges": (500.0, 8000.0), "output_edges": (100.0, 1000.0)}
HISTOGRAM = Histogram(distribution=((0.2, 0.1), (0.5, 0.2)), request_rate_per_s=30.0, **EDGES)
A10G = RentableGpu(name="A10G", price_per_hour=1.01, throughput=((2, 1), (5, 2)))
A100 = RentableGpu(name="A100", price_per_hour=3.67, throughput=((20, 20), (40, 20)))
CATALOGUE = Catalogue(gpus=(A10G, A100), **EDGES)


def planned(**given: Any) -> Fleet:
    terms = FleetTerms(**given.pop("terms", {}))
    return provision(ProvisioningRequest(terms=terms, **given), shipped(), monotonic)


def of_histogram(*gpus: RentableGpu, **given: Any) -> Fleet:
    catalogue = Catalogue(gpus=gpus or (A10G, A100), **EDGES)
    return planned(catalogue=catalogue, histogram=given.pop("histogram", HISTOGRAM), **given)


def counts(fleet: Fleet) -> dict[str, int]:
    return {f"{one.name}{' spot' * one.spot}": one.count for one in fleet.rented}


def refusal(**given: Any) -> ProvisioningRefused:
    with pytest.raises(ProvisioningRefused) as refused:
        planned(**given)
    return refused.value


def melange(**changes: Any) -> str:
    return json.dumps({**EXAMPLE, **changes})


def test_melanges_own_example_costs_what_its_optimum_does_and_is_told_in_its_format() -> None:
    fleet = planned(melange=melange())
    assert fleet.melange == {"A10G": 1.0, "A100-80GB": 1.0, "cost": 4.68}
    assert fleet.gap == 0


def test_melanges_gpus_are_planned_for_a_traces_requests_where_its_file_says_their_sizes() -> None:
    trace = trace_of([(at / 30, 400, 80) for at in range(301)])
    fleet = planned(melange=melange(edges_in=[500, 8000], edges_out=[100, 1000]), trace=trace)
    assert [(b.input_up_to, b.output_up_to, round(b.request_rate_per_s, 6)) for b in fleet.buckets] == [(500, 100, 30)]
    assert fleet.melange == {"A10G": 0.0, "A100-80GB": 2.0, "cost": 7.34}


def test_every_request_is_served_once_and_nobody_is_busier_than_he_may_be() -> None:
    fleet = of_histogram()
    for bucket in fleet.buckets:
        assert sum(share.share for share in bucket.shares) == pytest.approx(1)
    assert all(one.utilisation <= 1 + 1e-6 for one in fleet.rented)
    rates = {(b.input_up_to, b.output_up_to): b.request_rate_per_s for b in fleet.buckets}
    assert rates == pytest.approx({(500, 100): 6, (500, 1000): 3, (8000, 100): 15, (8000, 1000): 6})


def test_each_single_type_is_told_with_what_the_fleet_saves_against_it() -> None:
    single = {one.gpu_type: one for one in of_histogram().single_types}
    assert (single["A10G"].count, single["A100"].count) == (12, 2)
    assert single["A10G"].saving == pytest.approx(1 - 4.68 / 12.12)
    assert single["A100"].saving == pytest.approx(1 - 4.68 / 7.34)


def test_a_type_that_cannot_serve_a_bucket_is_rented_for_the_others() -> None:
    fleet = of_histogram(A10G.model_copy(update={"throughput": ((2.0, 0.0), (5.0, 0.0))}), A100)
    assert counts(fleet) == {"A10G": 1, "A100": 1}
    assert {one.gpu_type: one.count for one in fleet.single_types} == {"A10G": None, "A100": 2}


def test_headroom_is_load_beyond_the_workloads() -> None:
    faster = HISTOGRAM.model_copy(update={"request_rate_per_s": 30.0 * 1.7})
    assert counts(of_histogram(terms={"headroom": 0.7})) == counts(of_histogram(histogram=faster))


def test_a_spare_outlives_the_loss_of_any_one_instance() -> None:
    assert counts(of_histogram(A100, terms={"spare": True})) == {"A100": 3}
    fleet = of_histogram(terms={"spare": True})
    assert fleet.price_per_hour > of_histogram().price_per_hour
    assert fleet.price_per_hour <= 3 * 3.67


def test_a_cap_is_kept_and_named_where_nothing_fits_under_it() -> None:
    assert counts(of_histogram(A10G, A100.model_copy(update={"available": 0}))) == {"A10G": 12}
    few = [gpu.model_copy(update={"available": 1}) for gpu in (A10G,)]
    refused = refusal(catalogue=Catalogue(gpus=few, **EDGES), histogram=HISTOGRAM)
    assert refused.code == "infeasible" and refused.fault.field == "available"
    assert refused.fault.problem == "all that is available bears 8.3% of the load"


def test_a_spot_instance_counts_for_the_share_of_the_time_that_it_serves() -> None:
    spot = A100.model_copy(update={"spot_price_per_hour": 1.0, "spot_interruptions_per_hour": 0.0})
    assert counts(of_histogram(spot, terms={"spot": True})) == {"A100 spot": 2}
    lossy = spot.model_copy(update={"spot_interruptions_per_hour": 6.0})
    # Six times an hour ten minutes are lost: half of the time, so that 1.125 instances' work takes 2.25.
    assert counts(of_histogram(lossy, terms={"spot": True, "recovery_minutes": 10})) == {"A100 spot": 3}
    assert counts(of_histogram(lossy)) == {"A100": 2}


def test_a_running_fleet_stays_where_changing_it_costs_more_than_it_saves() -> None:
    running = {"A10G": 0, "A100": 2}
    stays = of_histogram(terms={"running": running, "horizon_h": 1, "start_cost": 2.0, "stop_cost": 2.0})
    assert counts(stays) == {"A100": 2} and stays.change_cost == 0
    moves = of_histogram(terms={"running": running, "horizon_h": 10, "start_cost": 2.0, "stop_cost": 2.0})
    assert counts(moves) == {"A10G": 1, "A100": 1} and moves.change_cost == pytest.approx(4)
    assert [(one.name, one.running, one.wanted) for one in moves.changed] == [("A10G", 0, 1), ("A100", 2, 1)]


def test_starting_costs_the_price_of_the_time_until_it_serves() -> None:
    fleet = of_histogram(A100, terms={"running": {"A100": 1}, "recovery_minutes": 30})
    assert fleet.change_cost == pytest.approx(3.67 / 2)


@pytest.mark.parametrize(("size", "expected"), [(1, {"A100": 4}), (2, {"two A100s": 4}), (4, {"A100": 16})])
def test_nodes_that_run_are_the_instances_of_their_size_or_else_the_smallest_of_their_gpus(
    size: int, expected: dict[str, int]
) -> None:
    one = A100.model_copy(update={"gpu_type": "NVIDIA A100"})
    two = one.model_copy(update={"name": "two A100s", "num_gpus": 2, "price_per_hour": 7.0})
    fleet = of_histogram(one, two, terms={"running": {f"NVIDIA A100 x {size}": 4}})
    assert {each.name: each.running for each in fleet.changed if each.running} == expected


def test_the_curve_never_has_a_mix_dearer_than_one_type() -> None:
    fleet = of_histogram(curve=True)
    for point in fleet.curve:
        assert point.price_per_hour is not None
        assert all(price is None or point.price_per_hour <= price + 1e-9 for price in point.single.values())


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"melange": "{"}, "melange"),
        ({"melange": melange(total_request_rate=0)}, "total_request_rate"),
        ({"melange": melange(total_request_rate="8")}, "total_request_rate"),
        ({"melange": melange(workload_distribution=[[1, 1], [0, 0]])}, "workload_distribution"),
        ({"melange": melange(workload_distribution=[[0.5, 0.5], [0.0]])}, "workload_distribution.1"),
        ({"melange": melange(rate=3)}, "rate"),
        ({"melange": melange(gpu_info={})}, "gpu_info"),
        ({"melange": melange(gpu_info={"L4": {"cost": -1, "tputs": [[1, 1], [1, 1]]}})}, "gpu_info.L4.cost"),
        ({"melange": melange(gpu_info={"L4": {"cost": 1, "tputs": [[1, 1]]}})}, "gpu_info.L4.tputs"),
        ({"melange": melange(gpu_info={"L4": {"cost": 1, "tputs": [[1, 1], [1, -1]]}})}, "gpu_info.L4.tputs"),
        ({"melange": melange(gpu_info={"L4": {"cost": 1}})}, "gpu_info.L4.tputs"),
        ({"melange": melange(gpu_info={"L4": {"cost": 1, "tputs": [[0, 0], [0, 0]]}})}, "throughput"),
        ({"melange": melange(), "histogram": HISTOGRAM}, "workload"),
        ({"melange": melange(), "trace": "x"}, "edges_in"),
        ({"catalogue": CATALOGUE}, "workload"),
        ({"melange": melange(), "only": ("H100",)}, "only"),
        ({"trace": "a,b\n1,2\n"}, "trace"),
        ({"trace": "TIMESTAMP,ContextTokens,GeneratedTokens\n1,2,x\n2,3,4\n"}, "trace"),
        ({"trace": "TIMESTAMP,ContextTokens,GeneratedTokens\n1,2,3\n1,2,3\n"}, "trace"),
        ({"histogram": HISTOGRAM}, "catalogue"),
        ({"catalogue": Catalogue(gpus=(A10G,)), "trace": "time,prompt_tokens,output_tokens\n1,2,3\n2,2,3\n"},
         "catalogue.input_edges"),
        ({"catalogue": CATALOGUE, "histogram": HISTOGRAM, "terms": {"running": {"H100": 1}}}, "running"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_refused_by_the_name_of_its_field(given: dict[str, Any], field: str) -> None:
    assert refusal(**given).fault.field == field


@pytest.mark.parametrize(
    ("wanted", "body", "field"),
    [
        (Catalogue, {"gpus": []}, "gpus"),
        (Catalogue, {"gpus": [{"name": "L4", "price_per_hour": -1}]}, "gpus.0.price_per_hour"),
        (Catalogue, {"gpus": [{"name": "L4", "price_per_hour": 1, "memory": 3}]}, "gpus.0.memory"),
        (
            Catalogue,
            {"gpus": [{"name": "L4", "price_per_hour": 1, "spot_price_per_hour": 1}]},
            "gpus.0.spot_interruptions_per_hour",
        ),
        (Histogram, {**EDGES, "distribution": [[0.5, 0.5], [0.5, 0.5]], "request_rate_per_s": 1}, "distribution"),
        (Histogram, {**EDGES, "distribution": [[1.0], [0.0]], "request_rate_per_s": 1}, "distribution.0"),
        (Histogram, {**EDGES, "distribution": [[1.0, 0], [0, 0]], "request_rate_per_s": 0}, "request_rate_per_s"),
    ],
)
def test_files_are_held_to_their_fields(wanted: Any, body: dict[str, Any], field: str) -> None:
    with pytest.raises(ValidationError) as error:
        wanted.model_validate(body)
    assert faults(error.value, wanted)[0].field == field


def trace_of(rows: list[tuple[float, int, int]]) -> str:
    return "\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *(f"{t},{i},{o}" for t, i, o in rows)]) + "\n"


def test_a_trace_is_planned_for_its_mean_rate_or_its_busiest_stretch() -> None:
    rows = [(float(second), 10, 10) for second in range(101)] + [(50.5, 10, 10)] * 9
    trace = read_trace(trace_of(rows))
    assert trace.rate_per_s(None) == pytest.approx(109 / 100)
    assert trace.rate_per_s(1.0) == pytest.approx(11)


def test_azures_dates_are_read_to_the_microsecond() -> None:
    text = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03.9799600,1,1\n2023-11-16 18:17:04.4799600,1,0\n"
    trace = read_trace(text)
    assert trace.arrival_s[1] - trace.arrival_s[0] == pytest.approx(0.5)
    assert trace.output_tokens.tolist() == [1, 1]


def test_edges_cut_the_tokens_of_a_trace_into_equal_parts() -> None:
    tokens = np.array([1.0] * 80 + [100.0] * 4)
    assert edges_of(tokens, 2) == (100.0,)
    assert edges_of(np.arange(1.0, 101.0), 4) == (50.0, 71.0, 87.0, 100.0)


def test_requests_beyond_the_last_edge_count_as_often_as_they_are_longer() -> None:
    trace = read_trace(trace_of([(0.0, 10, 10), (1.0, 20, 5), (2.0, 40, 10)]))
    demand = demand_of_trace(trace, (10.0, 20.0), (10.0,), rate_per_s=3.0)
    assert demand.rate_per_s.tolist() == [1.0, 3.0]
    assert demand.notes == (
        "1 of 3 requests are longer than the last edge: each counts as often in the last bucket as it is longer",
    )


@pytest.mark.skipif(not (DATA / "azure_llm_traces").exists(), reason="the Azure traces are not in this checkout")
@pytest.mark.parametrize("service", ["code", "conv"])
def test_azures_traces_are_planned(service: str) -> None:
    text = (DATA / "azure_llm_traces" / f"AzureLLMInferenceTrace_{service}.csv").read_text()
    fleet = planned(trace=text, catalogue=CATALOGUE)
    assert fleet.gap == 0
    assert fleet.request_rate_per_s == pytest.approx(sum(b.request_rate_per_s for b in fleet.buckets))


@pytest.mark.skipif(not (DATA / "melange").exists(), reason="Mélange's instances are not in this checkout")
def test_melanges_instances_cost_what_their_optima_do() -> None:
    optima = {one["case"]: one["frac"]["cost"] for one in json.loads((DATA / "melange/scaling.json").read_text())}
    for file in (DATA / "melange/instances").glob("*.json"):
        assert planned(melange=file.read_text()).price_per_hour == pytest.approx(optima[file.stem])


LAW = LawSources(
    model=MODEL, facts=FACTS, calibrations=(calibration(),), intent=Intent(model=MODEL.name, slo=Slo(tpot_ms=60.0))
)
CALIBRATED = calibration().gpu_type


def calibrated(**changes: Any) -> RentableGpu:
    return RentableGpu(name="mine", gpu_type=CALIBRATED, memory_gib=24.0, price_per_hour=1.0).model_copy(update=changes)


def test_throughput_by_the_law_is_the_highest_rate_that_the_planner_finds_within_the_slo() -> None:
    demand = demand_of_histogram(
        Histogram(input_edges=(300,), output_edges=(80,), distribution=((1.0,),), request_rate_per_s=1.0)
    )
    (ways,) = ways_to_run(LAW, [calibrated()], demand)
    asked = LAW.intent.model_copy(update={"workload": Workload(input_tokens=300, output_tokens=80)})
    columns = columns_of(asked, space_of((), LAW.calibrations, max_pp=1))
    assert columns is not None
    columns = columns.take(np.flatnonzero((columns.tp == 1) & (columns.memory_bytes <= 24 * GIB)))
    rates = highest_rate_per_ms(asked.slo, columns.replicas, np.full(len(columns), np.inf))
    assert max(way.throughput[0] for way in ways) == pytest.approx(np.nanmax(rates) * 1e3)


def test_an_instance_runs_as_many_replicas_as_it_has_gpus_for() -> None:
    demand = demand_of_histogram(
        Histogram(input_edges=(300,), output_edges=(80,), distribution=((1.0,),), request_rate_per_s=1.0)
    )
    (one,), (four,) = ways_to_run(LAW, [calibrated()], demand), ways_to_run(LAW, [calibrated(num_gpus=4)], demand)
    best = max(way.throughput[0] for way in one)
    assert max(way.throughput[0] for way in four) >= 4 * best * (1 - 1e-9)


def test_a_gpu_whose_memory_is_too_small_or_that_is_not_calibrated_is_left_out_and_told() -> None:
    gpus = (calibrated(), calibrated(name="small", memory_gib=0.1), calibrated(name="other", gpu_type="H100"))
    small = Histogram(input_edges=(300,), output_edges=(80,), distribution=((1.0,),), request_rate_per_s=50.0)
    fleet = planned(catalogue=Catalogue(gpus=gpus), histogram=small, law=LAW)
    assert {one.name for one in fleet.rented} == {"mine"}
    assert fleet.notes == (
        f"left out: small (it cannot hold {LAW.model.name}, or not serve any of the requests within the limits)",
        "left out: other (its type is not calibrated)",
    )
    refused = refusal(catalogue=Catalogue(gpus=gpus[1:]), histogram=small, law=LAW)
    assert refused.code == "no_throughput" and CALIBRATED in refused.fault.remedy


def test_requests_that_the_model_cannot_take_are_left_out_of_a_trace_and_told() -> None:
    rows = [(float(at), 300, 80) for at in range(99)] + [(99.0, FACTS.max_context_tokens, 1)]
    fleet = planned(catalogue=Catalogue(gpus=(calibrated(),)), trace=trace_of(rows), law=LAW)
    assert fleet.request_rate_per_s == pytest.approx(0.99)
    assert fleet.notes == ("1 of 100 requests are longer than the model's 8,192 tokens: left out",)


def test_a_floor_of_accuracy_leaves_variants_out() -> None:
    small = Histogram(input_edges=(300,), output_edges=(80,), distribution=((1.0,),), request_rate_per_s=50.0)
    precise = LAW.model_copy(update={"intent": LAW.intent.model_copy(update={"min_accuracy": 0.9})})
    given: dict[str, Any] = {"catalogue": Catalogue(gpus=(calibrated(),)), "histogram": small}
    free, held = planned(**given, law=LAW), planned(**given, law=precise)
    assert {one.configuration for one in free.rented} == {"int4"}  # whose accuracy nobody has measured
    assert {one.configuration for one in held.rented} == {"int8"}
    assert held.price_per_hour >= free.price_per_hour


def test_the_shipped_catalogue_says_of_each_price_where_it_is_from_and_when_it_held() -> None:
    catalogue = shipped()
    assert catalogue.note and catalogue.as_of
    assert all(gpu.source and gpu.as_of and gpu.memory_gib and gpu.price_per_hour > 0 for gpu in catalogue.gpus)
