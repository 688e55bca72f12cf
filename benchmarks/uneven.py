"""What do uneven stages cost? SmolLM2 on the torch engine in four processes: even against five uneven splits.

    python benchmarks/uneven.py [--rounds 10] [--tokens 32] [--threads 1] [--patience-s 600] [--json] [--save]

As a deployment goes: the profiler fingerprints the model, the planner plans it, and its best candidate of four stages
is packed by the allocator onto nodes whose GPUs have little more free memory than an even split or five uneven ones
need; the engine starts what was packed, in the bytes that were reserved. All six stand side by side; every round
measures each of them once, in turn.

Overhead: time of an answer over that of the even split in the same round, in percent; of each split the median over the
rounds, and of these the median and the largest. Memory: of every process, weights and KV cache as the engine counts
them over what the plan's candidate said of its stage (runtime and activations aside), in percent.
"""

import argparse
import asyncio
import importlib.metadata
import json
import os
import sys
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any
from uuid import UUID

import structlog
import torch
from torch_engine import CACHE, Quiet, Rate, answered, cpu_name, gguf, started

from maveriq.contracts import (
    Admission,
    Candidate,
    FingerprintMeasured,
    Intent,
    Model,
    PlanComputed,
    Precision,
    Stage,
    StageMemory,
    Workload,
)
from maveriq_allocator.packing import Fragment, Packing, pack
from maveriq_planner.handlers import Handlers
from maveriq_profiler.children import Children
from maveriq_profiler.formats import Format
from maveriq_profiler.measuring import ChildProbe
from maveriq_profiler.rig import find_rig
from maveriq_profiler.settings import Settings
from maveriq_worker.engine import Device, Launch, LocalStage
from maveriq_worker.torch_engine import TorchEngine

PP = 4
LAYERS = 30
EVEN = (8, 8, 7, 7)
UNEVEN = ((12, 8, 6, 4), (15, 9, 4, 2), (4, 14, 4, 8), (20, 5, 3, 2), (27, 1, 1, 1))
TARGETS = {"overhead_percent": 2.0, "memory_error_percent": 3.0}
RESULT = Path(__file__).with_name("results") / "uneven.json"
# The least that a fingerprint can be: what is held to measurement here is counted from the model's shape.
FINGERPRINT = {"MAVERIQ_PROFILE_LAYERS": "1,2", "MAVERIQ_PROFILE_BATCHES": "1,4", "MAVERIQ_PROFILE_PROMPTS": "16,64",
               "MAVERIQ_PROFILE_BUDGET_S": "0.1"}  # fmt: skip


@dataclass(frozen=True)
class Split:
    """One replica as packed, and as it runs."""

    stages: tuple[Stage, ...]
    engine: TorchEngine

    @property
    def layers(self) -> tuple[int, ...]:
        return tuple(stage.num_layers for stage in self.stages)

    def __str__(self) -> str:
        return "/".join(map(str, self.layers))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--tokens", type=int, default=32, help="of each answer")
    parser.add_argument("--threads", type=int, default=1, help="of each stage")
    parser.add_argument("--patience-s", type=float, default=600, help="for moments when nobody else computes")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument("--save", action="store_true", help=f"write {RESULT.name} beside the others")
    arguments = parser.parse_args()
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    report = asyncio.run(measure(arguments))
    if arguments.save:
        RESULT.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report) if arguments.json else table(report))


async def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    model = Model(name="smollm2", source=str(gguf()))
    candidate = await planned(model, arguments)
    async with AsyncExitStack() as running:
        splits: list[Split] = []
        for layers in (EVEN, *UNEVEN):
            stages = packed(candidate.memory, layers)
            engine = await started(running, launch(model, candidate, stages, arguments.threads))
            splits.append(Split(stages, engine))
        rates = {str(split): answer_ms(split.engine, arguments.tokens) for split in splits}
        for each in rates.values():
            await each()  # the first round of anything is slower
        quiet = Quiet(asyncio.get_running_loop().time() + arguments.patience_s)
        rounds = [{name: await quiet.measured(each) for name, each in rates.items()} for _ in range(arguments.rounds)]
        memory = {str(split): stage_memory(split, candidate.memory) for split in splits}
    return summary(rounds, memory, candidate, arguments) | {
        "measured_again": quiet.repeated,
        "disturbed": quiet.disturbed,
    }


async def planned(model: Model, arguments: argparse.Namespace) -> Candidate:
    """The best of four stages, as the profiler and the planner have it."""
    env = {"MAVERIQ_REDIS_URL": "redis://unused", "MAVERIQ_PROFILE_DEVICE": "cpu",
           "MAVERIQ_THREADS_PER_STAGE": str(arguments.threads), **FINGERPRINT}  # fmt: skip
    settings = Settings.from_env(env)
    children = Children(arguments.threads)
    probe = ChildProbe(find_rig(settings, None), settings.limits(cuda=False), children)
    reading = await probe.read(model.source)
    fingerprint = await probe.measure(reading, Format(Precision.FP32, Precision.FP32))
    await children.close()
    intent = Intent(
        model=model.name, precisions=(Precision.FP32,),
        workload=Workload(input_tokens=16, output_tokens=arguments.tokens, context_tokens=256),
    )  # fmt: skip
    measured = FingerprintMeasured(
        deployment_id=UUID(int=1), admission=Admission(intent=intent, model=model), facts=reading.facts,
        fingerprints=(fingerprint,),
    )  # fmt: skip
    answer = await Handlers(max_pp=PP, prices={}).on_fingerprint_measured(measured)
    if not isinstance(answer, PlanComputed):
        raise SystemExit(f"the planner refused: {answer}")
    return next(candidate for candidate in answer.plan.candidates if candidate.configuration.pp == PP)


def packed(memory: StageMemory, layers: tuple[int, ...]) -> tuple[Stage, ...]:
    """By the allocator, onto a node whose GPUs have just the room for so many layers each."""
    sizes = [
        memory.of_stage(num, first=rank == 0, last=rank == PP - 1) + memory.layer_bytes // 2
        for rank, num in enumerate(layers)
    ]
    fragments = [Fragment(f"here/cpu:{number}", "cpu-1t", size) for number, size in enumerate(sizes)]
    packing = pack(memory, LAYERS, pp=PP, tp=1, fragments=fragments)
    if not isinstance(packing, Packing):
        raise SystemExit(f"{layers} does not fit where it should: {packing.reason}")
    return packing.stages


def launch(model: Model, candidate: Candidate, stages: tuple[Stage, ...], threads: int) -> Launch:
    local = tuple(
        LocalStage((Device(stage.gpus[0], "cpu", number),), stage.num_layers, stage.reserved_bytes)
        for number, stage in enumerate(stages)
    )
    return Launch(model, candidate.configuration, local, CACHE, threads)


def answer_ms(engine: TorchEngine, num_tokens: int) -> Rate:
    async def measured() -> float:
        begun = perf_counter()
        await answered(engine, 0, num_tokens)
        return (perf_counter() - begun) * 1e3

    return measured


def stage_memory(split: Split, memory: StageMemory) -> list[dict[str, float]]:
    rows: list[dict[str, float]] = []
    for rank, (stage, counted) in enumerate(zip(split.stages, split.engine.stats().stages, strict=True)):
        estimate = memory.of_stage(stage.num_layers, first=rank == 0, last=rank == PP - 1) - memory.runtime_bytes
        own = counted.weight_bytes + counted.kv_cache_bytes
        error = round(100 * abs(own - estimate) / estimate, 3)
        rows.append({"layers": stage.num_layers, "bytes": own, "estimated_bytes": estimate, "error_percent": error})
    return rows


def summary(
    rounds: list[dict[str, float]], memory: dict[str, list[dict[str, float]]], candidate: Candidate,
    arguments: argparse.Namespace,
) -> dict[str, Any]:  # fmt: skip
    even, *uneven = rounds[0]
    overheads = {name: [100 * (each[name] / each[even] - 1) for each in rounds] for name in uneven}
    medians = {name: median(values) for name, values in overheads.items()}
    errors = [stage["error_percent"] for stages in memory.values() for stage in stages]
    return {
        "machine": {
            "cpu": cpu_name(),
            "cores": os.cpu_count(),
            "torch": torch.__version__,
            "transformers": importlib.metadata.version("transformers"),
            "load_1_min": round(os.getloadavg()[0], 2),
        },
        "setting": {key: getattr(arguments, key) for key in ("rounds", "tokens", "threads")},
        "configuration": candidate.configuration.model_dump(mode="json", exclude_none=True),
        "overhead_percent": {
            "median": round(median(medians.values()), 2),
            "max": round(max(medians.values()), 2),
            "of_each_split": {name: round(value, 2) for name, value in medians.items()},
        },
        "memory_error_percent": {"max": max(errors)},
        "answer_ms": {name: round(median(each[name] for each in rounds), 1) for name in rounds[0]},
        "stages": memory,
        "targets": TARGETS,
    }


def table(report: dict[str, Any]) -> str:
    overhead, errors = report["overhead_percent"], report["memory_error_percent"]
    lines = [f"{report['machine']['cpu']}, {report['setting']}", ""]
    lines += [
        f"{'layers':>14} {'answer':>10} {'overhead':>9}   weights and KV cache of each process, MiB (of estimate)"
    ]
    for name, ms in report["answer_ms"].items():
        more = overhead["of_each_split"].get(name)
        own = ", ".join(f"{s['bytes'] / 2**20:.1f} ({s['bytes'] / s['estimated_bytes'] - 1:+.2%})"
                        for s in report["stages"][name])  # fmt: skip
        lines.append(f"{name:>14} {ms:7.0f} ms {'' if more is None else f'{more:+.1f} %':>9}   {own}")
    lines += [
        "",
        f"overhead: median {overhead['median']:+.1f} %, max {overhead['max']:+.1f} % (target: under 2 % at the median)",
        f"memory: off by {errors['max']:.2f} % at most (target: 3 %)",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
