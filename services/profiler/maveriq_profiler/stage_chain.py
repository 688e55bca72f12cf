"""A synthetic model in one process a stage, as the worker's torch engine is: the first stage leads and keeps the time.

Passes travel over a ring of sockets, activations over torch.distributed. One pass is under way at a time, so stages on
CPUs keep to one core, as the engine's do. They are forked from a process that holds the model: they share its weights.
CUDA does not survive a fork, so there each makes its own part.
"""

import gc
import multiprocessing
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from maveriq.torch_layers import DTYPES, StageCore, keep_freed_memory
from maveriq_profiler.cutting import config_from, with_layers
from maveriq_profiler.engine_stage import (
    EngineStage,
    Pass,
    build_for_engine,
    chosen,
    decode_pass,
    prompt_passes,
)
from maveriq_profiler.formats import Format
from maveriq_profiler.readings import Timed, counted, timed

_START_S = 300.0
_TRIES = 3


class ChainFailed(Exception):
    """A stage ended by itself."""


@dataclass(frozen=True, slots=True)
class ChainSpec:
    """One split of one model."""

    config_json: str
    format: Format
    layers: tuple[int, ...]
    """Of each stage."""
    devices: tuple[str, ...]
    """One for each stage."""
    threads: int
    rendezvous: Path


@dataclass(frozen=True, slots=True)
class Run:
    """What the leader is to time: a pass over prompts, or a number of decode steps after them."""

    batch: int
    input_tokens: int
    num_steps: int
    """0: the prompts."""
    context_tokens: int
    """Of the cache."""


class Chain:
    """The processes of one split."""

    def __init__(self, spec: ChainSpec, model: Any | None) -> None:
        """
        Args:
            model: whole, on the CPU, for the stages to share; None: each makes its own.
        """
        context: Any = multiprocessing.get_context("fork" if model is not None else "spawn")
        here, there = multiprocessing.Pipe()
        self._leader: Connection[Run, list[float]] = here
        pairs: list[tuple[Any, Any]] = [multiprocessing.Pipe() for _ in spec.layers]  # from a stage to the next
        rings = [_Ring(pairs[rank - 1][1], pair[0]) for rank, pair in enumerate(pairs)]
        self._processes: list[BaseProcess] = [
            context.Process(target=_stage, args=(spec, rank, model, ring, None if rank else there), daemon=True)
            for rank, ring in enumerate(rings)
        ]
        for process in self._processes:
            process.start()
        self._answer()

    @property
    def pids(self) -> tuple[int, ...]:
        """Of each stage."""
        return tuple(process.pid or 0 for process in self._processes)

    def times_ms(self, run: Run) -> list[float]:
        """Raises ChainFailed."""
        self._leader.send(run)
        return self._answer()

    def stop(self) -> None:
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join()

    def _answer(self) -> list[float]:
        ready = wait([self._leader, *(process.sentinel for process in self._processes)], _START_S)
        if self._leader in ready:
            return self._leader.recv()
        self.stop()
        raise ChainFailed("a stage ended: " + ", ".join(f"exit code {process.exitcode}" for process in self._processes))


@dataclass(frozen=True, slots=True)
class _Ring:
    """A stage's links to the one before and the one after; the first comes after the last."""

    before: Any
    after: Any


def _stage(spec: ChainSpec, rank: int, model: Any | None, ring: _Ring, parent: Any | None) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(spec.threads)
    is_last = rank == len(spec.layers) - 1
    first_layer, num_layers = sum(spec.layers[:rank]), spec.layers[rank]
    own: Any = model
    if model is None:
        own, first_layer = _part(spec, rank), 0
    stage = EngineStage(own, first_layer=first_layer, num_layers=num_layers, is_first=rank == 0, is_last=is_last)
    if len(spec.layers) > 1:
        meet = f"file://{spec.rendezvous}"
        dist.init_process_group("gloo", init_method=meet, rank=rank, world_size=len(spec.layers))
    gc.collect()
    gc.freeze()  # as the engine does: collections stay short
    keep_freed_memory()
    hidden_size = int(own.config.hidden_size)
    core = StageCore(movable=stage.device.type == "cpu" and spec.threads == 1)
    if parent is None:
        _follow(stage, rank, ring, hidden_size, DTYPES[spec.format.computed_in], core)
    else:
        _Leader(stage, ring if len(spec.layers) > 1 else None, core).serve(parent)


def _part(spec: ChainSpec, rank: int) -> Any:
    """A stage's layers, and the embedding or the head at the ends."""
    config = with_layers(config_from(spec.config_json), spec.layers[rank])
    part = build_for_engine(config, spec.devices[rank], spec.format)
    if rank < len(spec.layers) - 1:
        part.set_output_embeddings(torch.nn.Identity())
    return part


class _Leader:
    def __init__(self, stage: EngineStage, ring: _Ring | None, core: StageCore) -> None:
        self._stage, self._ring, self._core = stage, ring, core
        self._alone = ring is None and stage.device.type == "cpu" and torch.get_num_threads() == 1

    def serve(self, parent: Any) -> None:
        parent.send([])
        while True:
            run: Run = parent.recv()
            parent.send(self._decode(run) if run.num_steps else self._prefill(run))

    def _prefill(self, run: Run) -> list[float]:
        steps = prompt_passes(run.batch, run.input_tokens, run.context_tokens)
        taken: list[Timed] = []
        while len(taken) < _TRIES and (not taken or taken[-1].is_disturbed):
            taken.append(self._timed(steps))
        return [min(counted(taken, enough=1))]

    def _decode(self, run: Run) -> list[float]:
        """Each step but the first, which finds the processor's caches full of something else."""
        cached = range(run.input_tokens, run.input_tokens + run.num_steps)
        steps = [(decode_pass(run.batch, at, run.context_tokens),) for at in cached]
        return counted([self._timed(step) for step in steps][1:], enough=2)

    def _timed(self, steps: Sequence[Pass]) -> Timed:
        return timed(self._through, steps, alone=self._alone)

    def _through(self, step: Pass) -> None:
        """All stages; ends when the chosen tokens are here."""
        ring = self._ring
        if ring is None:
            chosen(self._stage.forward(step, None), step)
            return
        ring.after.send(step)
        self._core.before(alone=True)
        sent = _send(self._stage.forward(step, None), 1)
        ring.after.send(self._core.after(alone=True))
        ring.before.recv()
        sent[0].wait()


def _follow(stage: EngineStage, rank: int, ring: _Ring, hidden_size: int, dtype: torch.dtype, core: StageCore) -> None:
    unsent: tuple[Any, torch.Tensor] | None = None
    while True:
        step: Pass = ring.before.recv()
        hidden = torch.empty(len(step.token_ids), len(step.token_ids[0]), hidden_size, dtype=dtype)
        arriving: Any = dist.irecv(hidden, rank - 1)
        if not stage.is_last:
            ring.after.send(step)
        shared: int | None = ring.before.recv()  # the activations were sent
        core.follow(shared)
        arriving.wait()
        output = stage.forward(step, hidden.to(stage.device))
        if stage.is_last:
            ring.after.send(chosen(output, step))
            continue
        if unsent is not None:
            unsent[0].wait()
        unsent = _send(output, rank + 1)
        ring.after.send(shared)


def _send(output: torch.Tensor, to: int) -> tuple[Any, torch.Tensor]:
    payload = output.cpu() if output.is_cuda else output.contiguous()
    return dist.isend(payload, to), payload


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
