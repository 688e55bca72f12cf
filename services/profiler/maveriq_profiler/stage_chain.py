"""A synthetic model in one process a stage, as the worker's torch engine is: the first stage leads and keeps the time.

Passes travel over sockets, activations over torch.distributed. On CPUs the stages are forked from a process that holds
the model: they share its weights. CUDA does not survive a fork, so there each makes its own part.
"""

import gc
import multiprocessing
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from maveriq.contracts import Precision
from maveriq_profiler.cutting import config_from, with_layers
from maveriq_profiler.engine_stage import (
    DTYPES,
    EngineStage,
    Pass,
    build_for_engine,
    chosen,
    decode_pass,
    prompt_passes,
)

_START_S = 300.0
_AWAY_SHARE = 0.03
_TRIES = 3


class ChainFailed(Exception):
    """A stage ended by itself."""


@dataclass(frozen=True, slots=True)
class ChainSpec:
    """One split of one model."""

    config_json: str
    precision: Precision
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
        links = [multiprocessing.Pipe() for _ in spec.layers]  # the first: from here to the leader
        self._leader: Connection[Run, list[float]] = links[0][0]
        ends: list[Any] = [[links[0][1], *(near for near, _ in links[1:])], *([far] for _, far in links[1:])]
        self._processes: list[BaseProcess] = [
            context.Process(target=_stage, args=(spec, rank, model, end), daemon=True) for rank, end in enumerate(ends)
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


def _stage(spec: ChainSpec, rank: int, model: Any | None, links: list[Any]) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(spec.threads)
    is_last = rank == len(spec.layers) - 1
    first_layer, num_layers = sum(spec.layers[:rank]), spec.layers[rank]
    own: Any = model
    if model is None:
        own, first_layer = _part(spec, rank), 0
    stage = EngineStage(own, first_layer=first_layer, num_layers=num_layers, is_last=is_last)
    if len(spec.layers) > 1:
        meet = f"file://{spec.rendezvous}"
        dist.init_process_group("gloo", init_method=meet, rank=rank, world_size=len(spec.layers))
    gc.collect()
    gc.freeze()  # as the engine does: collections stay short
    hidden_size = int(own.config.hidden_size)
    if rank > 0:
        _follow(stage, rank, links[0], hidden_size, DTYPES[spec.precision])
    else:
        _Leader(stage, links[1:]).serve(links[0])


def _part(spec: ChainSpec, rank: int) -> Any:
    """A stage's layers, and the embedding or the head at the ends."""
    config = with_layers(config_from(spec.config_json), spec.layers[rank])
    part = build_for_engine(config, spec.devices[rank], DTYPES[spec.precision])
    if rank > 0:
        part.set_input_embeddings(torch.nn.Identity())
    if rank < len(spec.layers) - 1:
        part.set_output_embeddings(torch.nn.Identity())
    return part


@dataclass(frozen=True, slots=True)
class _Timed:
    ms: float
    away_ms: float
    """Of these, those in which another program had this one's core."""

    @property
    def disturbed(self) -> bool:
        return self.away_ms > _AWAY_SHARE * self.ms


class _Leader:
    def __init__(self, stage: EngineStage, followers: list[Any]) -> None:
        self._stage, self._followers = stage, followers

    def serve(self, parent: Any) -> None:
        parent.send([])
        while True:
            run: Run = parent.recv()
            parent.send(self._decode(run) if run.num_steps else self._prefill(run))

    def _prefill(self, run: Run) -> list[float]:
        steps = prompt_passes(run.batch, run.input_tokens, run.context_tokens)
        taken: list[_Timed] = []
        while len(taken) < _TRIES and (not taken or taken[-1].disturbed):
            taken.append(self._timed(steps))
        return [min(taken, key=lambda each: each.away_ms).ms]

    def _decode(self, run: Run) -> list[float]:
        """Each step but the first, which finds the processor's caches full of something else."""
        cached = range(run.input_tokens, run.input_tokens + run.num_steps)
        taken = [self._timed((decode_pass(run.batch, at, run.context_tokens),)) for at in cached][1:]
        quiet = [each.ms for each in taken if not each.disturbed]
        return quiet if len(quiet) > 1 else [each.ms for each in taken]

    def _timed(self, steps: Sequence[Pass]) -> "_Timed":
        begun, computed = time.perf_counter(), time.thread_time()
        for step in steps:
            self._through(step)
        taken_ms = (time.perf_counter() - begun) * 1e3
        waits = bool(self._followers) or self._stage.device.type != "cpu"  # for others, as it should
        return _Timed(taken_ms, 0.0 if waits else taken_ms - (time.thread_time() - computed) * 1e3)

    def _through(self, step: Pass) -> None:
        """All stages; ends when the chosen tokens are here."""
        for follower in self._followers:
            follower.send(step)
        output = self._stage.forward(step, None)
        if self._followers:
            sent = _send(output, 1)
            self._followers[-1].recv()
            sent[0].wait()
        else:
            chosen(output, step)


def _follow(stage: EngineStage, rank: int, leader: Any, hidden_size: int, dtype: torch.dtype) -> None:
    unsent: tuple[Any, torch.Tensor] | None = None
    while True:
        step: Pass = leader.recv()
        hidden = torch.empty(len(step.token_ids), len(step.token_ids[0]), hidden_size, dtype=dtype)
        dist.recv(hidden, rank - 1)
        output = stage.forward(step, hidden.to(stage.device))
        if stage.is_last:
            leader.send(chosen(output, step))
            continue
        if unsent is not None:
            unsent[0].wait()
        unsent = _send(output, rank + 1)


def _send(output: torch.Tensor, to: int) -> tuple[Any, torch.Tensor]:
    payload = output.cpu() if output.is_cuda else output.contiguous()
    return dist.isend(payload, to), payload


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
