"""The command line: every command, and every error as one line that names the field and the remedy."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from maveriq.cli.tables import placement_line
from maveriq.contracts import Gpu, GpuState, Holding, InventoryChanged, PredictionMissed, State
from tests.unit.cli.conftest import Called, Events, ScriptedIngress
from tests.unit.cli.plans import mixed
from tests.unit.cli.records import FIRST, MIB, SECOND, candidate, deployment, listed, placement, plan

Call = Callable[..., Called]


def dumped(*states: State, dry_run: bool = False) -> Events:
    return Events(deployment(state, dry_run=dry_run).model_dump(mode="json") for state in states)


def submits(ingress: ScriptedIngress, *states: State, dry_run: bool = False) -> None:
    """Ingress takes any intent and goes through these states."""
    accepted = deployment(State.ACCEPTED, dry_run=dry_run).model_dump(mode="json")
    ingress.answer("POST /v1/intents" + ("?dry_run=true" if dry_run else ""), accepted, 202)
    ingress.answer(f"GET /v1/deployments/{FIRST}/events", dumped(*states, dry_run=dry_run))


def test_deploy_tells_each_state_and_what_to_do_next(ingress: ScriptedIngress, call: Call) -> None:
    submits(ingress, State.ACCEPTED, State.PLANNED, State.RESERVED, State.READY)
    called = call("deploy", "tiny", "--ttft-ms", "300", "--rate", "2", "--replicas", "1")
    assert called.code == 0
    assert ingress.asked[0][1] == {
        "model": "tiny", "slo": {"ttft_ms": 300.0}, "workload": {"request_rate_per_s": 2.0}, "replicas": 1,
    }  # fmt: skip
    told = [line.split()[1] for line in called.out.splitlines() if line.startswith("✓")]
    assert told == ["accepted", "planned", "reserved", "ready"]
    assert "layers 22 on cpu:0, 8 on cpu:1" in called.out
    assert "maveriq chat tiny" in called.out


def test_options_go_on_top_of_a_written_intent(ingress: ScriptedIngress, call: Call, tmp_path: Path) -> None:
    submits(ingress, State.READY)
    written = tmp_path / "intent.json"
    written.write_text('{"model": "tiny", "slo": {"ttft_ms": 5, "e2e_ms": 9}}')
    assert call("deploy", "--intent", str(written), "--ttft-ms", "300").code == 0
    assert ingress.asked[0][1] == {"model": "tiny", "slo": {"ttft_ms": 300.0, "e2e_ms": 9}}


def test_an_intent_that_cannot_be_met_shows_the_nearest_that_can(ingress: ScriptedIngress, call: Call) -> None:
    submits(ingress, State.ACCEPTED, State.FAILED)
    called = call("deploy", "tiny", "--ttft-ms", "300")
    assert called.code == 1
    assert "no configuration is fast enough" in called.out
    assert "draining" not in called.out and "released" not in called.out
    assert "slo.ttft_ms" in called.out and "900 ms" in called.out
    assert called.err.startswith("maveriq: tiny is not deployed")


def test_plan_shows_the_candidates_and_why_the_others_lost(ingress: ScriptedIngress, call: Call) -> None:
    submits(ingress, State.ACCEPTED, State.PLANNED, dry_run=True)
    called = call("plan", "tiny", "--ttft-ms", "300")
    assert called.code == 0
    assert "bf16 · 2 stages" in called.out and "120 ms" in called.out
    assert "fp32 · 1 stage" in called.out and "slo.ttft_ms" in called.out and "900 ms" in called.out


def test_json_prints_what_ingress_says_and_nothing_else(ingress: ScriptedIngress, call: Call) -> None:
    submits(ingress, State.READY)
    ingress.answer("GET /v1/deployments", listed(deployment()))
    ingress.answer("GET /v1/gpus", {"data": []})
    ingress.answer("GET /v1/models", {"data": [{"id": "tiny"}]})
    assert json.loads(call("deploy", "tiny", "--json").out)["state"] == "ready"
    assert json.loads(call("ps", "--json").out)[0]["deployment_id"] == str(FIRST)
    assert json.loads(call("gpus", "--json").out) == []
    assert json.loads(call("models", "--json").out) == [{"id": "tiny"}]


def test_ps_hides_what_has_ended_unless_asked(ingress: ScriptedIngress, call: Call) -> None:
    ingress.answer("GET /v1/deployments", listed(deployment(), deployment(State.RELEASED, deployment_id=SECOND)))
    assert "12222222" not in call("ps").out
    assert "12222222" in call("ps", "--all").out


def test_ps_and_deploy_say_which_layers_have_which_precision(ingress: ScriptedIngress, call: Call) -> None:
    stages = tuple(
        stage.model_copy(update={"precisions": planned.precisions})
        for stage, planned in zip(placement().stages, mixed().stages, strict=True)
    )
    placed = placement().model_copy(update={"candidate": mixed(), "stages": stages})
    found = deployment().model_copy(update={"placements": (placed,)})
    ingress.answer("GET /v1/deployments", listed(found))
    told = " ".join(call("ps").out.split())
    assert "mixed · 14 x bf16 + 16 x int8 | 22+8 layers" in told
    assert placement_line(placed) == "layers 22 (14 x bf16 + 8 x int8) on cpu:0, 8 (8 x int8) on cpu:1"


def test_ps_counts_the_replicas_that_the_plan_chose_and_names_what_is_off_its_prediction(
    ingress: ScriptedIngress, call: Call
) -> None:
    missed = PredictionMissed(
        deployment_id=FIRST, what="decode_ms", batch=4, measured_ms=52, predicted_ms=40, interval_ms=(38, 42)
    )
    planned = plan().model_copy(update={"candidates": (candidate().model_copy(update={"replicas": 3}),)})
    found = deployment().model_copy(update={"plan": planned, "placements": (), "prediction_missed": missed})
    ingress.answer("GET /v1/deployments", listed(found))
    told = call("ps").out
    assert "1/3" in told
    assert "11111111 decode takes 52 ms at batch 4, predicted were 38 ms to 42 ms: planned for again" in told


def test_gpus_draws_who_holds_what(ingress: ScriptedIngress, call: Call) -> None:
    gpu = Gpu(id="here/cpu:0", gpu_type="cpu-1t", total_bytes=400 * MIB, foreign_bytes=100 * MIB)
    holding = Holding(deployment_id=FIRST, replica=0, bytes=200 * MIB)
    node = InventoryChanged(node="here", engine="torch", gpus=(GpuState(gpu=gpu, holdings=(holding,)),))
    ingress.answer("GET /v1/gpus", {"data": [node.model_dump(mode="json")]})
    ingress.answer("GET /v1/deployments", listed(deployment()))
    out = call("gpus").out
    assert "██████████████████▒▒▒▒▒▒▒▒▒·········" in out
    assert "100 MiB" in out and "tiny 11111111" in out


def test_rm_takes_the_start_of_an_id_and_waits_for_the_memory(ingress: ScriptedIngress, call: Call) -> None:
    ingress.answer("GET /v1/deployments", listed(deployment(), deployment(deployment_id=SECOND)))
    ingress.answer(f"DELETE /v1/deployments/{FIRST}", deployment().model_dump(mode="json"), 202)
    ingress.answer(f"GET /v1/deployments/{FIRST}/events", dumped(State.READY, State.DRAINING, State.RELEASED))
    called = call("rm", "1111")
    assert called.code == 0
    assert "released" in called.out


def test_a_name_that_may_mean_two_deployments_lists_their_ids(ingress: ScriptedIngress, call: Call) -> None:
    ingress.answer("GET /v1/deployments", listed(deployment(), deployment(deployment_id=SECOND)))
    called = call("rm", "tiny")
    assert called.code == 1
    assert called.err == "maveriq: ID|MODEL: 'tiny' may mean 11111111, 12222222; name one by its id\n"


def streamed(*texts: str, chat: bool) -> Events:
    def choice(text: str, end: str | None) -> dict[str, Any]:
        return {"delta": {"content": text}, "finish_reason": end} if chat else {"text": text, "finish_reason": end}

    events = Events({"choices": [choice(text, None)]} for text in texts)
    events.append({"choices": [choice("", "stop")]})
    events.append({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": len(texts)}})
    events.append("[DONE]")
    return events


def test_chat_streams_one_answer_and_its_figures(ingress: ScriptedIngress, call: Call) -> None:
    ingress.answer("GET /v1/deployments", listed(deployment()))
    ingress.answer("POST /v1/chat/completions", streamed("Hello", " there", chat=True))
    called = call("chat", "tiny", "--message", "hi", "--priority", "high", "--max-tokens", "9")
    assert (called.code, called.out) == (0, "Hello there\n")
    assert "2 tokens" in called.err
    body = ingress.asked[-1][1]
    assert body["model"] == str(FIRST)
    assert body["service_tier"] == "priority" and body["max_tokens"] == 9 and body["stream"] is True
    assert body["temperature"] == 0.7


def test_infer_as_json_gives_text_usage_and_latency(ingress: ScriptedIngress, call: Call) -> None:
    ingress.answer("GET /v1/deployments", listed(deployment()))
    ingress.answer("POST /v1/completions", streamed("a", "b", chat=False))
    answer = json.loads(call("infer", "tiny", "once", "--json").out)
    assert answer["text"] == "ab" and answer["usage"]["completion_tokens"] == 2
    assert answer["ttft_ms"] <= answer["e2e_ms"]
    assert ingress.asked[-1][1]["temperature"] == 0


def test_an_error_within_a_stream_is_one_line(ingress: ScriptedIngress, call: Call) -> None:
    ingress.answer("GET /v1/deployments", listed(deployment()))
    error = {
        "message": "the engine died; send it again",
        "type": "server_error",
        "param": None,
        "code": "engine_failed",
    }
    ingress.answer("POST /v1/completions", Events([{"error": error}]))
    called = call("infer", "tiny", "once")
    assert (called.code, called.err) == (1, "maveriq: the engine died; send it again\n")


def test_a_stream_that_is_cut_off_is_no_answer(ingress: ScriptedIngress, call: Call) -> None:
    ingress.answer("GET /v1/deployments", listed(deployment()))
    ingress.answer("POST /v1/completions", Events([{"choices": [{"text": "a"}]}]))
    called = call("infer", "tiny", "once")
    assert called.code == 1 and "ended before the answer did" in called.err


def test_register_reads_variants(ingress: ScriptedIngress, call: Call) -> None:
    ingress.answer("POST /v1/models", {}, 201)
    assert call("register", "tiny", "org/tiny", "--variant", "bf16=1", "--variant", "int8=0.99@/models/q8").code == 0
    told = [(v["precision"], v.get("source"), v["accuracy"]) for v in ingress.asked[0][1]["variants"]]
    assert told == [("bf16", None, 1.0), ("int8", "/models/q8", 0.99)]


def test_what_is_asked_wrongly_names_the_option_and_the_remedy(call: Call, tmp_path: Path) -> None:
    (tmp_path / "not.json").write_text("{")
    (tmp_path / "typo.json").write_text('{"model": "tiny", "slo": {"ttft": 3}}')
    wrong = {
        ("deploy", "tiny", "--ttft-ms", "-1"): "--ttft-ms: ",
        (
            "deploy",
            "tiny",
            "--input-tokens",
            "99",
            "--output-tokens",
            "9",
            "--context-tokens",
            "10",
        ): "--context-tokens: ",
        ("deploy",): "MODEL: name a model",
        ("deploy", "--intent", str(tmp_path / "absent")): "--intent: cannot read",
        ("deploy", "--intent", str(tmp_path / "not.json")): "--intent: no JSON",
        ("deploy", "--intent", str(tmp_path / "typo.json")): "did you mean ttft_ms?",
        ("register", "tiny", "org/tiny", "--variant", "int7"): "--variant: 'int7': 'int7' is none of fp32",
        ("register", "tiny", "org/tiny", "--variant", "int8=good"): "is no number",
        ("register", "a model", "org/tiny"): "NAME: ",
        ("chat", "tiny", "--json"): "--json: needs --message",
        ("up", "--only", "planer"): "--only: 'planer' is no service; known: ingress",
        ("ps", "--url", "ftp://x"): "--url: ",
    }
    for arguments, words in wrong.items():
        called = call(*arguments)
        assert called.code == 2 or arguments[0] == "ps", arguments
        assert words in called.err + called.out, (arguments, called)
        assert "Traceback" not in called.err


@pytest.mark.parametrize(
    ("status", "body"),
    [(200, b"<html>\n<body>"), (404, b"<html>\n<body>"), (200, b"[]"), (200, b'{"data": 3}'), (200, b'{"data": [{}]}')],
)
def test_an_answer_that_is_no_cluster_s_is_one_line_too(
    ingress: ScriptedIngress, call: Call, status: int, body: bytes
) -> None:
    ingress.answer("GET /v1/deployments", body, status)
    called = call("ps")
    assert (called.code, called.err.count("\n")) == (1, 1)
    assert "is no cluster of this version; name one with --url" in called.err


def test_no_cluster_says_how_to_get_one(call: Call) -> None:
    called = call("ps", "--url", "http://127.0.0.1:9")
    assert called.code == 1
    assert "start one with `maveriq up`" in called.err


def test_a_refusal_of_ingress_is_passed_on_in_its_words(ingress: ScriptedIngress, call: Call) -> None:
    fault = {"message": "model: 'tinny' is not registered; did you mean tiny?", "param": "model", "code": None}
    ingress.answer("POST /v1/intents", {"error": {**fault, "type": "invalid_request_error"}}, 400)
    assert call("deploy", "tinny").err == "maveriq: model: 'tinny' is not registered; did you mean tiny?\n"
    failed = json.loads(call("deploy", "tinny", "--json").out)
    assert failed["error"]["message"].startswith("model: 'tinny'")


def test_a_deployment_that_is_gone_says_how_to_get_it_back(ingress: ScriptedIngress, call: Call) -> None:
    ingress.answer("GET /v1/deployments", listed(deployment(State.RELEASED, deployment_id=UUID(int=7))))
    assert "deploy MODEL" in call("chat", "tiny", "-m", "hi").err
    assert "is released; maveriq deploy tiny" in call("chat", "00000000", "-m", "hi").err


def test_what_is_asked_wrongly_is_one_json_object_too(ingress: ScriptedIngress, call: Call) -> None:
    for arguments in (("deploy", "tiny", "--ttft", "3"), ("chat",), ("plan", "tiny", "--rate", "often"), ("deplyo",)):
        called = call(*arguments, "--json")
        assert (called.code, called.err) == (2, "")
        assert json.loads(called.out)["error"]["message"]
    assert not ingress.asked


def test_nothing_is_released_by_an_empty_name(ingress: ScriptedIngress, call: Call) -> None:
    ingress.answer("GET /v1/deployments", listed(deployment()))
    assert call("rm", "").code == 2
    assert [what for what, _ in ingress.asked] == ["GET /v1/deployments?brief=true"]


def test_what_does_not_serve_yet_is_told_by_the_name_that_was_typed(ingress: ScriptedIngress, call: Call) -> None:
    ingress.answer("GET /v1/deployments", listed(deployment(State.ACCEPTED)))
    called = call("infer", "tiny", "once")
    assert called.code == 1 and "tiny is accepted: `maveriq ps` shows when" in called.err
