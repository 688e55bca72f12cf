"""Every field of an intent has its option, and an intent written as a command asks for the same."""

import shlex
from collections.abc import Callable
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as some
from pydantic import BaseModel
from typer.testing import CliRunner

from maveriq.cli import app as commands
from maveriq.cli.intents import OPTIONS, as_command
from maveriq.contracts import Deployment, Intent, Objective, Precision, Slo, State, Workload
from tests.unit.cli.conftest import Called, Events, ScriptedIngress
from tests.unit.cli.plans import ASKED
from tests.unit.cli.records import FIRST, deployment

Call = Callable[..., Called]


def leaves(kind: type[BaseModel], prefix: str = "") -> set[str]:
    """Paths of all fields that hold no fields themselves."""
    found: set[str] = set()
    for name, field in kind.model_fields.items():
        within = field.annotation
        if isinstance(within, type) and issubclass(within, BaseModel):
            found |= leaves(within, f"{prefix}{name}.")
        else:
            found.add(prefix + name)
    return found


def test_every_field_of_an_intent_has_an_option_in_both_commands() -> None:
    assert set(OPTIONS) == leaves(Intent) - {"model"}
    for command in ("plan", "deploy"):
        told = CliRunner().invoke(commands.app, [command, "--help"], env={"COLUMNS": "200"}).output
        assert [option for option in OPTIONS.values() if option not in told] == []


def submitted(ingress: ScriptedIngress, call: Call, command: str) -> Intent:
    """What reaches ingress when a command is pasted."""
    ready: Deployment = deployment(State.READY)
    ingress.answer("POST /v1/intents", ready.model_dump(mode="json"), 202)
    ingress.answer(f"GET /v1/deployments/{FIRST}/events", Events([ready.model_dump(mode="json")]))
    called = call(*shlex.split(command)[1:])
    assert called.code == 0, called.err
    return Intent.model_validate(ingress.asked[-2][1])


def test_an_intent_written_as_a_command_asks_for_the_same(ingress: ScriptedIngress, call: Call) -> None:
    every = ASKED.model_copy(update={
        "model": "meta/llama-3", "objective": Objective.MAX_THROUGHPUT, "allow_unmeasured_accuracy": True,
        "precisions": (Precision.BF16, Precision.INT8), "max_gpus": 8, "replicas": 2,
        "slo": Slo(percentile=99.9, ttft_ms=1234.5678, tpot_ms=0.0123, e2e_ms=1e6),
        "workload": Workload(input_tokens=9, output_tokens=7, request_rate_per_s=0.001, concurrency=3,
                             context_tokens=64),
    })  # fmt: skip
    command = as_command("deploy", every)
    assert "--gpu-type 'NVIDIA L4' --gpu-type 'NVIDIA A10' --precision bf16 --precision int8" in command
    assert submitted(ingress, call, command) == every


@given(some.builds(Slo, ttft_ms=some.none() | some.floats(1e-3, 1e6), percentile=some.none() | some.floats(50, 99)))
def test_defaults_are_left_out_of_a_command(slo: Slo) -> None:
    command = as_command("plan", Intent(model="tiny", slo=slo))
    assert command.startswith("maveriq plan tiny")
    assert ("--ttft-ms" in command) == (slo.ttft_ms is not None)
    assert "--rate" not in command and "--replicas" not in command


def test_repeatable_options_go_on_top_of_a_written_intent(ingress: ScriptedIngress, call: Call, tmp_path: Path) -> None:
    written = tmp_path / "intent.json"
    written.write_text('{"model": "tiny", "gpu_types": ["A"], "precisions": ["fp8"], "workload": {"concurrency": 4}}')
    asked = submitted(ingress, call, f"maveriq deploy --intent {written} --gpu-type B --gpu-type C --percentile 95")
    assert (asked.gpu_types, asked.precisions) == (("B", "C"), (Precision.FP8,))
    assert (asked.slo.percentile, asked.workload.concurrency) == (95, 4)


def test_options_of_the_wrong_kind_name_themselves_and_the_remedy(call: Call) -> None:
    assert "--percentile: " in call("plan", "tiny", "--percentile", "100").err
    assert "--max-price: " in call("plan", "tiny", "--max-price", "0").err
    assert "--concurrency: " in call("plan", "tiny", "--concurrency", "0").err
    assert "int7" in call("plan", "tiny", "--precision", "int7").err
