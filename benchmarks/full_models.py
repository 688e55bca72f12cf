"""What whole models take in the worker's torch engine, with random weights: the truth that predictions are held to.

Each split of each model is a replica of its own, with its real processes; a pass is timed where the engine times it.
"""

import asyncio
import os
import shutil
import tempfile
import time
from collections import defaultdict
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from maveriq.contracts import ModelFacts, Precision
from maveriq.torch_layers import DTYPES
from maveriq_profiler.cutting import build, config_from
from maveriq_profiler.engine_stage import build_for_engine
from maveriq_profiler.formats import Format
from maveriq_profiler.grid import Point
from maveriq_profiler.neighbours import neighbours_of
from maveriq_profiler.quiet import Quiet
from maveriq_profiler.stage_chain import Chain, ChainSpec, Run
from maveriq_worker.stage_processes import StageProcesses, StagesFailed
from maveriq_worker.torch_steps import SamplerSpec, StageSpec, Submit

Split = tuple[int, ...]
Key = tuple[Split, Point]

STEPS = 8  # decode steps of a reading; the first is left out, as in every other measurement
_TRIES = 20
_PIPELINE = Path(__file__).with_name("one_micro_batch.py")


@dataclass(slots=True)
class Times:
    """Of one shape: each round's readings."""

    prefill_ms: list[list[float]] = field(default_factory=list)
    decode_ms: list[list[float]] = field(default_factory=list)


@dataclass(slots=True)
class FullModel:
    name: str
    config_json: str
    facts: ModelFacts
    precision: Precision
    device: str
    threads: int
    splits: dict[Split, tuple[Point, ...]]
    """And the points at which each is run."""
    times: dict[Key, Times] = field(default_factory=lambda: defaultdict(Times))
    reserved_bytes: dict[Split, int] = field(default_factory=dict)
    """Weights and KV cache, as the stages report them, for `slots` requests."""
    refused: str = ""
    """Why the engine does not run it: then it is timed in the profiler's double."""
    spent_s: float = 0.0
    slots: int = 8

    @property
    def context_tokens(self) -> int:
        return max(point.input_tokens for points in self.splits.values() for point in points) + STEPS + 40

    @property
    def bytes_in_all(self) -> int:
        facts, element = self.facts, 2 if self.precision is not Precision.FP32 else 4
        ends = facts.embedding_params + facts.lm_head_params
        cache = self.slots * self.context_tokens * 2 * facts.num_kv_heads * facts.head_dim * facts.num_layers
        return len(self.splits) * element * (facts.num_layers * facts.layer_params + ends + cache)


class Replicas:
    """Engines, started when they are first read."""

    def __init__(self, patience_s: float) -> None:
        """patience_s: for readings that others disturb, which are made again."""
        self._quiet = Quiet(neighbours_of("cpu"), patience_s)
        self.others: list[float] = []
        """Share of the machine that others took during each reading."""
        self._running: dict[tuple[str, Split], Replica | Double] = {}
        self._folder = Path(tempfile.mkdtemp(prefix="maveriq-full-"))
        self._meetings = count()
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> "Replicas":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()
        shutil.rmtree(self._folder, ignore_errors=True)

    async def read(self, model: FullModel, split: Split, point: Point) -> None:
        """One reading."""
        begun = time.perf_counter()
        replica = self._running.get((model.name, split)) or await self._started(model, split)
        prefill: list[float] = []
        decode: list[float] = []
        while self._quiet.reads():
            prefill, decode = await replica.reading(point)
        self.others.append(self._quiet.others or 0.0)
        model.times[split, point].prefill_ms.append(prefill)
        model.times[split, point].decode_ms.append(decode)
        model.spent_s += time.perf_counter() - begun

    async def stop(self, model: FullModel, split: Split) -> None:
        """Its memory is free again; the next reading starts it anew."""
        replica = self._running.pop((model.name, split), None)
        if replica is not None:
            await replica.stop()

    async def stop_all(self) -> None:
        """The next readings start them anew."""
        for replica in self._running.values():
            await replica.stop()
        self._running = {}

    def forget(self, model: FullModel) -> None:
        """Its weights on disk."""
        shutil.rmtree(self._checkpoint(model), ignore_errors=True)

    async def _started(self, model: FullModel, split: Split) -> "Replica | Double":
        checkpoint = self._checkpoint(model)
        if not checkpoint.exists():
            await asyncio.to_thread(write_checkpoint, model, checkpoint)
        engine = Replica(StageProcesses((str(_PIPELINE),)))
        self._stack.push_async_callback(engine.stop)
        replica: Replica | Double = engine
        try:
            ready = await engine.processes.start(specs(model, split, checkpoint))
            model.reserved_bytes[split] = sum(each.weight_bytes + each.kv_cache_bytes for each in ready)
        except StagesFailed as refused:
            model.refused = str(refused).partition("; ")[0]
            replica = Double(model, split, self._folder / f"meet-{next(self._meetings)}")
            self._stack.push_async_callback(replica.stop)
        await replica.reading(Point(batch=1, input_tokens=16))  # the first of anything is slower
        self._running[model.name, split] = replica
        return replica

    def _checkpoint(self, model: FullModel) -> Path:
        return self._folder / model.name


class Replica:
    def __init__(self, processes: StageProcesses) -> None:
        self.processes = processes
        self._keys = count()

    async def stop(self) -> None:
        await self.processes.stop()

    async def reading(self, point: Point) -> tuple[list[float], list[float]]:
        """Passes over the prompts, and decode steps, of `batch` requests that come together.

        On a busy machine some may come late: then all are asked again.
        """
        for _ in range(_TRIES):
            prefill, decode = await self._asked(point)
            if prefill and len(decode) == STEPS - 1:
                return prefill, decode[1:]
        raise SystemExit(f"{point}: in {_TRIES} tries its requests never ran together; the machine is too busy")

    async def _asked(self, point: Point) -> tuple[list[float], list[float]]:
        # One that is read first: the others are all there when it is done.
        if point.batch > 1:
            self._submit(16, 1)
        waiting = {self._submit(point.input_tokens, STEPS) for _ in range(point.batch)}
        prefill: list[float] = []
        decode: list[float] = []
        while waiting:
            stepped = await self.processes.receive()
            waiting -= {each.choice.key for each in stepped.emitted if each.finish_reason is not None}
            passed = stepped.passed
            if passed is not None and passed.batch == point.batch:
                (prefill if passed.prompts else decode).append(passed.ms)
        return prefill, decode

    def _submit(self, num_tokens: int, max_tokens: int) -> int:
        key = next(self._keys)
        self.processes.send(Submit(key, (7,) * num_tokens, max_tokens, True, SamplerSpec(0.0, 1.0, 0, None)))
        return key


class Double:
    """The profiler's double of the engine, for families that the engine refuses."""

    def __init__(self, model: FullModel, split: Split, rendezvous: Path) -> None:
        wanted = Format(model.precision, model.precision)
        spec = ChainSpec(model.config_json, wanted, split, (model.device,) * len(split), model.threads, rendezvous)
        whole = build_for_engine(config_from(model.config_json), "cpu", wanted) if model.device == "cpu" else None
        self._chain, self._context_tokens = Chain(spec, whole), model.context_tokens

    async def stop(self) -> None:
        self._chain.stop()

    async def reading(self, point: Point) -> tuple[list[float], list[float]]:
        """As Replica's."""
        times = partial(Run, point.batch, point.input_tokens, context_tokens=self._context_tokens)
        prefill = await asyncio.to_thread(self._chain.times_ms, times(num_steps=0))
        return prefill, await asyncio.to_thread(self._chain.times_ms, times(num_steps=STEPS))


def write_checkpoint(model: FullModel, folder: Path) -> None:
    """Random weights; made on the GPU where there is one, which is faster."""
    logging.disable_progress_bar()
    made: Any = build(config_from(model.config_json), model.device, DTYPES[model.precision])
    made.save_pretrained(folder, save_original_format=False)  # named as the modules that read it
    del made
    if model.device != "cpu":
        torch.cuda.empty_cache()


def specs(model: FullModel, split: Split, checkpoint: Path) -> tuple[StageSpec, ...]:
    return tuple(
        StageSpec(
            rank=rank,
            num_stages=len(split),
            first_layer=sum(split[:rank]),
            num_layers=split[rank],
            total_layers=sum(split),
            checkpoint=checkpoint,
            precision=model.precision,
            device=model.device,
            backend="gloo",
            rendezvous=Path(),  # chosen when the processes start
            max_batch=model.slots,
            context_tokens=model.context_tokens,
            reserved_bytes=2**62,
            threads=model.threads,
            eos_ids=(),
        )
        for rank in range(len(split))
    )


def memory_available_bytes() -> int:
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return int(lines["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in lines else os.sysconf("SC_PHYS_PAGES")
