"""How many deployments find a place in fragmented GPU memory, and how much memory stays stranded?

    python benchmarks/fragments.py [--seed N] [--rounds N] [--instances FILE | --write FILE] [--pack] [--json]
                                   [--save]

Random clusters of 8, 64 and 512 GPUs of one and of four types, each GPU empty or partly taken by others, and streams of
deployments of published models that all fit at once: `bound` is the length of the stream, proved by the placement that
it was drawn with. Ours is the allocator's own decision; the others are MaverIQ's greedy (from its description), even
pipelines, and whole GPUs. Nobody knows what comes next, and nothing is moved. `before_refusal`: deployments placed
before the first that was refused. `ms_median`: one decision of ours, all pipeline degrees. `replicas_ms`: one decision
for 2 to 16 replicas at once, on 64 and 512 GPUs of one and of four types.
`--instances`: your own clusters and streams (their form: `fragments_files.py`); `--write` shows the random ones so.

`--load 1.0` fills clusters as far as the random hand gets, nine tenths: there a large model that comes last can find no
node left, whoever places (1 of 16 streams on 64 GPUs; even pipelines: 1 of 2), so that luck can decide.
"""

import argparse
import gc
import json
import os
import platform
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from random import Random
from statistics import mean, median
from time import perf_counter
from typing import Any

from fragments_files import read, write
from fragments_rules import Even, MaverIQ, Ours, Rule, WholeGpu
from fragments_streams import LOADS, TYPES, Deployment, Instance, draw

RESULT = Path(__file__).parent / "results" / "fragments.json"
RULES: dict[str, Rule] = {"ours": Ours(), "maveriq": MaverIQ(), "even": Even(), "whole_gpu": WholeGpu()}
ROUNDS = {8: 10, 64: 3, 512: 1}  # of each number of GPUs, types and load
NUM_FLEET_GPUS = 10_000
REPLICAS = (2, 4, 8, 16)
LIMIT_MS = 50.0


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--rounds", type=int, default=1, help="times the usual number of instances")
    options.add_argument("--load", type=float, action="append", help="share of the free bytes (default: 0.7, 0.8, 0.9)")
    options.add_argument("--instances", type=Path, help="clusters and streams from a file; see fragments_files.py")
    options.add_argument("--write", type=Path, help="write the random instances as such a file, and do no more")
    options.add_argument("--pack", action="store_true", help="only the times of decisions")
    options.add_argument("--json", action="store_true")
    options.add_argument("--save", action="store_true", help=f"write {RESULT.name} too")
    chosen = options.parse_args()
    entries = given(chosen.instances) if chosen.instances else drawn(chosen.seed, chosen.rounds, chosen.load or LOADS)
    if chosen.write:
        write(chosen.write, [entry.instance for entry in entries])
        return
    report: dict[str, Any] = {"machine": machine(), "seed": chosen.seed}
    if not chosen.pack:
        report["instances"] = [entry.row() for entry in entries]
        report["summary"] = summary(report["instances"])
    report["pack_ms"] = {str(NUM_FLEET_GPUS): pack_ms(chosen.seed)}
    report["replicas_ms"] = {str(number): replicas_ms(chosen.seed, number) for number in REPLICAS}
    if chosen.save:
        RESULT.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report) if chosen.json else table(report))


@dataclass(frozen=True, slots=True)
class Entry:
    types: int
    load: float | None
    """None: not known."""
    instance: Instance

    def row(self) -> dict[str, Any]:
        gpus = sum(map(len, self.instance.nodes))
        return {"gpus": gpus, "types": self.types, "load": self.load, **played(self.instance)}


def given(path: Path) -> Iterator[Entry]:
    for instance in read(path):
        yield Entry(len({gpu.gpu_type for node in instance.nodes for gpu in node}), None, instance)


def drawn(seed: int, rounds: int, loads: Iterable[float]) -> Iterator[Entry]:
    for gpus, times in ROUNDS.items():
        for types in (1, 4):
            for load in loads:
                for number in range(times * rounds):
                    instance = draw(Random(f"{seed}/{gpus}/{types}/{load}/{number}"), gpus, types, load)
                    yield Entry(types, load, instance)


def played(instance: Instance) -> dict[str, Any]:
    runs = {name: Run(rule, instance) for name, rule in RULES.items()}
    return {
        "placed": {name: run.num_placed for name, run in runs.items()},
        "before_refusal": {name: run.num_before_refusal for name, run in runs.items()},
        "stranded_fraction": {name: round(run.stranded_fraction, 4) for name, run in runs.items()},
        "bound": instance.bound,
        "ms_median": round(median(runs["ours"].decisions_ms), 3),
    }


class Run:
    """One rule on one instance."""

    def __init__(self, rule: Rule, instance: Instance) -> None:
        self._instance = instance
        self._node_of = {gpu.name: number for number, node in enumerate(instance.nodes) for gpu in node}
        self._free = {gpu.name: gpu.free_bytes for node in instance.nodes for gpu in node}
        self.num_placed = 0
        self.num_before_refusal: int | None = None
        self.decisions_ms: list[float] = []
        for deployment in instance.stream:
            begun = perf_counter()
            held = rule.place(deployment, instance.nodes, self._free)
            self.decisions_ms.append(1000 * (perf_counter() - begun))
            if held is not None:
                self._take(deployment, held)
            elif self.num_before_refusal is None:
                self.num_before_refusal = self.num_placed
        if self.num_before_refusal is None:
            self.num_before_refusal = self.num_placed

    @property
    def stranded_fraction(self) -> float:
        """Of the bytes that were free."""
        return sum(self._free.values()) / self._instance.free_bytes

    def _take(self, deployment: Deployment, held: Mapping[str, int]) -> None:
        """Counts it where the bytes are there and are enough for the model: no rule is taken at its word."""
        memory, pp = deployment.memory, len(held)
        tied = memory.tied_saving_bytes if pp == 1 else 0
        needed = deployment.num_layers * memory.layer_bytes + pp * memory.runtime_bytes
        if sum(held.values()) != needed + memory.first_bytes + memory.last_bytes - tied:
            raise SystemExit(f"{deployment.model}: {held} is not its size")
        if len({self._node_of[gpu] for gpu in held}) > 1:
            raise SystemExit(f"{deployment.model}: {held} is on several nodes")
        for gpu, num_bytes in held.items():
            self._free[gpu] -= num_bytes
            if self._free[gpu] < 0:
                raise SystemExit(f"{deployment.model}: {gpu} is over its size")
        self.num_placed += 1


def summary(rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Means over the instances, and whether ours placed at least as many as each other in every one."""
    rows = list(rows)
    known = [row for row in rows if row["bound"]]
    others = [name for name in RULES if name != "ours"]
    return {
        "instances": len(rows),
        "placed_of_bound": {name: of_bound(known, "placed", name) for name in RULES},
        "before_refusal_of_bound": {name: of_bound(known, "before_refusal", name) for name in RULES},
        "instances_that_ours_lost": {
            name: sum(r["placed"]["ours"] < r["placed"][name] for r in rows) for name in others
        },
        "instances_that_ours_won": {
            name: sum(r["placed"]["ours"] > r["placed"][name] for r in rows) for name in others
        },
    }


def of_bound(rows: Iterable[Mapping[str, Any]], key: str, name: str) -> float | None:
    """None: no bound is known."""
    shares = [row[key][name] / row["bound"] for row in rows]
    return round(mean(shares), 4) if shares else None


def pack_ms(seed: int) -> float:
    """Median of decisions on a fleet in use: mixed models, candidates of all pipeline degrees."""
    instance = draw(Random(f"{seed}/fleet"), NUM_FLEET_GPUS, 1, 0.5)
    free = {gpu.name: gpu.free_bytes for node in instance.nodes for gpu in node}
    ours = Ours()
    there = ours.snapshot(instance.nodes, free)
    times: list[float] = []
    gc.collect()
    for deployment in instance.stream[:60]:
        plan = ours.plan(deployment)
        begun = perf_counter()
        ours.decide(plan, there, TYPES)
        times.append(1000 * (perf_counter() - begun))
    return round(median(times), 2)


def replicas_ms(seed: int, num_replicas: int) -> dict[str, float]:
    """Of decisions that seat so many replicas, and of those that find no seats for all."""
    ours = Ours()
    placed: list[float] = []
    refused: list[float] = []
    for gpus, types in product((64, 512), (1, 4)):
        instance = draw(Random(f"{seed}/replicas/{gpus}/{types}"), gpus, types, 0.5)
        there = ours.snapshot(instance.nodes, {gpu.name: gpu.free_bytes for node in instance.nodes for gpu in node})
        for deployment in instance.stream[:20]:
            plan = ours.plan(deployment)
            begun = perf_counter()
            choice = ours.decide(plan, there, TYPES, num_replicas)
            (refused if choice is None else placed).append(1000 * (perf_counter() - begun))
    return {
        "placed": len(placed), "median": round(median(placed), 2), "max": round(max(placed), 2),
        "over_50": sum(ms > LIMIT_MS for ms in placed),
        "refused": len(refused), "refused_max": round(max(refused, default=0.0), 2),
    }  # fmt: skip


def machine() -> dict[str, Any]:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.machine(), "num_cores": os.cpu_count(),
        "python": platform.python_version(), "load_1_min": round(os.getloadavg()[0], 1),
    }  # fmt: skip


def table(report: Mapping[str, Any]) -> str:
    lines = [f"{report['machine']['cpu']}, {report['machine']['num_cores']} cores"]
    if "instances" in report:
        lines += ["", f"{'GPUs':>5} {'types':>5} {'load':>5} {'bound':>6} " + " ".join(f"{n:>10}" for n in RULES)]
        groups = sorted({(r["gpus"], r["types"], r["load"] or 0.0) for r in report["instances"]})
        for group in groups:
            rows = [r for r in report["instances"] if (r["gpus"], r["types"], r["load"] or 0.0) == group]
            placed = " ".join(f"{mean(r['placed'][name] for r in rows):10.1f}" for name in RULES)
            bounds = [r["bound"] for r in rows if r["bound"] is not None]
            bound = f"{mean(bounds):6.1f}" if bounds else f"{'?':>6}"
            lines.append(f"{group[0]:5} {group[1]:5} {group[2] or '?':>5} {bound} {placed}")
        lines += ["", *(f"{key}: {value}" for key, value in report["summary"].items())]
    lines += ["", *(f"{number} replicas: {told}" for number, told in report["replicas_ms"].items())]
    lines += ["", f"one decision on {NUM_FLEET_GPUS} GPUs: {report['pack_ms'][str(NUM_FLEET_GPUS)]} ms"]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
