"""What does the cheapest fleet cost, and how long does finding it take, against Mélange's formulation?

    python benchmarks/provision.py --instances DIR [--melange-cases FILE] [--json] [--save]

DIR holds Mélange configurations (JSON), an instance each. Ours splits buckets freely and is timed from the rates to the
counts, proven and checked: the median of --repeats. Mélange's formulation, written from its paper, gives each of 1, 4,
8 and 16 slices of a bucket to one GPU type and is solved by the CBC that PuLP brings, as Mélange's is (pip install
pulp, for this benchmark only); one that takes longer than --limit seconds has no result. Where few enough fleets are
cheaper than ours, all of them are tried: `brute_force` says that none of them does.
--melange-cases compares with the optima that a file of solved cases holds.
"""

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

from maveriq.contracts.provisioning import ProvisioningRefused
from maveriq_planner.provision import solve
from maveriq_planner.provisioning.fleet_mix import Limits, Mix
from maveriq_planner.provisioning.melange import read_melange
from maveriq_planner.provisioning.problem import Problem
from maveriq_planner.provisioning.routing import balanced

RESULT = Path(__file__).parent / "results" / "provision.json"
SLICES = (1, 4, 8, 16)
TOLERANCE = 1e-6  # relative, of costs
MOST_FLEETS = 2_000_000  # that brute force lists
MOST_TRIED = 2_000  # of those, that no simple bound rules out


@dataclass(frozen=True)
class Instance:
    price: np.ndarray  # [U]
    throughput: np.ndarray  # [U, B]
    rate: np.ndarray  # [B]

    def problem(self) -> Problem:
        load = np.full(self.throughput.shape, np.inf)
        np.divide(self.rate, self.throughput, out=load, where=self.throughput > 0)
        return Problem(self.price, load)


def main() -> None:
    arguments = parse()
    shown: dict[str, Any] = {
        "machine": f"{cpu()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "load_average": round(os.getloadavg()[0], 1),
    }
    if arguments.instances is not None:
        found = [measured(name, instance, arguments) for name, instance in instances(arguments.instances)]
        shown |= {"summary": summary(found), "instances": found}
    if arguments.melange_cases is not None:
        shown["cases"] = cases(arguments.melange_cases, arguments.limit)
    if arguments.save:
        RESULT.write_text(json.dumps(shown, indent=2) + "\n")
    print(json.dumps(shown) if arguments.json else table(shown))


def instances(folder: Path) -> Iterator[tuple[str, Instance | str]]:
    """Each file's name, and what it holds or why it is refused."""
    files = sorted(folder.glob("*.json"))
    if not files:
        sys.exit(f"{folder} holds no .json")
    for file in files:
        try:
            yield file.stem, read(json.loads(file.read_text()))
        except (ProvisioningRefused, ValueError) as refused:
            yield file.stem, str(refused)


def read(body: Mapping[str, Any]) -> Instance:
    """Whatever its distribution sums to and what it says besides: both sides get the same rates."""
    known = {key: body[key] for key in ("gpu_info", "workload_distribution", "total_request_rate") if key in body}
    if isinstance(known.get("gpu_info"), dict):
        known["gpu_info"] = {
            name: {key: gpu[key] for key in ("cost", "tputs") if key in gpu} for name, gpu in known["gpu_info"].items()
        }
    config = read_melange(json.dumps(known), unnormalised=True)
    used = config.rates > 0
    price = np.array([gpu.price_per_hour for gpu in config.gpus])
    throughput = np.array([np.array(gpu.throughput)[used] for gpu in config.gpus])
    return Instance(price, throughput, config.rates[used])


def measured(name: str, instance: Instance | str, arguments: argparse.Namespace) -> dict[str, Any]:
    print(f"{name} ...", file=sys.stderr, flush=True)
    if isinstance(instance, str):
        nothing = {"cost": None, "s": None, "gap": None}
        return {"name": name, "refused": instance, "ours": nothing, "melange": dict.fromkeys(map(str, SLICES)),
                "melange_unsound": [], "brute_force": None}  # fmt: skip
    ours(instance, arguments.limit)  # what a process does once is not counted
    times = []
    for _ in range(arguments.repeats):
        start = perf_counter()
        mix = ours(instance, arguments.limit)
        times.append(perf_counter() - start)
    found: dict[str, Any] = {
        "name": name, "buckets": len(instance.rate), "types": len(instance.price),
        "ours": {"cost": None if mix is None else mix.objective, "s": median(times),
                 "gap": None if mix is None else mix.gap},
        "melange": {}, "melange_unsound": [], "brute_force": brute_force(instance, mix),
    }  # fmt: skip
    for slices in SLICES:
        cost, seconds, sound = melange(instance, slices, arguments.limit)
        late = seconds > arguments.limit
        found["melange"][str(slices)] = None if late or not sound else {"cost": cost, "s": seconds}
        if not sound:
            found["melange_unsound"].append(str(slices))
    return found


def ours(instance: Instance, limit_s: float) -> Mix | None:
    solved = solve(instance.problem(), Limits(limit_s, perf_counter))
    return None if solved is None else solved.mix


def melange(instance: Instance, slices: int, limit_s: float) -> tuple[float | None, float, bool]:
    """Cost (None: infeasible, or nothing in time), seconds, and whether its counts bear the load."""
    try:
        import pulp
    except ImportError:
        sys.exit("Mélange's formulation is solved by PuLP's CBC: pip install pulp")
    start = perf_counter()
    kinds, rows = range(len(instance.price)), range(len(instance.rate) * slices)
    problem = pulp.LpProblem("mix", pulp.LpMinimize)
    x = [[pulp.LpVariable(f"x_{i}_{g}", 0, 1, pulp.LpInteger) for g in kinds] for i in rows]
    y = [pulp.LpVariable(f"y_{g}", 0, None, pulp.LpInteger) for g in kinds]
    problem += pulp.lpSum(y[g] * float(instance.price[g]) for g in kinds)
    for i in rows:
        problem += pulp.lpSum(x[i]) == 1
    for g in kinds:
        able = [i for i in rows if instance.throughput[g, i // slices] > 0]
        load = {i: float(instance.rate[i // slices] / slices / instance.throughput[g, i // slices]) for i in able}
        problem += pulp.lpSum(x[i][g] * load[i] for i in able) <= y[g]
        for i in rows:
            if i not in load:
                problem += x[i][g] == 0
    problem.solve(pulp.PULP_CBC_CMD(msg=0, timeLimit=limit_s))
    seconds = perf_counter() - start
    if pulp.LpStatus[problem.status] != "Optimal":
        return None, seconds, True
    counts = np.array([round(variable.value() or 0.0) for variable in y], dtype=float)
    routing = balanced(instance.problem(), counts)
    sound = routing is not None and routing.busiest <= 1 + 1e-5
    return float(instance.price @ counts), seconds, sound


def brute_force(instance: Instance, mix: Mix | None) -> bool | None:
    """Whether no cheaper fleet does; None: there are too many to try."""
    if mix is None or (instance.price <= 0).any():
        return None
    problem = instance.problem()
    most = np.floor(mix.objective / instance.price).astype(int) + 1
    if np.prod(most.astype(float)) > MOST_FLEETS:
        return None
    fleets = np.stack(np.meshgrid(*(np.arange(n) for n in most), indexing="ij"), axis=-1).reshape(-1, len(most))
    fleets = fleets[fleets @ instance.price < mix.objective * (1 - TOLERANCE)]
    random = np.random.default_rng(0)
    for worth in (instance.price, *random.dirichlet(np.ones(len(most)), 200)):
        needed = (worth[:, None] * problem.load).min(axis=0).sum()  # any fleet that does has this much worth
        fleets = fleets[fleets @ worth >= needed * (1 - TOLERANCE)]
    if len(fleets) > MOST_TRIED:
        return None
    routings = (balanced(problem, fleet.astype(float)) for fleet in fleets)
    return not any(routing is not None and routing.busiest <= 1 - TOLERANCE for routing in routings)


def summary(found: list[dict[str, Any]]) -> dict[str, Any]:
    pairs = [(one["ours"], theirs) for one in found for theirs in one["melange"].values() if theirs is not None]
    pairs = [(mine, theirs) for mine, theirs in pairs if theirs["cost"] is not None]
    ratios = [theirs["s"] / mine["s"] for mine, theirs in pairs]
    dearer = [mine for mine, theirs in pairs if mine["cost"] is None or mine["cost"] > theirs["cost"] * (1 + TOLERANCE)]
    cheaper = [mine for mine, theirs in pairs if mine["cost"] < theirs["cost"] * (1 - TOLERANCE)]
    asked = [one for one in found if "refused" not in one]
    passed = [theirs for one in asked for slices, theirs in one["melange"].items()
              if theirs is None and slices not in one["melange_unsound"]]  # fmt: skip
    return {
        "compared": len(pairs), "dearer": len(dearer), "cheaper": len(cheaper), "melange_passed_limit": len(passed),
        "times_faster_median": median(ratios) if ratios else None,
        "times_faster_least": min(ratios, default=None),
        "s_median": {"ours": median(mine["s"] for mine, _ in pairs), "melange": median(t["s"] for _, t in pairs)}
        if pairs else None,
        "largest_gap": max((one["ours"]["gap"] for one in found if one["ours"]["gap"] is not None), default=None),
        "brute_force": {"agrees": sum(one["brute_force"] is True for one in found),
                        "disagrees": sum(one["brute_force"] is False for one in found)},
    }  # fmt: skip


def cases(file: Path, limit_s: float) -> list[dict[str, Any]]:
    """Each solved example of the file against ours; of each failure of Mélange's what ours says."""
    body: Mapping[str, Any] = json.loads(file.read_text())
    found: list[dict[str, Any]] = []
    for example in body.get("examples", []):
        mix = ours(read(example["input"]), limit_s)
        optimum, cost = example["fractional"]["cost"], None if mix is None else mix.objective
        found.append({
            "case": example["case"], "slices": example["S"], "ours": cost, "optimum": optimum,
            "melange": example["melange"]["cost"],
            "agrees": cost is not None and abs(cost - optimum) <= TOLERANCE * optimum,
        })  # fmt: skip
    for failure in body.get("failures", []):
        if "input" in failure:
            said = answered(failure["input"], limit_s)
            theirs = failure.get("error") or failure.get("result")
            found.append({"case": failure["case"], "melange": theirs, "ours": said})
    return found


def answered(body: Mapping[str, Any], limit_s: float) -> str:
    try:
        config = read_melange(json.dumps(body))
    except ProvisioningRefused as refused:
        return str(refused)
    mix = ours(read(body), limit_s)
    counts = [] if mix is None else [int(count) for count in mix.counts]
    return f"{dict(zip((gpu.name for gpu in config.gpus), counts, strict=False))}, {mix.objective if mix else None}"


def table(shown: dict[str, Any]) -> str:
    rows = [f"{shown['machine']}, load {shown['load_average']}"]
    if "instances" in shown:
        head = "".join(f"{f'{slices} slices':>20}" for slices in SLICES)
        rows.append(f"{'instance':32} {'cost':>10} {'ms':>8} {'gap':>7}{head}  cost and times as long")
        rows += [row(one) for one in shown["instances"]]
        rows += [f"{name}: {value}" for name, value in shown["summary"].items()]
    for case in shown.get("cases", []):
        if "optimum" in case:
            verdict = "agrees" if case["agrees"] else "DISAGREES"
            rows.append(f"{case['case']}, {case['slices']} slices: {case['ours']:.6g}, optimum {case['optimum']:.6g}, "
                        f"Mélange {case['melange']:.6g}: {verdict}")  # fmt: skip
        else:
            rows.append(f"{case['case']}: Mélange {case['melange']}; ours {case['ours']}")
    return "\n".join(rows)


def row(one: dict[str, Any]) -> str:
    if "refused" in one:
        return f"{one['name']:32} refused: {one['refused']}"
    mine = one["ours"]
    shown: Callable[[float | None], str] = lambda value: "-" if value is None else f"{value:.4g}"  # noqa: E731
    theirs = ""
    for slices in SLICES:
        other = one["melange"][str(slices)]
        none = "unsound" if str(slices) in one["melange_unsound"] else "too late"
        times = "" if other is None else f" x{other['s'] / mine['s']:.0f}"
        theirs += f"{none if other is None else shown(other['cost']) + times:>20}"
    return f"{one['name']:32} {shown(mine['cost']):>10} {mine['s'] * 1e3:8.2f} {shown(mine['gap']):>7}{theirs}"


def cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--instances", type=Path, metavar="DIR", help="folder of Mélange configurations")
    parser.add_argument("--melange-cases", type=Path, metavar="FILE", help="solved cases to compare with")
    parser.add_argument("--repeats", type=int, default=9, help="of ours, of which the median is taken")
    parser.add_argument("--limit", type=float, default=60.0, help="seconds for one solution")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--save", action="store_true", help=f"write {RESULT.name} in benchmarks/results")
    arguments = parser.parse_args()
    if arguments.instances is None and arguments.melange_cases is None:
        parser.error("give --instances DIR, or --melange-cases FILE")
    return arguments


if __name__ == "__main__":
    main()
