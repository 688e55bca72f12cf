"""`maveriq plan --explain` and `--plot`: everything that a plan knows can be read, and pasted where it is a command."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from maveriq.cli.tables import candidates
from maveriq.contracts import Counteroffer, Failure, FailureReason, Intent, Plan, Precision, State
from tests.unit.cli.conftest import Called, Events, ScriptedIngress
from tests.unit.cli.plans import ASKED, ELSEWHERE, FP8, FULL, INT4, PICTURES, able, begins_as_it_should, mixed
from tests.unit.cli.records import FIRST, deployment

Call = Callable[..., Called]


def plans(ingress: ScriptedIngress, plan: Plan = FULL, intent: Intent = ASKED) -> None:
    """Ingress answers any dry run with this plan."""
    planned = deployment(State.PLANNED, dry_run=True).model_copy(update={"plan": plan, "intent": intent})
    body = planned.model_dump(mode="json")
    ingress.answer("POST /v1/intents?dry_run=true", body, 202)
    ingress.answer(f"GET /v1/deployments/{FIRST}/events", Events([body]))


def lines(called: Called) -> list[str]:
    assert called.code == 0, called.err
    return [" ".join(line.split()) for line in called.out.splitlines()]


def test_an_explanation_says_what_was_asked(ingress: ScriptedIngress, call: Call) -> None:
    plans(ingress)
    told = lines(call("plan", "llama", "--explain"))
    assert "objective min_cost: least latency x memory" in told
    assert "workload 512 tokens in, 128 out, 2 requests/s, at most 32 in flight" in told
    assert "latency TTFT at most 100 ms, E2E at most 5.00 s, for 95 % of requests" in told
    assert "accuracy at least 0.98 of full precision" in told
    assert "means at most 2 per hour, on NVIDIA L4, NVIDIA A10" in told


def test_an_explanation_gives_the_winner_with_percentiles_intervals_and_what_they_rest_on(
    ingress: ScriptedIngress, call: Call
) -> None:
    plans(ingress)
    told = lines(call("plan", "llama", "--explain"))
    assert "chosen fp8 · 1 stage on NVIDIA L4" in told
    assert "of each replica mean p95 90 % interval of the mean" in told
    assert "E2E 2.10 s 2.94 s 2.02 s to 2.18 s" in told
    assert "TPOT 16.2 ms 17.5 ms not known" in told
    assert any(line.startswith("from the calibration: the law") for line in told)


@pytest.mark.parametrize("more", [(), ("--explain",)])
def test_a_plan_that_rests_on_a_disturbed_measurement_says_so(
    ingress: ScriptedIngress, call: Call, more: tuple[str, ...]
) -> None:
    rough = FP8.model_copy(update={"prediction": FP8.prediction.model_copy(update={"others": 0.42})})
    plans(ingress, FULL.model_copy(update={"candidates": (rough, *FULL.candidates[1:])}))
    told = lines(call("plan", "llama", *more))
    assert any(line.startswith("! provisional: others took 42 % of NVIDIA L4 while it was measured") for line in told)


def test_a_mixed_pipeline_is_explained_stage_by_stage(ingress: ScriptedIngress, call: Call) -> None:
    plans(ingress, FULL.model_copy(update={"candidates": (mixed(), *FULL.candidates), "front": (mixed(), FP8)}))
    told = lines(call("plan", "llama", "--explain"))
    assert "chosen mixed · 14 x bf16 + 16 x int8 | 22+8 layers on NVIDIA L4 + NVIDIA A10" in told
    assert "0 NVIDIA L4 0 to 21 14 x bf16 + 8 x int8 7.00 GiB" in told
    assert "1 NVIDIA A10 22 to 29 8 x int8 3.00 GiB" in told
    assert "accuracy 0.985 of full precision" in told
    shown = json.loads(call("plan", "llama", "--json").out)
    assert [len(stage["precisions"]) for stage in shown["candidates"][0]["stages"]] == [22, 8]


def test_an_explanation_says_why_it_won_against_the_next_and_against_the_next_of_another_kind(
    ingress: ScriptedIngress, call: Call
) -> None:
    plans(ingress)
    told = lines(call("plan", "llama", "--explain"))
    assert "next fp8 · 1 stage batch 8 2.12 s 10.00 GiB 18.9 +4.4 %" in told
    assert "other kind 2 x int4 · 1 stage batch 4 1.90 s 10.00 GiB 19.4 +7.2 %" in told
    assert "the intervals of the first two latencies overlap: the next may well be as fast" in told


def test_an_explanation_of_the_only_candidate_says_so(ingress: ScriptedIngress, call: Call) -> None:
    plans(ingress, FULL.model_copy(update={"candidates": (FP8,), "front": (), "rejected": ()}))
    told = lines(call("plan", "llama", "--explain"))
    assert "nothing else meets the intent" in told
    assert not any(line.startswith(("front", "rejected")) for line in told)


def test_an_explanation_shows_the_front_with_the_winner_marked_at_the_percentile_that_was_asked_for(
    ingress: ScriptedIngress, call: Call
) -> None:
    plans(ingress)
    told = lines(call("plan", "llama", "--explain"))
    assert "★ fp8 · 1 stage 4 175 ms 17.5 ms 2.94 s 9.00 GiB 0.99 0.8 18.1" in told
    assert "2 2 x int4 · 1 stage 4 158 ms 15.8 ms 2.66 s 10.00 GiB 0.981 1.6 19.4" in told
    plans(ingress, intent=Intent(model="llama"))
    assert "★ fp8 · 1 stage 4 105 ms 16.2 ms 2.10 s 9.00 GiB 0.99 0.8 18.1" in lines(call("plan", "llama", "--explain"))


def test_rejections_are_grouped_by_what_they_miss_with_by_how_much(ingress: ScriptedIngress, call: Call) -> None:
    plans(ingress)
    told = lines(call("plan", "llama", "--explain"))
    first = told.index("slo.ttft_ms wanted 100 ms; 2 listed miss it")
    assert told[first + 1 : first + 3] == [
        "fp8 · 1 stage NVIDIA L4 batch 8 100.3 ms +0.3 %",
        "fp8 · 1 stage NVIDIA L4 batch 4 3000 ms 30 times",
    ]
    assert told[first + 3] == "min_accuracy wanted 0.98; 2 listed miss it"
    assert told[first + 5] == "bf16 · 1 stage NVIDIA A10 batch 4 not measured"
    shortened = lines(call("plan", "llama", "--explain", "--top", "1"))
    assert shortened.count("and 1 more; --top shows them") == 2


def test_a_refused_intent_is_answered_with_commands_that_ask_for_what_would_be_met(
    ingress: ScriptedIngress, call: Call
) -> None:
    accepted = deployment(State.ACCEPTED, dry_run=True).model_dump(mode="json")
    failed = deployment(State.FAILED, dry_run=True).model_dump(mode="json")
    ingress.answer("POST /v1/intents?dry_run=true", accepted, 202)
    ingress.answer(f"GET /v1/deployments/{FIRST}/events", Events([failed]))
    called = call("plan", "tiny", "--explain")
    assert called.code == 1
    assert f"  maveriq plan tiny --ttft-ms 900 --url {ingress.url}" in called.out.splitlines()
    assert "slo.ttft_ms" in called.out and "+200 %" in called.out
    assert "tiny cannot be planned" in called.err


def test_a_list_of_what_is_allowed_is_offered_by_its_names(ingress: ScriptedIngress, call: Call) -> None:
    wider = Intent(model="tiny", precisions=(Precision.INT4, Precision.BF16))
    offer = Counteroffer(constraint="precisions", wanted=1, offered=2, intent=wider)
    refused = Failure(reason=FailureReason.NO_FEASIBLE_PLAN, detail="no variant", counteroffers=(offer,))
    narrow = Intent(model="tiny", precisions=(Precision.INT4,))
    failed = deployment(State.FAILED, dry_run=True).model_copy(update={"failure": refused, "intent": narrow})
    body = failed.model_dump(mode="json")
    ingress.answer("POST /v1/intents?dry_run=true", body, 202)
    ingress.answer(f"GET /v1/deployments/{FIRST}/events", Events([body]))
    told = [" ".join(line.split()) for line in call("plan", "tiny").out.splitlines()]
    assert "precisions int4 int4, bf16" in told
    assert any(line.startswith("maveriq plan tiny --precision int4 --precision bf16") for line in told)


@pytest.mark.parametrize("suffix", PICTURES)
def test_a_plot_is_written_as_its_name_ends(suffix: str, ingress: ScriptedIngress, call: Call, tmp_path: Path) -> None:
    plans(ingress)
    picture = tmp_path / f"front{suffix}"
    assert call("plan", "llama", "--plot", str(picture)).code == 0
    assert begins_as_it_should(picture)


def test_a_drawn_front_names_precisions_and_the_winner_and_has_prices_where_known(
    ingress: ScriptedIngress, call: Call, tmp_path: Path
) -> None:
    plans(ingress)
    picture = tmp_path / "front.svg"
    called = call("plan", "llama", "--plot", str(picture), "--json")
    assert json.loads(called.out)["num_considered"] == 120
    drawn = picture.read_text()
    for words in ("front, fp8", "front, int4", "chosen", "dominated", "price per hour", "GPU memory (GiB)"):
        assert words in drawn
    unpriced = FULL.model_copy(update={"candidates": FULL.candidates[3:], "front": ()})
    plans(ingress, unpriced)
    assert call("plan", "llama", "--plot", str(picture)).code == 0
    assert "price per hour" not in picture.read_text()


def test_a_plot_that_cannot_be_drawn_is_refused_before_anything_is_asked(
    ingress: ScriptedIngress, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "--plot: front.gif: end its name in .png, .svg, .pdf" in call("plan", "llama", "--plot", "front.gif").err
    absent = call("plan", "llama", "--plot", str(tmp_path / "nowhere" / "front.png"))
    assert "there is no folder" in absent.err
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    missing = call("plan", "llama", "--plot", str(tmp_path / "front.png"))
    assert missing.err == "maveriq: --plot: needs matplotlib: pip install 'maveriq[plot]'\n"
    assert ingress.asked == []


def test_a_plan_says_what_of_it_fits_what_is_free(ingress: ScriptedIngress, call: Call) -> None:
    for num_fitting, told in ((0, "a deploy waits for memory"), (1, "the first fits what is free now"), (None, None)):
        plans(ingress, FULL.model_copy(update={"num_fitting": num_fitting}))
        for options in ((), ("--explain",)):
            out = " ".join(call("plan", "tiny", *options).out.split())
            assert told in out if told else "free now" not in out


def test_a_narrow_terminal_cuts_off_no_figure(capsys: pytest.CaptureFixture[str]) -> None:
    wide = able(Precision.INT8, 14_000, 333 << 20, 3.01, pp=3, batch=16, accuracy=None, replicas=10)
    Console(width=80).print(candidates((wide, INT4, ELSEWHERE), Intent(model="llama"), 3))
    told = capsys.readouterr().out
    assert all(figure in told for figure in ("700 ms", "108 ms", "14.0 s", "3.25 GiB", "unknown", "price/h", "(GiB·s)"))
