"""Sizes of requests on the command line: a histogram or a trace goes in, the fleet and its routes are told."""

import json
from collections.abc import Callable
from pathlib import Path

from maveriq.cli.intents import as_command
from maveriq.cli.routes_view import fleet_words, routes_lines
from maveriq.contracts import Histogram, Intent, Route, ServedBy, State, Workload
from tests.fleets import FLEET, LARGE, ROUTES, SMALL
from tests.unit.cli.conftest import Called, Events, ScriptedIngress
from tests.unit.cli.records import FIRST, deployment, listed

Call = Callable[..., Called]
SIZES = {
    "input_edges": [100, 1000], "output_edges": [50], "distribution": [[0.75], [0.25]], "request_rate_per_s": 2.0,
}  # fmt: skip


def submits(ingress: ScriptedIngress) -> None:
    ready = deployment(State.READY)
    assert ready.plan is not None
    fleet = ready.model_copy(update={"plan": ready.plan.model_copy(update={"fleet": FLEET}), "routes": ROUTES})
    ingress.answer("POST /v1/intents", deployment(State.ACCEPTED).model_dump(mode="json"), 202)
    ingress.answer(f"GET /v1/deployments/{FIRST}/events", Events([fleet.model_dump(mode="json")]))
    ingress.answer("GET /v1/deployments", listed(fleet))


def test_a_histogram_is_the_workload_and_says_its_means(ingress: ScriptedIngress, call: Call, tmp_path: Path) -> None:
    submits(ingress)
    file = tmp_path / "sizes.json"
    file.write_text(json.dumps(SIZES))
    called = call("deploy", "tiny", "--objective", "min_price", "--histogram", str(file), "--rate", "5")
    assert called.code == 0, called.err
    workload = ingress.asked[0][1]["workload"]
    assert workload["histogram"] == SIZES
    assert (workload["input_tokens"], workload["output_tokens"], workload["context_tokens"]) == (325, 50, 1050)
    assert workload["request_rate_per_s"] == 5
    assert "fleet of" in called.out


def test_a_trace_becomes_a_histogram(ingress: ScriptedIngress, call: Call, tmp_path: Path) -> None:
    submits(ingress)
    file = tmp_path / "trace.csv"
    rows = [f"{at},{100 if at % 4 else 1000},50" for at in range(9)]
    file.write_text("\n".join(["arrival_s,prompt_tokens,output_tokens", *rows]))
    assert call("deploy", "tiny", "--trace", str(file)).code == 0
    told = Histogram.model_validate(ingress.asked[0][1]["workload"]["histogram"])
    assert (told.input_edges, told.output_edges, told.request_rate_per_s) == ((100, 1000), (50,), 1)
    assert [round(share, 3) for _, _, share in told.buckets] == [0.667, 0.333]


def test_what_is_wrong_with_sizes_is_named(call: Call, tmp_path: Path) -> None:
    file = tmp_path / "sizes.json"
    file.write_text(json.dumps(SIZES | {"distribution": [[0.75], [0.5]]}))
    wrong = call("deploy", "tiny", "--histogram", str(file))
    assert wrong.code == 2
    assert "--histogram" in wrong.err and "sums to 1.25" in wrong.err
    twice = call("deploy", "tiny", "--histogram", str(file), "--trace", str(file))
    assert twice.code == 2 and "--trace" in twice.err
    unreadable = call("deploy", "tiny", "--trace", str(file))
    assert unreadable.code == 2 and "--trace" in unreadable.err


def test_ps_tells_who_answers_requests_of_which_size(ingress: ScriptedIngress, call: Call) -> None:
    submits(ingress)
    told = call("ps").out
    assert "answers requests by size" in told
    assert "up to 100 in, 50 out (80%): L4, over: A100-SXM4-80GB" in told


def test_a_bucket_that_types_share_says_their_shares() -> None:
    shared = Route(
        input_up_to=100, output_up_to=50, share=1,
        served_by=(ServedBy(gpu_type=SMALL, share=0.75), ServedBy(gpu_type=LARGE, share=0.25)),
    )  # fmt: skip
    assert list(routes_lines([shared])) == ["up to 100 in, 50 out (100%): L4 75% + A100-SXM4-80GB 25%"]


def test_a_fleet_says_what_it_saves() -> None:
    assert fleet_words(FLEET).endswith("4/h, 33% less than the best type alone")
    assert fleet_words(FLEET.model_copy(update={"single_score": None})).endswith("no type serves all sizes alone")


def test_a_written_command_leaves_the_histogram_to_its_file() -> None:
    intent = Intent(model="tiny", workload=Workload(histogram=Histogram.model_validate(SIZES)))
    assert "--histogram FILE" in as_command("plan", intent)


def test_a_plan_that_is_a_fleet_alone_is_shown_drawn_and_explained(
    ingress: ScriptedIngress, call: Call, tmp_path: Path
) -> None:
    planned = deployment(State.PLANNED)
    assert planned.plan is not None
    only = planned.plan.model_copy(update={"candidates": (), "front": (), "fleet": FLEET})
    told = planned.model_copy(update={"plan": only, "dry_run": True})
    ingress.answer("POST /v1/intents?dry_run=true", told.model_dump(mode="json"), 202)
    ingress.answer(f"GET /v1/deployments/{FIRST}/events", Events([told.model_dump(mode="json")]))
    file = tmp_path / "sizes.json"
    file.write_text(json.dumps(SIZES))
    for options in ((), ("--explain",), ("--plot", str(tmp_path / "plan.svg"))):
        called = call("plan", "tiny", "--histogram", str(file), *options)
        assert called.code == 0, called.err
        assert "no configuration of one GPU type meets it" in " ".join(called.out.split())
        assert "up to 1000 in, 500 out" in called.out
        assert called.out.count("90 % interval of the mean") == (2 if options == ("--explain",) else 0)  # one a part
