"""What docs/law.md says of the law: its constants, how many models they need, larger models, what each term is for.

Learns from MaverIQ's released measurements alone. What that page says of them is printed by this file or estimator.py.
Errors are absolute, in percent of what was measured.

    python benchmarks/law_study.py --data DIR [--data DIR2] [--json] [--save]
"""

import argparse
import json
import os
import platform
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from law_terms import WITHOUT, without
from leave_one_out import FULL, calibrated, error_ms, models_of, request_terms
from released_runs import Row, read, read_repeats

from maveriq import law
from maveriq.contracts import Calibration
from maveriq_profiler.calibration import TooLittle

RESULT = Path(__file__).with_name("results") / "law_study.json"
OUTPUT_TOKENS = 100
NINE_OF_TEN = 1.645  # standard deviations each way


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, action="append", required=True, help="folder; may be given again")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument("--save", action="store_true", help=f"write {RESULT.name} beside the others")
    arguments = parser.parse_args()
    rows = read(arguments.data)
    again = [row for row in rows if row.table == FULL] + read_repeats(arguments.data)
    report = study(rows) | {"repeats": repeats(again)}
    print(json.dumps(report) if arguments.json else table(report))
    if arguments.save:
        RESULT.write_text(json.dumps(report, indent=2) + "\n")


def study(rows: Sequence[Row]) -> dict[str, Any]:
    if len(models_of(rows)) < 2:
        raise SystemExit(f"full_model.csv holds {len(models_of(rows))} model(s); to leave one out takes two at least")
    fitted = calibrated(rows)
    return {
        "machine": {
            "measured_on": "8 x NVIDIA RTX A6000 48 GB (PCIe, NVLink pairs), TensorRT-LLM 0.9: MaverIQ's release",
            "computed_on": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        },
        "unit": "percent; constants: ms or GiB per unit of their term",
        "data": {"models": models_of(rows), "rows": len(rows)},
        "constants": {c.name: [_digits(c.value), _digits(c.standard_error)] for c in (*fitted.latency, *fitted.memory)},
        "memory_margin": round(fitted.memory_margin, 4),
        "learnt_from": learnt_from(rows),
        "larger_models": larger_models(rows),
        "intervals": intervals(rows),
        "without": {name: leave_one_out(rows, dropped) for name, dropped in WITHOUT.items()},
        "uneven_splits": uneven_splits(rows),
    }


def learnt_from(rows: Sequence[Row]) -> dict[str, Any]:
    """Whole models, batch 1, output 100, of each model that is left out; `worst` is the worst choice of teachers."""
    found: dict[str, list[list[float]]] = defaultdict(list)
    whole = models_of(rows)
    for target in whole:
        tests = [row for row in rows if row.model == target and _is_asked(row)]
        others = [row for row in rows if _shape(row) != _shape(tests[0])]
        cuts = [row for row in others if row.table == "fingerprint"]
        teachers = sorted({row.model for row in others if row.table == FULL})
        for count in range(1, len(teachers) + 1):
            for chosen in combinations(teachers, count):
                runs = [row for row in others if row.table == FULL and row.model in chosen]
                found[f"{count} whole model(s)"].append(errors(runs, tests))
        found["cuts of 1 and 2 layers of the others"].append(errors(cuts, tests))
        runs = [row for row in others if row.table == FULL]
        found[f"{len(teachers)} whole models and cuts, long prompts"].append(errors([*runs, *cuts], tests))
        found["all rows of the others"].append(errors(others, tests))
        own = [row for row in rows if row.model == target and row.table.startswith("fingerprint")]
        found["all rows of the others, own cuts"].append(errors([*others, *own], tests))
    return {name: _many(each) for name, each in found.items() if any(each)}


def larger_models(rows: Sequence[Row]) -> dict[str, Any]:
    """Cuts of each model that has no whole runs, all of its rows left out."""
    found: dict[str, Any] = {}
    for model in sorted({row.model for row in rows} - set(models_of(rows))):
        tests = [row for row in rows if row.model == model and row.table == "fingerprint"]
        others = [row for row in rows if _shape(row) != _shape(tests[0])] if tests else []
        if others:
            signed = list(signed_errors(others, tests))
            found[model] = spread(signed) | {"mean": round(float(np.mean(signed)), 2)}
    return found


def intervals(rows: Sequence[Row]) -> dict[str, float]:
    """Share of a left-out model's measured latencies that lie in the interval meant for nine of ten."""
    found: dict[str, float] = {}
    for target in models_of(rows):
        tests = [row for row in rows if row.model == target and row.table == FULL]
        fitted = calibrated([row for row in rows if _shape(row) != _shape(tests[0])])
        inside = [_lies_within(row, fitted) for row in tests]
        found[target] = round(100 * float(np.mean(inside)), 1)
    return found


def leave_one_out(rows: Sequence[Row], dropped: tuple[str, ...]) -> dict[str, Any]:
    """Of each model, and of all, with the law short of some terms."""
    found: dict[str, list[float]] = {}
    with without(dropped):
        for target in models_of(rows):
            tests = [row for row in rows if row.model == target and _is_asked(row)]
            found[target] = list(signed_errors([row for row in rows if _shape(row) != _shape(tests[0])], tests))
    each = {name: spread(values) | {"mean": round(float(np.mean(values)), 2)} for name, values in found.items()}
    return {"all": spread([value for values in found.values() for value in values]), "per_model": each}


def uneven_splits(rows: Sequence[Row]) -> dict[str, Any]:
    """How much longer a request takes than in the even split of as many stages, as it was measured."""
    alike: dict[object, list[Row]] = defaultdict(list)
    for row in rows:
        if row.table == "uneven_pipeline":
            alike[row.model, row.sample.batch, row.sample.output_tokens, len(row.sample.layers)].append(row)
    longer: list[float] = []
    for group in alike.values():
        even = [row.latency_ms for row in group if max(row.sample.layers) - min(row.sample.layers) <= 1]
        uneven = [row.latency_ms for row in group if max(row.sample.layers) - min(row.sample.layers) > 1]
        longer += [100 * (ms / float(np.median(even)) - 1) for ms in uneven if even]
    return spread(longer) | {"mean": round(float(np.mean(longer)), 2)} if longer else {}


def repeats(rows: Sequence[Row]) -> dict[str, Any]:
    """How far measurements of one configuration lie from their median, by TP."""
    alike: dict[object, list[Row]] = defaultdict(list)
    for row in rows:
        alike[row.sample.model_dump_json(exclude={"e2e_ms", "memory_bytes"})].append(row)
    away: dict[str, list[float]] = defaultdict(list)
    for group in alike.values():
        if len(group) > 2:
            middle = float(np.median([row.latency_ms for row in group]))
            away[f"TP {group[0].sample.tp}"] += [100 * (row.latency_ms / middle - 1) for row in group]
    return {name: spread(values) for name, values in sorted(away.items())}


def errors(learnt: Sequence[Row], tests: Sequence[Row]) -> list[float]:
    """Empty where nothing can be fitted."""
    try:
        return list(signed_errors(learnt, tests))
    except TooLittle:
        return []


def signed_errors(learnt: Sequence[Row], tests: Sequence[Row]) -> Iterator[float]:
    fitted = calibrated(learnt)
    constants = {constant.name: constant.value for constant in fitted.latency}
    for row in tests:
        ms = float(law.dot(constants, request_terms(row.sample, fitted)))
        yield 100 * (ms / row.latency_ms - 1)


def spread(values: Iterable[float]) -> dict[str, Any]:
    away = np.abs(list(values))
    return {
        "median": round(float(np.median(away)), 2), "p90": round(float(np.quantile(away, 0.9)), 2),
        "max": round(float(away.max()), 2), "n": len(away),
    }  # fmt: skip


def _many(each: Sequence[Sequence[float]]) -> dict[str, Any]:
    fits = [values for values in each if values]
    worst = max(float(np.median(np.abs(values))) for values in fits)
    return spread([value for values in fits for value in values]) | {"worst": round(worst, 2), "fits": len(fits)}


def _lies_within(row: Row, fitted: Calibration) -> bool:
    terms = request_terms(row.sample, fitted)
    ms = float(law.dot({constant.name: constant.value for constant in fitted.latency}, terms))
    return abs(ms - row.latency_ms) <= NINE_OF_TEN * error_ms(ms, terms, fitted)


def _is_asked(row: Row) -> bool:
    return row.table == FULL and row.sample.output_tokens == OUTPUT_TOKENS


def _shape(row: Row) -> str:
    return row.sample.facts.shape_key


def _digits(value: float) -> float:
    return float(f"{value:.4g}")


def table(report: dict[str, Any]) -> str:
    lines = [f"{report['data']['rows']} rows; whole: {', '.join(report['data']['models'])}"]
    lines += ["", f"{'learnt from':46} {'median':>7} {'p90':>7} {'worst fit':>10}"]
    lines += [_line(name, one, f"{one['worst']:10.2f}") for name, one in report["learnt_from"].items()]
    lines += ["", f"{'larger models, their cuts':46} {'median':>7} {'p90':>7} {'mean':>10}"]
    lines += [_line(name, one, f"{one['mean']:+10.2f}") for name, one in report["larger_models"].items()]
    lines += ["", f"{'without':46} {'median':>7} {'p90':>7}   mean of each model"]
    for name, one in report["without"].items():
        each = ", ".join(f"{model} {found['mean']:+.2f}" for model, found in one["per_model"].items())
        lines.append(_line(name, one["all"], f"  {each}"))
    lines += ["", f"inside the interval for nine of ten, %: {report['intervals']}"]
    lines += [f"uneven splits against even ones: {report['uneven_splits']}", f"repeats: {report['repeats']}"]
    lines += ["", f"memory margin: {report['memory_margin']:.1%} of runtime and activations"]
    lines += ["constants (standard error):"]
    lines += [f"  {name:32} {value:12g} ({error:g})" for name, (value, error) in report["constants"].items()]
    return "\n".join(lines)


def _line(name: str, one: dict[str, Any], rest: str) -> str:
    return f"{name:46} {one['median']:7.2f} {one['p90']:7.2f} {rest}"


if __name__ == "__main__":
    main()
