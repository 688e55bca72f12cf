"""How well is a model predicted that nothing was measured of, and how good are the choices made by that?

Each model that has whole-model rows is left out in turn. Our law learns from all rows of the other models and sees
the target's config.json only; MaverIQ's method sees the target's fingerprints and takes its exponents from the other
models. Errors are absolute, in percent of what was measured. Regret: the measured objective of the configuration that
is predicted to be best, over the measured optimum; request by request, 100 tokens of output.

    python benchmarks/estimator.py --data DIR [--data DIR2] [--json] [--save]

DIR holds full_model.csv and fingerprint.csv, and may hold full_model_batch.csv, fingerprint_batch.csv and
uneven_pipeline.csv, as MaverIQ's authors released them; the rows of several folders are merged.
"""

import argparse
import json
import os
import platform
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from leave_one_out import FULL, Guess, by_law, by_maveriq, models_of
from released_runs import Row, gpu_seconds, read

from maveriq.contracts import ModelFacts
from maveriq_profiler.cutting import Unreadable, read_config
from maveriq_profiler.facts import facts_of

RESULT = Path(__file__).with_name("results") / "estimator.json"
OUTPUT_TOKENS = 100
MEASURED_ON = "8 x NVIDIA RTX A6000 48 GB (PCIe, NVLink pairs), TensorRT-LLM 0.9: MaverIQ's release"
NINE_OF_TEN = 1.645  # standard deviations each way
METHODS: dict[str, Callable[[Sequence[Row], str], Iterable[Guess]]] = {"law": by_law, "maveriq": by_maveriq}

Objective = Callable[[float, float, int], float]
OBJECTIVES: dict[str, Objective] = {
    "min_latency": lambda latency, memory, gpus: latency,
    "min_cost": lambda latency, memory, gpus: latency * memory,
    "min_memory": lambda latency, memory, gpus: memory,
    "min_gpu_cost": lambda latency, memory, gpus: latency * gpus,
}
"""MaverIQ, section 4."""

FIGURES: dict[str, tuple[str, Callable[[Row], bool]]] = {
    "latency_ape": ("latency", lambda row: row.table == FULL and row.sample.output_tokens == OUTPUT_TOKENS),
    "latency_ape_all_outputs": ("latency", lambda row: row.table == FULL),
    "memory_ape": ("memory", lambda row: row.table == FULL and row.sample.output_tokens == OUTPUT_TOKENS),
    "memory_ape_all_outputs": ("memory", lambda row: row.table == FULL),
    "batch_latency_ape": ("latency", lambda row: row.table == "full_model_batch" and row.sample.batch > 1),
    "batch_memory_ape": ("memory", lambda row: row.table == "full_model_batch" and row.sample.batch > 1),
    "uneven_latency_ape": (
        "latency",
        lambda row: row.table == "uneven_pipeline" and max(row.sample.layers) > min(row.sample.layers) + 1,
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, action="append", required=True, help="folder; may be given again")
    parser.add_argument("--model", action="append", default=[], metavar="NAME=DIR", help="config.json of another model")
    parser.add_argument("--measured-on", default=MEASURED_ON, help="the machine, for the report")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument("--save", action="store_true", help=f"write {RESULT.name} beside the others")
    arguments = parser.parse_args()
    report = measure(read(arguments.data, shapes(arguments.model)), arguments.measured_on)
    print(json.dumps(report) if arguments.json else table(report))
    if arguments.save:
        RESULT.write_text(json.dumps(report, indent=2) + "\n")


def shapes(given: Sequence[str]) -> dict[str, ModelFacts]:
    """Raises SystemExit: not NAME=DIR, or no config.json that can be used."""
    found: dict[str, ModelFacts] = {}
    for text in given:
        name, equals, folder = text.partition("=")
        if not equals:
            raise SystemExit(f"--model {text}: give NAME=DIR")
        try:
            found[name] = facts_of(read_config(folder))
        except Unreadable as problem:
            raise SystemExit(f"--model {text}: {problem}") from problem
    return found


def measure(rows: Sequence[Row], measured_on: str = MEASURED_ON) -> dict[str, Any]:
    models = models_of(rows)
    if len(models) < 2:
        raise SystemExit(f"full_model.csv holds {len(models)} model(s); to leave one out takes two at least")
    report: dict[str, Any] = {
        "machine": {
            "measured_on": measured_on,
            "computed_on": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        },
        "unit": "percent; regret: ratio; measuring: GPU-seconds",
        "data": {"models": models, "rows": len(rows), "learnt_from": sorted({row.model for row in rows})},
    }
    for method, guessed in METHODS.items():
        guesses = {model: list(guessed(rows, model)) for model in models}
        report[method] = scores([guess for many in guesses.values() for guess in many], list(guesses.values()))
        report[method]["measuring_gpu_s"] = {model: round(measuring(rows, model, method)) for model in models}
        report[method]["per_model"] = {model: scores(many, [many]) for model, many in guesses.items()}
    return report


def measuring(rows: Sequence[Row], model: str, method: str) -> float:
    """What the method needs of the target itself. MaverIQ's: TP and PP of (1,1), (1,2), (2,1), at batches 1 and 2."""
    if method == "law":
        return 0.0
    mine = [row for row in rows if row.model == model and row.num_gpus <= 2]
    return gpu_seconds([row for row in mine if row.table == "fingerprint_batch"]) or gpu_seconds(
        [row for row in mine if row.table == "fingerprint"]
    )


def scores(guesses: Sequence[Guess], each_model: Sequence[Sequence[Guess]]) -> dict[str, Any]:
    found: dict[str, Any] = {name: errors(guesses, what, chosen) for name, (what, chosen) in FIGURES.items()}
    cases = [ratio for many in each_model for ratio in regrets(many).values()]
    found["regret"] = (
        {"mean": _rounded(np.mean(cases)), "max": _rounded(max(cases)), "n": len(cases)} if cases else None
    )
    inside = [
        abs(guess.latency_ms - guess.row.latency_ms) <= NINE_OF_TEN * guess.error_ms
        for guess in guesses
        if guess.error_ms is not None and guess.latency_ms is not None and guess.row.table == FULL
    ]
    if inside:
        found["inside_90_percent_interval"] = _rounded(np.mean(inside))
    return found


def errors(guesses: Sequence[Guess], what: str, chosen: Callable[[Row], bool]) -> dict[str, Any] | None:
    """None: the data hold no such row."""
    apes: list[float] = []
    unsaid = 0
    for guess in guesses:
        if chosen(guess.row):
            said = guess.latency_ms if what == "latency" else guess.memory_gib
            true = guess.row.latency_ms if what == "latency" else guess.row.memory_gib
            if said is None:
                unsaid += 1
            else:
                apes.append(100 * abs(said / true - 1))
    if not apes:
        return {"n": 0, "unsaid": unsaid} if unsaid else None
    found = {
        "median": _rounded(np.median(apes)), "p90": _rounded(np.quantile(apes, 0.9)), "max": _rounded(max(apes)),
        "n": len(apes),
    }  # fmt: skip
    return found | ({"unsaid": unsaid} if unsaid else {})


def regrets(guesses: Sequence[Guess]) -> dict[str, float]:
    """Of one model, by objective; what the method says nothing of is not chosen."""
    measured = [
        guess for guess in guesses if guess.row.table == FULL and guess.row.sample.output_tokens == OUTPUT_TOKENS
    ]
    said = [
        (guess, guess.latency_ms, guess.memory_gib)
        for guess in measured
        if guess.latency_ms is not None and guess.memory_gib is not None
    ]
    found: dict[str, float] = {}
    for name, objective in OBJECTIVES.items():
        if said:
            best = min(_true(guess, objective) for guess in measured)
            chosen, *_ = min(said, key=lambda one: objective(one[1], one[2], one[0].row.num_gpus))
            found[name] = _true(chosen, objective) / best
    return found


def _true(guess: Guess, objective: Objective) -> float:
    return objective(guess.row.latency_ms, guess.row.memory_gib, guess.row.num_gpus)


def _rounded(value: Any) -> float:
    return round(float(value), 4)


def table(report: dict[str, Any]) -> str:
    data = report["data"]
    lines = [f"{data['rows']} rows; left out in turn: {', '.join(data['models'])}", ""]
    lines.append(f"{'':34}{'law':>24}{'MaverIQ':>26}")
    lines.append(f"{'':34}{'median   p90    max':>24}{'median   p90    max':>26}")
    for name in FIGURES:
        cells = [_cells(report[method][name]) for method in METHODS]
        lines.append(f"{name:34}{cells[0]:>24}{cells[1]:>26}")
    for model in data["models"]:
        cells = [_cells(report[method]["per_model"][model]["latency_ape"]) for method in METHODS]
        lines.append(f"  latency_ape {model:20}{cells[0]:>24}{cells[1]:>26}")
    for name in ("mean", "max"):
        cells = [_regret(report[method]["regret"], name) for method in METHODS]
        lines.append(f"{'regret ' + name:34}{cells[0]:>24}{cells[1]:>26}")
    cells = [f"{sum(report[method]['measuring_gpu_s'].values()):,}" for method in METHODS]
    lines.append(f"{'GPU-seconds of measuring targets':34}{cells[0]:>24}{cells[1]:>26}")
    lines.append("")
    lines.append("Errors in percent of what was measured on " + report["machine"]["measured_on"])
    return "\n".join(lines)


def _cells(found: dict[str, Any] | None) -> str:
    if found is None or not found["n"]:
        return "no such rows" if found is None else f"says nothing of {found['unsaid']}"
    return f"{found['median']:6.2f} {found['p90']:6.2f} {found['max']:7.1f}"


def _regret(found: dict[str, float] | None, name: str) -> str:
    return "none" if found is None else f"{found[name]:.3f}"


if __name__ == "__main__":
    main()
