"""`maveriq quantize`: which layers go to which GPU, in which precision. Reads files; the planner's package answers."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, cast

import typer
from rich.console import Console, Group
from rich.text import Text

from maveriq.cli import options as o
from maveriq.cli.api import CommandFailed
from maveriq.cli.figures import digits
from maveriq.cli.intents import checked
from maveriq.cli.reading import planners, read_json
from maveriq.cli.tables import columns
from maveriq.contracts.quantizing import (
    Aim,
    CostForm,
    LawQuestion,
    QuantizedPipeline,
    QuantizedStage,
    QuantizingRefused,
    QuantizingRequest,
)

ENTRY_POINTS = "maveriq.quantizing"
"""Group under which the planner's distribution names what answers."""
_GIB = 2**30
_NUMBER = r"\d+(\.\d+)?"
_GPU = re.compile(rf"(?P<name>[^=]+)=(?P<type>.+):(?P<gib>{_NUMBER})GiB(@(?P<price>{_NUMBER}))?")
_OPTIONS = {
    "tables": "--tables", "law": "--law", "gpus": "--gpu", "sensitivity": "--sensitivity", "workload": "--input-tokens",
    "num_requests": "--requests", "theta": "--theta", "most_sensitivity": "--max-sensitivity",
    "max_stages": "--max-stages", "model": "--law", "facts": "--law", "calibrations": "--law",
}  # fmt: skip


def quantize(
    tables: Annotated[Path | None, typer.Option(help="LLM-PQ-style tables: what layers cost on each GPU type.")] = None,
    form: Annotated[CostForm, typer.Option(help="How --tables are priced.")] = CostForm.FULL,
    law: Annotated[
        Path | None, typer.Option(help="Model, facts and calibrations, as `maveriq provision --save-law` wrote them.")
    ] = None,
    gpu: Annotated[
        list[str] | None, typer.Option(help='NAME=TYPE:FREE[@PRICE], e.g. "a=NVIDIA L4:9.5GiB@0.7". Repeatable.')
    ] = None,
    sensitivity: Annotated[
        Path | None,
        typer.Option(help='JSON: {"precisions": [...], "layers": [[...], ...]}; by default the model\'s in --law.'),
    ] = None,
    requests: Annotated[int, typer.Option(min=1, help="Held at the same time.")] = 1,
    input_tokens: o.InputTokens = None,
    output_tokens: o.OutputTokens = None,
    aim: Annotated[Aim, typer.Option(help="What to do best.")] = Aim.LATENCY,
    ordered: Annotated[bool, typer.Option("--ordered", help="Stages on the GPUs as listed, on all of them.")] = False,
    uniform_stages: Annotated[bool, typer.Option("--uniform-stages", help="One precision a stage.")] = False,
    max_stages: Annotated[int, typer.Option(min=1, help="GPUs of one pipeline.")] = 8,
    theta: Annotated[float | None, typer.Option(help="Milliseconds that a unit of sensitivity is worth.")] = None,
    max_sensitivity: Annotated[
        float | None, typer.Option("--max-sensitivity", help="Of all layers together: the floor of accuracy.")
    ] = None,
    json: o.Json = False,
) -> None:
    """Split a model over unequal GPUs: layers, precisions and micro-batches, with the proven gap."""
    question = {
        "gpus": [_gpu(text) for text in gpu or ()],
        "workload": {name: value for name, value in (("input_tokens", input_tokens), ("output_tokens", output_tokens))
                     if value is not None},
        "num_requests": requests, "aim": aim, "ordered": ordered, "uniform_stages": uniform_stages,
        "max_stages": max_stages,
    }  # fmt: skip
    body: dict[str, object] = {"form": form, "theta": theta, "most_sensitivity": max_sensitivity}
    if tables is not None and law is not None:
        raise CommandFailed("give --tables or --law, not both", field="--tables", exit_code=2)
    if tables is not None:
        body["tables"] = read_json(tables, "--tables")
    elif law is not None:
        body["law"] = _question(law, sensitivity, question)
    else:
        raise CommandFailed("needs --tables, or --law with --gpu and --sensitivity", field="--tables", exit_code=2)
    found = _answered(checked(QuantizingRequest, body, _OPTIONS))
    if json:
        print(found.model_dump_json())
    else:
        Console(highlight=False).print(pipeline_view(found))


def pipeline_view(found: QuantizedPipeline) -> Group:
    head = Text(f"{digits(found.latency_ms, 5)} ms", style="bold")
    head.append(f", sensitivity {digits(found.sensitivity)}; prompts by {found.prefill_batch}, ", style="default")
    head.append(f"steps by {found.decode_batch}; ", style="default")
    head.append(f"proven within {digits(found.gap * 100, 2)} % of the best", style="green")
    table = columns("stage", "layers", "precisions", "prompt ms", "step ms", "GiB", "of", right=(1, 3, 4, 5, 6))
    for stage in found.stages:
        table.add_row(
            stage.gpu, f"{stage.num_layers}", _runs(stage), digits(stage.prefill_ms, 4), digits(stage.decode_ms, 4),
            digits(stage.layer_bytes / _GIB), digits(stage.free_bytes / _GIB),
        )  # fmt: skip
    note = f"{found.num_pipelines} orders and micro-batches, {found.num_searched} searched, the others ruled out"
    return Group(head, Text(), table, Text(), Text(note, style="dim"))


def _runs(stage: QuantizedStage) -> str:
    """Layers in a row of one precision, counted; groups of layers as one."""
    runs: list[tuple[str, int]] = []
    for label in stage.precisions:
        before = runs.pop() if runs and runs[-1][0] == label else (label, 0)
        runs.append((label, before[1] + 1))
    size = stage.num_layers // len(stage.precisions)
    return " ".join(f"{count * size}x{label}" for label, count in runs)


def _question(law: Path, sensitivity: Path | None, plain: Mapping[str, object]) -> LawQuestion:
    kept = read_json(law, "--law")
    if not isinstance(kept, dict):
        raise CommandFailed(f"{law} holds no law; write one with maveriq provision --save-law", field="--law",
                            exit_code=2)  # fmt: skip
    known = cast("dict[str, object]", kept)
    names: tuple[str, ...] = ("model", "facts", "calibrations")
    sources = {name: known[name] for name in names if name in known}
    lost = _stored(sources.get("model")) if sensitivity is None else read_json(sensitivity, "--sensitivity")
    body: dict[str, object] = {**sources, **plain, "sensitivity": lost}
    return checked(LawQuestion, body, _OPTIONS)


def _stored(model: object) -> object:
    """As `maveriq accuracy --layers` left it with the model. Raises CommandFailed."""
    lost = cast("dict[str, object]", model).get("sensitivity") if isinstance(model, dict) else None
    if lost is None:
        raise CommandFailed(
            "say what each layer loses in each precision, or measure it before the law is saved: maveriq accuracy "
            "MODEL --layers FILE", field="--sensitivity", exit_code=2,
        )  # fmt: skip
    return lost


def _gpu(text: str) -> dict[str, object]:
    found = _GPU.fullmatch(text)
    if found is None:
        raise CommandFailed(f'{text!r} is no NAME=TYPE:FREEGiB[@PRICE], e.g. "a=NVIDIA L4:9.5GiB"', field="--gpu",
                            exit_code=2)  # fmt: skip
    price = found["price"]
    return {"name": found["name"], "gpu_type": found["type"], "free_bytes": int(float(found["gib"]) * _GIB),
            "price_per_hour": 0.0 if price is None else float(price)}  # fmt: skip


def _answered(request: QuantizingRequest) -> QuantizedPipeline:
    try:
        answer: Callable[[QuantizingRequest], QuantizedPipeline] = planners(ENTRY_POINTS)
        return answer(request)
    except QuantizingRefused as refused:
        fault = refused.fault
        raise CommandFailed(
            f"{fault.problem}; {fault.remedy}", field=_option(fault.field), code=refused.code,
            exit_code=2 if refused.code == "invalid" else 1,
        ) from refused  # fmt: skip


def _option(field: str) -> str:
    first, _, rest = field.partition(".")
    return f"{_OPTIONS.get(first, first)} {rest}".rstrip()
