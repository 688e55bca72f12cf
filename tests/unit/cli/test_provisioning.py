"""`maveriq provision`: files in, tables, JSON and pictures out; the cluster is asked only for a model's law."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from maveriq.cli import reading
from maveriq.contracts import Gpu, GpuState, Histogram, Intent, InventoryChanged, ModelFacts, Slo, State, TrafficDrifted
from maveriq.contracts.provisioning import Catalogue, Fleet
from tests.unit.cli.conftest import Called, Events, ScriptedIngress
from tests.unit.cli.plans import FULL, PICTURES, begins_as_it_should
from tests.unit.cli.records import FIRST, deployment, listed
from tests.unit.planner.measurements import FACTS, MODEL, calibration

Call = Callable[..., Called]
MELANGE = {
    "gpu_info": {
        "A10G": {"cost": 1.01, "tputs": [[2, 1], [5, 2]]},
        "A100-80GB": {"cost": 3.67, "tputs": [[20, 20], [40, 20]]},
    },
    "workload_distribution": [[0.2, 0.1], [0.5, 0.2]],
    "total_request_rate": 30.0,
    "slice_factor": 1,
}
HISTOGRAM = {
    "input_edges": [500, 8000], "output_edges": [100, 1000], "distribution": [[0.2, 0.1], [0.5, 0.2]],
    "request_rate_per_s": 30.0,
}  # fmt: skip
GPUS = [{"name": name, "price_per_hour": info["cost"], "throughput": info["tputs"]}
        for name, info in MELANGE["gpu_info"].items()]  # type: ignore[attr-defined]  # fmt: skip


@pytest.fixture
def file(tmp_path: Path) -> Callable[[str, object], str]:
    def write(name: str, body: object) -> str:
        path = tmp_path / name
        path.write_text(body if isinstance(body, str) else json.dumps(body))
        return str(path)

    return write


File = Callable[[str, object], str]


def test_melanges_file_is_answered_in_melanges_format(call: Call, file: File, tmp_path: Path) -> None:
    output = tmp_path / "result.json"
    called = call("provision", "--melange-config", file("m.json", MELANGE), "--json", "--output", str(output))
    assert json.loads(called.out) == {"A10G": 1.0, "A100-80GB": 1.0, "cost": 4.68}
    assert json.loads(output.read_text()) == json.loads(called.out)


def test_the_fleet_its_savings_and_who_serves_what_are_shown(call: Call, file: File) -> None:
    called = call("provision", "--melange-config", file("m.json", MELANGE))
    told = [" ".join(line.split()) for line in called.out.splitlines()]
    assert told[0] == "4.68 USD an hour for 30 requests a second; proven: nothing cheaper does"
    assert "1 x A10G 1 1.01 1.01 100 %" in told
    assert "A100-80GB 2 7.34 36.2 %" in told


def test_a_catalogue_and_a_histogram_are_answered_with_everything_as_json(call: Call, file: File) -> None:
    catalogue = file("c.json", {"gpus": GPUS, "input_edges": [500, 8000], "output_edges": [100, 1000]})
    called = call("provision", "--catalogue", catalogue, "--histogram", file("h.json", HISTOGRAM), "--json")
    fleet = Fleet.model_validate_json(called.out)
    assert {one.name: one.count for one in fleet.rented} == {"A10G": 1, "A100-80GB": 1}
    assert len(fleet.buckets) == 4


@pytest.mark.parametrize("suffix", PICTURES)
def test_cost_by_rate_and_the_mix_are_drawn(call: Call, file: File, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"fleet{suffix}"
    called = call("provision", "--melange-config", file("m.json", MELANGE), "--plot", str(path))
    assert called.code == 0, called.err
    assert begins_as_it_should(path)


def test_what_is_infeasible_exits_with_1_and_what_is_asked_wrongly_with_2(call: Call, file: File) -> None:
    few = [{**gpu, "available": 0} for gpu in GPUS]
    catalogue = file("c.json", {"gpus": few, "input_edges": [500, 8000], "output_edges": [100, 1000]})
    infeasible = call("provision", "--catalogue", catalogue, "--histogram", file("h.json", HISTOGRAM))
    assert infeasible.code == 1 and "available" in infeasible.err
    wrong = call("provision", "--melange-config", file("m.json", {**MELANGE, "total_request_rate": 0}))
    assert wrong.code == 2 and wrong.err.startswith("maveriq: total_request_rate: is 0")
    assert call("provision").err.startswith("maveriq: --trace: nothing says the workload")


def test_a_fault_in_a_file_is_named_with_the_file_and_the_field(call: Call, file: File) -> None:
    catalogue = file("c.json", {"gpus": [{"name": "L4", "price": 1}]})
    called = call("provision", "--catalogue", catalogue, "--histogram", file("h.json", HISTOGRAM), "--json")
    error = json.loads(called.out)["error"]
    assert called.code == 2 and error["param"] == "--catalogue"
    assert "gpus.0.price_per_hour" in error["message"] or "gpus.0.price" in error["message"]


def test_what_runs_is_read_from_counts_from_an_earlier_answer_and_from_the_cluster(
    call: Call, file: File, ingress: ScriptedIngress
) -> None:
    config = file("m.json", MELANGE)
    counts = call("provision", "--melange-config", config, "--from", file("r.json", {"A10G": 1, "A100-80GB": 1}))
    assert "keep" in counts.out and "the change costs 0 USD, once" in counts.out
    catalogue = file("c.json", {"gpus": GPUS, "input_edges": [500, 8000], "output_edges": [100, 1000]})
    given = ("provision", "--catalogue", catalogue, "--histogram", file("h.json", HISTOGRAM))
    earlier = call(*given, "--from", file("fleet.json", call(*given, "--json").out))
    assert "the change costs 0 USD, once" in earlier.out
    ingress.answer("GET /v1/gpus", {"data": [node("A10G").model_dump(mode="json")]})
    assert "give back 1" in call(*given, "--from", "running").out
    ingress.answer("GET /v1/gpus", {"data": [node("T4").model_dump(mode="json")]})
    unknown = call(*given, "--from", "running")
    assert unknown.code == 2 and "T4 is not in the catalogue" in unknown.err


def node(gpu_type: str) -> InventoryChanged:
    """With two GPUs."""
    gpus = [Gpu(id=f"n/{at}", gpu_type=gpu_type, total_bytes=2**30, foreign_bytes=0) for at in range(2)]
    return InventoryChanged(node="n", engine="torch", gpus=tuple(GpuState(gpu=gpu) for gpu in gpus))


def cluster_knows(ingress: ScriptedIngress, facts: ModelFacts = FACTS) -> None:
    planned = deployment(State.PLANNED, dry_run=True).model_copy(
        update={"plan": FULL.model_copy(update={"facts": facts})}
    )
    body = planned.model_dump(mode="json")
    ingress.answer("POST /v1/intents?dry_run=true", body, 202)
    ingress.answer(f"GET /v1/deployments/{FIRST}/events", Events([body]))
    ingress.answer("GET /v1/calibrations", {"data": [calibration().model_dump(mode="json")], "under_way": []})
    model = {"id": MODEL.name, "registered": MODEL.model_dump(mode="json")}
    ingress.answer("GET /v1/models", {"data": [model]})


def test_a_models_throughput_comes_from_the_clusters_calibrations_and_can_be_kept(
    call: Call, file: File, tmp_path: Path, ingress: ScriptedIngress
) -> None:
    cluster_knows(ingress)
    gpu = {"name": "mine", "gpu_type": calibration().gpu_type, "memory_gib": 24, "price_per_hour": 1.0}
    given: tuple[str, ...] = (
        "provision", MODEL.name, "--catalogue", file("c.json", {"gpus": [gpu]}),
        "--histogram", file("h.json", HISTOGRAM), "--tpot-ms", "2000", "--json",
    )  # fmt: skip
    kept = str(tmp_path / "law.json")
    asked = call(*given, "--save-law", kept)
    assert asked.code == 0, asked.out
    rented = Fleet.model_validate_json(asked.out).rented
    assert {one.name for one in rented} == {"mine"} and all(one.configuration for one in rented)
    ingress.answers.clear()
    assert call(*given, "--law", kept).out == asked.out


def test_without_a_calibration_it_says_how_to_get_one(call: Call, file: File, ingress: ScriptedIngress) -> None:
    ingress.answer("GET /v1/calibrations", {"data": [], "under_way": []})
    called = call("provision", MODEL.name, "--histogram", file("h.json", HISTOGRAM))
    assert called.code == 1 and "maveriq calibrate" in called.err


def test_without_the_planner_it_says_what_to_install(call: Call, file: File, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(**_: Any) -> tuple[()]:
        return ()

    monkeypatch.setattr(reading, "entry_points", none)
    called = call("provision", "--melange-config", file("m.json", MELANGE))
    assert called.code == 1 and "pip install maveriq-planner" in called.err


def test_the_catalogues_schema_knows_every_field_that_the_page_names() -> None:
    page = (Path(__file__).parents[3] / "docs" / "provisioning.md").read_text()
    gpu: Any = Catalogue.model_fields["gpus"].annotation
    for field in (*Catalogue.model_fields, *gpu.__args__[0].model_fields):
        assert f"`{field}`" in page, field


def test_what_a_deployment_is_asked_for_now_is_named_by_ps_and_planned_for(
    ingress: ScriptedIngress, call: Call, file: File
) -> None:
    served = Histogram.model_validate(HISTOGRAM | {"request_rate_per_s": 60})
    drifted = TrafficDrifted(deployment_id=FIRST, planned_per_s=30, moved=0.25, served=served, over_s=600)
    ready = deployment(State.READY)
    ingress.answer("GET /v1/deployments", listed(ready.model_copy(update={"traffic_drifted": drifted})))
    told = " ".join(call("ps").out.split())
    assert "60 requests/s, planned were 30; 25% of them have other sizes than planned" in told
    assert f"maveriq provision {ready.intent.model} --served {str(FIRST)[:8]} --from running" in told
    rows = {"gpus": GPUS, "input_edges": HISTOGRAM["input_edges"], "output_edges": HISTOGRAM["output_edges"]}
    catalogue = file("catalogue.json", rows)
    found = call("provision", "--served", str(FIRST)[:8], "--catalogue", catalogue, "--json")
    assert found.code == 0, found.err
    assert Fleet.model_validate_json(found.out).request_rate_per_s == pytest.approx(60)
    sizes = file("sizes.json", HISTOGRAM)
    twice = call("provision", "--served", str(FIRST)[:8], "--histogram", sizes)
    assert twice.code == 2 and "--served" in twice.err
    ingress.answer("GET /v1/deployments", listed(ready))
    calm = call("provision", "--served", str(FIRST)[:8])
    assert calm.code == 1 and "asked as it was planned" in calm.err


def test_what_a_deployment_is_asked_for_now_is_planned_for_within_its_own_limits_and_can_be_deployed(
    call: Call, file: File, tmp_path: Path, ingress: ScriptedIngress
) -> None:
    cluster_knows(ingress)
    served = Histogram.model_validate(HISTOGRAM)
    drifted = TrafficDrifted(deployment_id=FIRST, planned_per_s=30, moved=0.25, served=served, over_s=600)
    ready = deployment(State.READY)
    strict = ready.intent.model_copy(update={"model": MODEL.name, "slo": Slo(ttft_ms=0.001)})
    ingress.answer(
        "GET /v1/deployments", listed(ready.model_copy(update={"intent": strict, "traffic_drifted": drifted}))
    )
    gpu = {"name": "mine", "gpu_type": calibration().gpu_type, "memory_gib": 24, "price_per_hour": 1.0}
    given = ("provision", MODEL.name, "--served", str(FIRST)[:8], "--catalogue", file("c.json", {"gpus": [gpu]}))
    refused = call(*given)
    assert refused.code == 1 and "relax the limits" in refused.err
    anew = tmp_path / "anew.json"
    found = call(*given, "--ttft-ms", "100000", "--save-intent", str(anew))
    assert found.code == 0 and f"maveriq deploy --intent {anew}, then maveriq rm" in " ".join(found.out.split())
    intent = Intent.model_validate_json(anew.read_text())
    assert intent == strict.model_copy(update={"workload": intent.workload})
    assert intent.workload.histogram == served and intent.workload.request_rate_per_s == 30
    unsaid = call("provision", "--histogram", file("h.json", HISTOGRAM), "--save-intent", str(anew))
    assert unsaid.code == 2 and "--save-intent" in unsaid.err
