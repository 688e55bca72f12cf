"""How long does planning one intent take? The planner's handler, from FingerprintMeasured to PlanComputed.

    python benchmarks/planning.py [--repeats 15] [--json] [--save]

Clusters of 8, 100, 1,000 and 10,000 GPUs of 1, 2, 4 and 8 types (and of all eight), each type calibrated; an 8B model
with four variants, TP 1 to 8, PP 1 to 8, up to 64 slots. The load grows with the cluster, which is the limit on GPUs,
and the SLO is a percentile: so replicas are sought for every configuration. Medians of interleaved repeats, in ms;
`cpu` is the processor's time alone, about what a machine with nothing else to do would take: there is one thread.
`json` is the same with the message decoded from, and the answer encoded to, what the broker carries.
`mixed`: the same model with its layers' sensitivity, and 8, 64 and 256 fragments of nodes of eight GPUs of two types,
none of which holds it in full precision: pipelines of mixed precisions are sought over them.
"""

import argparse
import asyncio
import json
import os
import platform
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from uuid import UUID

from maveriq.contracts import (
    Admission,
    Calibration,
    Constant,
    FingerprintMeasured,
    Fragment,
    Intent,
    LayerSensitivity,
    Model,
    ModelFacts,
    Objective,
    PlanComputed,
    Precision,
    Residuals,
    Scope,
    Slo,
    Variant,
    Workload,
)
from maveriq_planner.handlers import Handlers

RESULT = Path(__file__).parent / "results" / "planning.json"
CLUSTERS = {8: 1, 100: 2, 1000: 4, 10_000: 8}
"""GPUs: types."""
TYPES = 8
FRAGMENTS = (8, 64, 256)
NODE_GPUS = 8
GIB = 2**30
MODEL = Model(
    name="llama-8b",
    source="meta-llama/Llama-3.1-8B-Instruct",
    variants=(
        Variant(precision=Precision.FP16, accuracy=1.0),
        Variant(precision=Precision.FP8, kv_precision=Precision.FP8, accuracy=0.995),
        Variant(precision=Precision.INT8, accuracy=0.99),
        Variant(precision=Precision.INT4, accuracy=0.97),
    ),
)
FACTS = ModelFacts(
    architecture="LlamaForCausalLM", shape_key="llama-8b", num_layers=32, hidden_size=4096, intermediate_size=14336,
    vocab_size=128256, num_heads=32, num_kv_heads=8, head_dim=128, max_context_tokens=131072,
    layer_params=218_112_000, embedding_params=128256 * 4096, lm_head_params=128256 * 4096 + 4096,
    tied_embeddings=False,
)  # fmt: skip
# Of the order of what was fitted to MaverIQ's released data (RTX A6000); other types are so many times faster.
LATENCY = {
    "layer[full]": 0.094, "layer[quantised]": 0.074, "weights": 1.45, "cache": 1.195, "step": 0.3, "head": 1.45,
    "requests": 0.01, "idle.tp1": 0.04, "hop.tp1": 0.02, "hop.tp2": 0.2, "hop.tp4": 0.4, "hop.tp8": 0.5,
    "step.tp2": 0.1, "step.tp4": 0.2, "step.tp8": 0.3, "rows@8": 8.0, "rows@64": 9.0, "compute": 8.5,
    "prompt_layer[full]": 0.05, "prompt_layer[quantised]": 0.05, "prompt_activations": 3.0, "prompt": 1.0,
    "prompt.tp2": 3.7, "prompt.tp4": 14.4, "prompt.tp8": 55.0, "prompt_hop.tp1": 20.0, "prompt_hop.tp2": 20.0,
    "reduce.one_shot.tp2": 37.0, "reduce.one_shot.tp4": 1813.0, "reduce.two_shot.tp4": 526.0, "reduce.ring.tp2": 41.0,
    "reduce.ring.tp4": 37.0, "reduce.ring.tp8": 37.0, "reduce.one_shot.tp8": 11005.0, "reduce.two_shot.tp8": 2703.0,
}  # fmt: skip
MEMORY = {"runtime.tp1.pp1": 0.6, "runtime.tp2.pp1": 1.8, "activation.hidden": 4.0, "activation.wide": 2.0}


def calibration(number: int) -> Calibration:
    latency = tuple(Constant(name=n, value=v / (1 + 0.4 * number), standard_error=0.01 * v) for n, v in LATENCY.items())
    size = range(len(latency))
    return Calibration(
        engine="tensorrt_llm", engine_version="1.0", gpu_type=f"type {number}", max_pp=8, latency=latency,
        covariance=tuple(
            tuple(latency[i].standard_error ** 2 if i == j else 1e-9 for j in range(i + 1)) for i in size
        ),
        memory=tuple(Constant(name=n, value=v, standard_error=0.01 * v) for n, v in MEMORY.items()),
        memory_margin=0.02,
        scope=Scope(
            num_models=6, num_samples=400, layer_params=(50_000_000, 400_000_000), hidden_size=(1024, 8192),
            vocab_size=(32000, 128256), num_layers=(2, 40),
            precisions=(Precision.FP16, Precision.FP8, Precision.INT8, Precision.INT4),
            kv_precisions=(Precision.FP16, Precision.FP8), tp_degrees=(1, 2, 4, 8), pp_degrees=(1, 2, 4),
            batches=(1, 8, 64), max_input_tokens=4096, max_context_tokens=8192,
        ),
        latency_residuals=Residuals(median=0.005, p90=0.02, maximum=0.1),
        memory_residuals=Residuals(median=0.004, p90=0.01, maximum=0.03),
        fitted_at=datetime(2026, 1, 1, tzinfo=UTC), cost_s=600.0,
    )  # fmt: skip


def event(num_gpus: int, num_types: int) -> FingerprintMeasured:
    wanted = Intent(
        model=MODEL.name, objective=Objective.MIN_PRICE, min_accuracy=0.95, max_gpus=num_gpus,
        slo=Slo(percentile=95, ttft_ms=2000, tpot_ms=60),
        workload=Workload(input_tokens=800, output_tokens=200, request_rate_per_s=num_gpus / 8),
    )  # fmt: skip
    return FingerprintMeasured(
        deployment_id=UUID(int=1), admission=Admission(intent=wanted, model=MODEL), facts=FACTS,
        calibrations=tuple(calibration(number) for number in range(num_types)),
    )  # fmt: skip


def mixed_event(num_fragments: int) -> FingerprintMeasured:
    """Nodes of one type each, 4 to 12 GiB free on a GPU."""
    lost = tuple((0.0005 + 0.0001 * (7 * layer % 32), 0.01 + 0.001 * (11 * layer % 32)) for layer in range(32))
    sensitivity = LayerSensitivity(precisions=(Precision.INT8, Precision.INT4), layers=lost)
    fragments = tuple(
        Fragment(
            node=f"node {i // NODE_GPUS}", gpu=f"{i}", engine="tensorrt_llm", gpu_type=f"type {i // NODE_GPUS % 2}",
            free_bytes=4 * GIB + (5 * i + 3 * (i // NODE_GPUS)) % 33 * GIB // 4,
        )
        for i in range(num_fragments)
    )  # fmt: skip
    plain = event(num_fragments, 2)
    model = MODEL.model_copy(update={"sensitivity": sensitivity})
    wanted = plain.admission.intent.model_copy(
        update={"workload": Workload(input_tokens=800, output_tokens=200, request_rate_per_s=1.0)}
    )
    return plain.model_copy(update={"admission": Admission(intent=wanted, model=model, fragments=fragments)})


def main() -> None:
    arguments = parse()
    prices = {f"type {number}": 0.8 + 0.5 * number for number in range(TYPES)}
    handlers = Handlers(max_pp=8, prices=prices)
    cases = {f"{n}": event(n, types) for n, types in CLUSTERS.items()}
    cases |= {f"{n} of {TYPES} types": event(n, TYPES) for n, types in CLUSTERS.items() if types < TYPES}
    cases |= {f"mixed {n}": mixed_event(n) for n in FRAGMENTS}
    bodies = {name: case.model_dump_json() for name, case in cases.items()}

    loop = asyncio.new_event_loop()  # asyncio.run would add what a service does once

    def plan(name: str) -> PlanComputed:
        answer = loop.run_until_complete(handlers.on_fingerprint_measured(cases[name]))
        assert isinstance(answer, PlanComputed), answer
        return answer

    def by_json(name: str) -> str:
        case = FingerprintMeasured.model_validate_json(bodies[name])
        return loop.run_until_complete(handlers.on_fingerprint_measured(case)).model_dump_json()

    considered = {name: plan(name).plan.num_considered for name in cases}
    times, cpu_times = measured(plan, cases, arguments.repeats)
    whole, _ = measured(by_json, cases, arguments.repeats)
    shown = {
        "machine": f"{cpu()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "load_average": round(os.getloadavg()[0], 1),
        "ms_median": {name: times[name] for name in map(str, CLUSTERS)},
        "cpu_ms_median": {name: cpu_times[name] for name in map(str, CLUSTERS)},
        "ms_median_of_8_types": {str(n): times[str(n) if t == TYPES else f"{n} of {TYPES} types"]
                                 for n, t in CLUSTERS.items()},
        "ms_median_with_json": {name: whole[name] for name in map(str, CLUSTERS)},
        "ms_median_mixed": {str(n): times[f"mixed {n}"] for n in FRAGMENTS},
        "configurations": {name: considered[name] for name in map(str, CLUSTERS)},
        "growth": growth(cpu_times, considered),
    }  # fmt: skip
    if arguments.save:
        RESULT.write_text(json.dumps(shown, indent=2) + "\n")
    print(json.dumps(shown) if arguments.json else table(shown, considered))


def measured(
    run: Callable[[str], object], cases: dict[str, FingerprintMeasured], repeats: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Medians by the clock and of the processor; cases take turns, so that what disturbs one disturbs all."""
    times: dict[str, list[float]] = {name: [] for name in cases}
    cpu_times: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(repeats):
        for name in cases:
            start, cpu_start = perf_counter(), process_time()
            run(name)
            times[name].append((perf_counter() - start) * 1e3)
            cpu_times[name].append((process_time() - cpu_start) * 1e3)
    medians = [{name: round(median(values), 2) for name, values in kind.items()} for kind in (times, cpu_times)]
    return medians[0], medians[1]


def growth(times: dict[str, float], considered: dict[str, int]) -> str:
    few, many = times[f"8 of {TYPES} types"], times["10000"]
    slope = (times["10000"] - times["8"]) / (considered["10000"] - considered["8"]) * 1e3
    return (
        f"with the types at {TYPES}: {many / few:.2f} times from 8 to 10,000 GPUs, as only replicas grow; "
        f"with the types: {slope:.1f} ms per 1,000 configurations"
    )


def table(shown: dict[str, object], considered: dict[str, int]) -> str:
    columns = [shown[name] for name in ("ms_median", "cpu_ms_median", "ms_median_of_8_types", "ms_median_with_json")]
    rows = [
        f"{shown['machine']}, load {shown['load_average']}",
        f"{'GPUs':>7} {'types':>6} {'configurations':>15} {'ms':>8} {'cpu':>8} {'8 types':>8} {'json':>8}",
    ]
    for n, types in CLUSTERS.items():
        figures = [column[str(n)] for column in columns if isinstance(column, dict)]
        rows.append(f"{n:7,} {types:6} {considered[str(n)]:15,} " + " ".join(f"{value:8.1f}" for value in figures))
    rows.append(f"mixed precisions, by fragments, ms: {json.dumps(shown['ms_median_mixed'])}")
    return "\n".join([*rows, f"growth: {shown['growth']}"])


def cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--save", action="store_true", help=f"write {RESULT.name} in benchmarks/results")
    return parser.parse_args()


if __name__ == "__main__":
    main()
