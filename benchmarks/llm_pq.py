"""How good and how fast are splits over unequal GPUs, against LLM-PQ's solver?

    python benchmarks/llm_pq.py --cases DIR [--count] [--json] [--save]

Each case file has the tables of one of LLM-PQ's clusters, and what its programme made of them with Gurobi: a plan, its
objective, the seconds. First its plan is priced with our reading of the tables, which must give its objective
(`reading`: how far it is off, relative). Then three objectives are minimised over every order of GPU types and every
micro-batch of the tables, each with its proven gap:

    objective_their_form   LLM-PQ's own cost, to be compared with its objective; `s` is the time of this one
    objective_corrected    embedding and lm_head counted once, as the case files' corrected results do
    objective_full         and every decode step of every micro-batch, lm_head on the last GPU

`--count` solves their form with the count MILP (HiGHS) too, as where GPUs can be filled in too many ways to list.
"""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from time import perf_counter
from typing import Any

from fragments import machine

from maveriq.contracts.quantizing import CostForm as Form
from maveriq_planner.quantize import Choice, Effort, NothingFits, quantize
from maveriq_planner.quantizing.fields import TablesError
from maveriq_planner.quantizing.pipeline import Split, cost, faults
from maveriq_planner.quantizing.tables import Reading, Tables, pipeline_of, pipelines, read_tables

RESULT = Path(__file__).parent / "results" / "llm_pq.json"
AS_RECORDED = {Form.THEIRS: ("ours_compat", "counts_compat"), Form.ONCE: ("ours_corrected", "counts_corrected")}
SAME = 1e-9  # relative: sums of the same floats


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--cases", type=Path, required=True, help="folder of case files")
    options.add_argument("--count", action="store_true", help="the count MILP too")
    options.add_argument("--json", action="store_true")
    options.add_argument("--save", action="store_true", help=f"write {RESULT.name} too")
    chosen = options.parse_args()
    cases = dict(case_files(chosen.cases))
    if not cases:
        raise SystemExit(f"--cases: {chosen.cases} has no case file (a JSON object with `input`)")
    report: dict[str, Any] = {
        "machine": machine(),
        "cases": [row(name, case, chosen.count) for name, case in cases.items()],
    }
    if chosen.save:
        RESULT.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report) if chosen.json else table(report["cases"]))


def case_files(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for path in sorted(folder.glob("*.json")):
        case = json.loads(path.read_text())
        if isinstance(case, dict) and "input" in case:
            yield path.stem, case


def row(name: str, case: Mapping[str, Any], count: bool) -> dict[str, Any]:
    """A case that cannot be read or solved is told, and the others go on."""
    try:
        return measured(name, case, count)
    except (TablesError, NothingFits) as error:
        empty = dict.fromkeys(("objective_their_form", "objective_corrected", "gap", "s"))
        return {"name": name, **empty, "problem": str(error)}


def measured(name: str, case: Mapping[str, Any], count: bool) -> dict[str, Any]:
    reading, off = proven_reading(case)
    choices: dict[Form, Choice] = {}
    seconds: dict[Form, float] = {}
    for form in Form:
        begun = perf_counter()
        choices[form] = quantize(pipelines(read_tables(case, reading), form))
        seconds[form] = perf_counter() - begun
    theirs, once, full = (choices[form] for form in Form)
    for choice in choices.values():
        if found := faults(choice.pipeline, choice.split):
            raise SystemExit(f"{name}: the split cannot be run: {found}")
    report: dict[str, Any] = {
        "name": name,
        "objective_their_form": theirs.cost.objective,
        "objective_corrected": once.cost.objective,
        "objective_full": full.cost.objective,
        "gap": max(theirs.gap, once.gap),
        "gap_full": full.gap,
        "s": round(seconds[Form.THEIRS], 4),
        "s_corrected": round(seconds[Form.ONCE], 4),
        "s_full": round(seconds[Form.FULL], 4),
        "reading": off,
        **against(case, theirs, once, seconds[Form.THEIRS]),
        "split": shown(theirs, read_tables(case, reading)),
    }
    if count:
        begun = perf_counter()
        effort = Effort(max_patterns=0, count_s=20)
        counted = quantize(pipelines(read_tables(case, reading), Form.THEIRS), effort=effort)
        report["count"] = {
            "objective": counted.cost.objective, "gap": counted.gap, "s": round(perf_counter() - begun, 4)
        }  # fmt: skip
    return report


def against(case: Mapping[str, Any], theirs: Choice, once: Choice, seconds: float) -> dict[str, Any]:
    """What the case file holds beside its tables; None: it does not."""
    their_s = recorded(case, "gurobi", "llm_pq").get("time_s")
    best_theirs, best_once = best_known(case, Form.THEIRS), best_known(case, Form.ONCE)
    return {
        "their_s": their_s,
        "times_faster": None if not their_s else round(their_s / seconds, 1),
        "best_known": best_theirs,
        "best_known_corrected": best_once,
        "above_best_known": None if best_theirs is None else theirs.cost.objective / best_theirs - 1,
        "above_best_known_corrected": None if best_once is None else once.cost.objective / best_once - 1,
    }


def best_known(case: Mapping[str, Any], form: Form) -> float | None:
    found = [recorded(case, name).get("obj") for name in AS_RECORDED[form]]
    if form is Form.THEIRS:
        found += [recorded(case, solver, "llm_pq").get("obj") for solver in ("gurobi", "highs")]
    known = [float(each) for each in found if isinstance(each, int | float) and each > 0]
    return min(known, default=None)


def recorded(case: Mapping[str, Any], *path: str) -> Mapping[str, Any]:
    found: Any = case
    for name in path:
        found = found.get(name) if isinstance(found, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def proven_reading(case: Mapping[str, Any]) -> tuple[Reading, float | None]:
    """How grouped tables are meant: as the recorded plan costs what was recorded; and how far that is off.

    None: there is no recorded plan to tell by.
    """
    readings = [Reading(*flags) for flags in product((True, False), repeat=3)] if group_of(case) > 1 else [Reading()]
    plan = recorded(case, "gurobi", "llm_pq")
    if not plan.get("layers") or not plan.get("obj"):
        return readings[0], None
    offs = {reading: off_recorded(read_tables(case, reading), plan) for reading in readings}
    best = min(readings, key=lambda reading: offs[reading])
    return best, offs[best]


def group_of(case: Mapping[str, Any]) -> int:
    return int(case["input"].get("group", 1))


def off_recorded(tables: Tables, plan: Mapping[str, Any]) -> float:
    layers: Sequence[int] = plan["layers"]
    labels: Sequence[str] = plan["bits"]
    in_groups = sum(layers) == tables.num_layers
    step = 1 if in_groups else tables.group
    split = Split(
        tuple(number // step for number in layers),
        tuple(tables.precisions.index(str(label)) for label in labels[:: len(labels) // tables.num_layers]),
    )
    pipeline = pipeline_of(tables, Form.THEIRS, plan["order"], int(plan["prefill_bz"]), int(plan["decode_bz"]))
    off = abs(cost(pipeline, split).objective / plan["obj"] - 1)
    return off + 1.0 if faults(pipeline, split) else float(off)


def shown(choice: Choice, tables: Tables) -> dict[str, Any]:
    return {
        "order": [stage.gpu for stage in choice.pipeline.stages],
        "layers": [number * tables.group for number in choice.split.num_layers],
        "bits": [tables.precisions[b] for b in choice.split.precisions for _ in range(tables.group)],
        "prefill_batch": choice.pipeline.prefill_batch,
        "decode_batch": choice.pipeline.decode_batch,
        "pipelines": choice.num_pipelines,
        "searched": choice.num_searched,
    }


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    def share(value: float | None) -> str:
        return "" if value is None else f"{100 * value:+.3f} %"

    head = ("case", "their form", "best known", "corrected", "best known", "full", "gap", "s", "theirs / s", "faster")
    lines = [f"{head[0]:24} " + " ".join(f"{name:>11}" for name in head[1:])]
    for row in rows:
        if "problem" in row:
            lines.append(f"{row['name']:24} {row['problem']}")
            continue
        cells = (
            f"{row['objective_their_form']:.2f}", share(row["above_best_known"]), f"{row['objective_corrected']:.2f}",
            share(row["above_best_known_corrected"]), f"{row['objective_full']:.2f}", f"{100 * row['gap']:.3f} %",
            f"{row['s']:.3f}", "" if row["their_s"] is None else f"{row['their_s']:.2f}",
            "" if row["times_faster"] is None else f"{row['times_faster']:.0f} x",
        )  # fmt: skip
        lines.append(f"{row['name']:24} " + " ".join(f"{cell:>11}" for cell in cells))
        if row["reading"] is not None and row["reading"] > SAME:
            lines.append(f"    its own plan costs {100 * row['reading']:.4f} % more or less here than it says")
        if "count" in row:
            lines.append("    count MILP: {objective:.2f}, gap {gap:.5f}, {s:.2f} s".format(**row["count"]))
    return "\n".join(lines)


if __name__ == "__main__":
    main()
