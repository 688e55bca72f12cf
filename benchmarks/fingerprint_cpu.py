"""Does a calibration on synthetic models predict others, and what does it cost beside running them whole?

Calibrates with the profiler's own programme and probe, in rounds; in the same rounds the models to be predicted run
whole in the worker's torch engine, with random weights, in one stage and in several, even and uneven. Of each model
nothing but its config.json is told to the law. On a CPU each round starts all processes anew, for one of them may be
faster than its equal for life. Medians of all rounds; beside each error stands how much the rounds of the truth differ
among themselves, and of all errors together the share that these differences alone would make.

    python benchmarks/fingerprint_cpu.py [--device cpu|cuda] [--models smollm2-135m,...] [--model DIR ...] [--rounds 3]
                                         [--budget-s 300] [--precision fp32] [--cuts] [--json] [--save]
"""

import argparse
import asyncio
import importlib.metadata
import json
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import structlog
import torch
from fingerprint_cuts import errors_of_cuts
from fingerprint_errors import deviation, made_by_noise, spread
from fingerprint_turns import all_at_once, one_by_one
from full_models import STEPS, FullModel, Replicas, memory_available_bytes
from model_shapes import CPU_MODELS, CUDA_MODELS
from torch_engine import cpu_name
from transformers import AutoConfig

from maveriq import law
from maveriq.contracts import QUIET_SHARE, Calibration, Precision
from maveriq_planner.memory import counted
from maveriq_profiler.calibration import fit
from maveriq_profiler.cutting import config_from, read_config
from maveriq_profiler.facts import facts_of
from maveriq_profiler.formats import Format
from maveriq_profiler.grid import Point
from maveriq_profiler.measuring import Rig
from maveriq_profiler.orders import ItemOrder
from maveriq_profiler.programme import Item, programme
from maveriq_profiler.run_probe import peaks

RESULT = Path(__file__).with_name("results") / "fingerprint_{device}.json"
WHOLE = tuple(Point(batch=b, input_tokens=n) for b, n in ((1, 32), (1, 400), (2, 32), (3, 48), (5, 32), (8, 32)))
IN_STAGES = tuple(Point(batch=b, input_tokens=n) for b, n in ((1, 32), (8, 32)))


async def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    cuda = arguments.device.startswith("cuda")
    precision = Precision(arguments.precision)
    device = "cuda:0" if cuda else "cpu"
    models = [full_model(name, config, precision, device, arguments) for name, config in chosen(arguments, cuda)]
    rig = Rig("torch", torch.__version__, gpu_type(arguments), device, arguments.threads, (precision,), 3)
    orders = [ItemOrder(item=item, device=device, threads=rig.threads) for item in planned(rig, arguments)]
    async with Replicas(arguments.patience_s) as replicas:
        together = not cuda and sum(model.bytes_in_all for model in models) < memory_available_bytes() / 2
        take_turns = all_at_once if together else one_by_one
        tell: Callable[[str], None] = (lambda _: None) if arguments.json else partial(print, flush=True)
        samples, calibrating_s = await take_turns(orders, models, replicas, arguments.rounds, tell)
    calibration = fit(
        samples, engine=rig.engine, engine_version=rig.engine_version, gpu_type=rig.gpu_type, max_pp=rig.max_pp,
        version=1, fitted_at=datetime.now(UTC), cost_s=calibrating_s,
    )  # fmt: skip
    rows = [row for model in models for row in rows_of(model, calibration)]
    memory = [row for model in models for row in memory_of(model, calibration)]
    report = summary(rows, memory, calibration, models, arguments)
    if arguments.cuts:
        report["cuts"] = errors_of_cuts(models[0].config_json, models[0].facts, precision, device, arguments.threads)
    report["uncovered"] = {
        model.name: why
        for model in models
        if (why := law.uncovered(calibration, model.facts, model.precision, model.precision, pp=rig.max_pp))
    }
    report["refused"] = {model.name: model.refused for model in models if model.refused}
    disturbed = sum(others > QUIET_SHARE for others in replicas.others)
    report |= {"readings": len(replicas.others), "disturbed": disturbed}
    return report | {"rows": rows, "memory_rows": memory}


def planned(rig: Rig, arguments: argparse.Namespace) -> Sequence[Item]:
    cuda = rig.device != "cpu"
    free = int(0.5 * torch.cuda.mem_get_info()[0]) if cuda else memory_available_bytes() // 2
    items = programme(
        engine="torch", on_cpu=not cuda, free_bytes=free, precisions=rig.precisions, max_pp=rig.max_pp,
        budget_s=arguments.budget_s,
    )  # fmt: skip
    return [item for item in items if item.key.count("|") == 2]  # each once: the rounds are made here


def full_model(
    name: str, config: dict[str, Any], precision: Precision, device: str, arguments: argparse.Namespace
) -> FullModel:
    whole = AutoConfig.for_model(**config).to_json_string(use_diff=False)
    facts = facts_of(config_from(whole))
    splits = {
        split: tuple(point for point in points if point.input_tokens + STEPS <= facts.max_context_tokens)
        for split in divisions(facts.num_layers)
        for points in [IN_STAGES if len(split) > 1 else WHOLE]
    }
    return FullModel(name, whole, facts, precision, device, arguments.threads, splits)


def divisions(n: int) -> list[tuple[int, ...]]:
    """Into one stage; two and three, even and uneven."""
    third = n // 3
    fifth, half = n // 5, n // 2
    found = [
        (n,),
        (n - half, half),
        (n - n // 4, n // 4),
        (n - 2 * third, third, third),
        (n - half, half - fifth, fifth),
    ]
    return [split for number, split in enumerate(found) if min(split) > 0 and split not in found[:number]]


def rows_of(model: FullModel, calibration: Calibration) -> Iterable[dict[str, Any]]:
    constants = {constant.name: constant.value for constant in calibration.latency}
    rig = law.Rig("torch", model.precision, model.precision, 1, calibration.scope.batches)
    for (split, point), times in model.times.items():
        shape = {"num_layers": sum(split), "num_stages": len(split), "fullest": max(split), "batch": point.batch}
        prefill = law.prefill_terms(model.facts, rig, input_tokens=point.input_tokens, **shape)
        decode = law.decode_terms(model.facts, rig, context_tokens=point.input_tokens + STEPS / 2, **shape)
        for what, passes, readings in (("prefill", prefill, times.prefill_ms), ("decode", decode, times.decode_ms)):
            measured = median(value for values in readings for value in values)
            predicted = float(law.dot(constants, passes.through(sum(split))))
            yield {
                "model": model.name,
                "what": what,
                "split": list(split),
                "batch": point.batch,
                "input_tokens": point.input_tokens,
                "measured_ms": round(measured, 3),
                "predicted_ms": round(predicted, 3),
                "error": round(predicted / measured - 1, 4),
                "noise": round(median(abs(median(values) / measured - 1) for values in readings), 4),
                "deviation": round(deviation([median(values) / measured for values in readings]), 4),
            }


def memory_of(model: FullModel, calibration: Calibration) -> Iterable[dict[str, Any]]:
    """Weights and cache as the stages report them; activations as the largest pass takes them, in one stage."""
    point = max(WHOLE, key=lambda point: point.batch * point.input_tokens)
    activation, _ = peaks(model.config_json, Format(model.precision, model.precision), (point,), model.device, None)
    constants = {constant.name: constant.value for constant in calibration.memory}
    rig = law.Rig("torch", model.precision, model.precision, 1, (1,))
    terms = law.activation_terms(model.facts, rig, num_stages=1, tokens=point.batch * point.input_tokens)
    slots = np.array(float(model.slots))
    each = counted(model.facts, "torch", model.precision, model.precision, 1, slots, model.context_tokens)
    for split, reserved in model.reserved_bytes.items():
        tied = each.tied_saving_bytes if len(split) == 1 else 0
        predicted = sum(split) * float(each.layer_bytes) + each.first_bytes + each.last_bytes - tied
        measured = reserved + (activation[point] if len(split) == 1 else 0)
        predicted += float(law.dot(constants, terms)) * 2**30 if len(split) == 1 else 0
        yield {
            "model": model.name,
            "split": list(split),
            "measured_bytes": measured,
            "predicted_bytes": round(predicted),
            "error": round(predicted / measured - 1, 5),
        }


def summary(
    rows: Sequence[dict[str, Any]], memory: Sequence[dict[str, Any]], calibration: Calibration,
    models: Sequence[FullModel], arguments: argparse.Namespace,
) -> dict[str, Any]:  # fmt: skip
    full_s = sum(model.spent_s for model in models)
    kinds: dict[str, Callable[[dict[str, Any]], bool]] = {
        "one_stage": lambda row: len(row["split"]) == 1,
        "even": lambda row: len(row["split"]) > 1 and max(row["split"]) - min(row["split"]) <= 2,
        "uneven": lambda row: max(row["split"]) - min(row["split"]) > 2,
    }
    batches = sorted({row["batch"] for row in rows})
    kinds |= {f"batch_{batch}": partial(lambda batch, row: row["batch"] == batch, batch) for batch in batches}
    kinds |= {model.name: partial(lambda name, row: row["model"] == name, model.name) for model in models}
    return {
        "machine": machine(arguments),
        "setting": {key: getattr(arguments, key) for key in ("device", "precision", "threads", "rounds", "budget_s")},
        "decode_ape": spread(row for row in rows if row["what"] == "decode"),
        "prefill_ape": spread(row for row in rows if row["what"] == "prefill"),
        "memory_ape": spread(memory),
        "repeat_noise": spread({"error": row["noise"]} for row in rows),
        "made_by_noise": {
            what: made_by_noise([row for row in rows if row["what"] == what], arguments.rounds)
            for what in ("decode", "prefill")
        },
        "decode_by": {name: spread(r for r in rows if r["what"] == "decode" and of(r)) for name, of in kinds.items()},
        "prefill_by": {name: spread(r for r in rows if r["what"] == "prefill" and of(r)) for name, of in kinds.items()},
        "calibration": {
            "seconds": round(calibration.cost_s, 1),
            "models": calibration.scope.num_models,
            "samples": calibration.scope.num_samples,
            "residuals": calibration.latency_residuals.model_dump(),
            "constants": {constant.name: round(constant.value, 5) for constant in calibration.latency},
        },
        "full_models_seconds": round(full_s, 1),
    }


def chosen(arguments: argparse.Namespace, cuda: bool) -> Iterable[tuple[str, dict[str, Any]]]:
    known = CUDA_MODELS if cuda else CPU_MODELS
    for name in arguments.models.split(",") if arguments.models else ([] if arguments.model else known):
        if name not in known:
            raise SystemExit(f"--models {name}: give any of {', '.join(known)}, with commas between")
        yield name, known[name]
    for folder in arguments.model:
        yield Path(folder).resolve().name, json.loads(read_config(folder).to_json_string(use_diff=False))


def gpu_type(arguments: argparse.Namespace) -> str:
    return torch.cuda.get_device_name() if arguments.device.startswith("cuda") else f"cpu-{arguments.threads}t"


def machine(arguments: argparse.Namespace) -> dict[str, Any]:
    return {
        "gpu_type": gpu_type(arguments),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "transformers": importlib.metadata.version("transformers"),
        "load_1_min": round(os.getloadavg()[0], 2),
    }


def table(report: dict[str, Any]) -> str:
    lines = [f"{report['machine']['gpu_type']} ({report['machine']['cpu']}), {report['setting']}", ""]
    lines += [f"{'absolute error, %':24} {'median':>7} {'p90':>7} {'max':>7} {'bias':>7} {'n':>4}"]
    named = {key: report[key] for key in ("decode_ape", "prefill_ape", "memory_ape", "repeat_noise")}
    named |= {f"{part} {name}": each for part in ("decode", "prefill") for name, each in report[f"{part}_by"].items()}
    for name, each in named.items():
        if each["n"]:
            figures = " ".join(f"{each[key]:7.2f}" for key in ("median", "p90", "max", "bias"))
            lines.append(f"{name:24} {figures} {each['n']:4}")
    shares = ", ".join(f"{what} {share:.0%}" for what, share in report["made_by_noise"].items())
    lines += ["", f"of the squared errors the truth's own rounds make: {shares}; "
              f"others took part of the machine in {report['disturbed']} of {report['readings']} readings"]  # fmt: skip
    calibration = report["calibration"]
    lines += [f"calibration: {calibration['seconds']} s for {calibration['models']} synthetic models; "
              f"running the predicted models whole: {report['full_models_seconds']} s"]  # fmt: skip
    lines += [f"not vouched for: {name}: {why}" for name, why in report["uncovered"].items()]
    lines += [f"timed in the profiler's double: {name}: {why}" for name, why in report["refused"].items()]
    for cuts, each in report.get("cuts", {}).items():
        lines.append(f"fingerprint of {cuts} layers: {each}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--models", default="", help="some of the models that come with this file; default: all")
    parser.add_argument("--model", action="append", default=[], metavar="DIR", help="a folder with a config.json")
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), help="default: fp32 on a CPU, bf16 on a GPU")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each stage")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--budget-s", type=float, default=300.0, help="of the calibration, as the programme expects it")
    parser.add_argument("--patience-s", type=float, default=120, help="for moments when nobody else computes")
    parser.add_argument("--cuts", action="store_true", help="also: which cuts of the first model tell most of it")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument("--save", action="store_true", help=f"write {RESULT.name} beside the others")
    arguments = parser.parse_args()
    arguments.precision = arguments.precision or ("fp32" if arguments.device == "cpu" else "bf16")
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    report = asyncio.run(measure(arguments))
    print(json.dumps(report) if arguments.json else table(report))
    if arguments.save:
        Path(str(RESULT).format(device=arguments.device)).write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
