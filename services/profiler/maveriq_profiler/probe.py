"""Runs a model cut to a few layers with random weights, and times it. The torch engine's fingerprint.

The cuts take turns within a round, so that a machine that grows slower for a while slows all of them alike.
"""

import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial

import torch

from maveriq.contracts import Precision, Sample
from maveriq.torch_layers import keep_freed_memory
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
from maveriq_profiler.grid import Grid, Point
from maveriq_profiler.neighbours import neighbours_of
from maveriq_profiler.orders import ProbeOrder
from maveriq_profiler.peak import peak_bytes, runtime_bytes
from maveriq_profiler.quiet import Quiet
from maveriq_profiler.readings import Readings, Timed, counted, timed

_PREFILL_ROUNDS = 3  # a prefill is long enough to be timed well by few repeats


class Cut:
    """The deepest cut model; fewer layers are run by hiding the others."""

    def __init__(self, config_json: str, num_layers: int, device: torch.device, wanted: Format) -> None:
        model = build_for_engine(with_layers(config_from(config_json), num_layers), str(device), wanted)
        self.device = device
        self.computes_alone = device.type == "cpu" and torch.get_num_threads() == 1
        int8_cache = wanted.kv_precision is Precision.INT8
        self._stage = EngineStage(
            model, first_layer=0, num_layers=num_layers, is_first=True, is_last=True, int8_cache=int8_cache
        )

    def use(self, num_layers: int) -> None:
        self._stage.use(0, num_layers)

    def timed(self, *steps: Pass) -> Timed:
        return timed(self._run, steps, alone=self.computes_alone)

    def _run(self, step: Pass) -> None:
        """Ends when the chosen tokens are known here."""
        chosen(self._stage.forward(step, None), step)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def measure(order: ProbeOrder, report: Callable[[Sample], None]) -> tuple[Sample, ...]:
    """All samples of an order.

    Args:
        report: told each sample once it is final.

    Raises:
        Unreadable, RuntimeError (out of memory among them).
    """
    torch.set_num_threads(order.threads)
    keep_freed_memory()  # as the engine does
    device = torch.device(order.device)
    runtime = runtime_bytes(device)
    cut = Cut(order.config_json, order.grid.layers[-1], device, Format(order.precision, order.kv_precision))
    peaks = {point: _peak(cut, order.grid, point) for point in order.grid.points}
    readings = _rounds(cut, order.grid, Quiet(neighbours_of(order.device), order.grid.budget_s))
    samples: list[Sample] = []
    for (num_layers, point), taken in readings.items():
        samples.append(
            Sample(
                num_layers=num_layers,
                batch=point.batch,
                input_tokens=point.input_tokens,
                output_tokens=order.grid.output_tokens,
                activation_bytes=peaks[point],
                runtime_bytes=runtime,
                **taken.figures,
            )
        )
        report(samples[-1])
    return tuple(samples)


def _rounds(cut: Cut, grid: Grid, quiet: Quiet) -> dict[tuple[int, Point], Readings]:
    readings: dict[tuple[int, Point], Readings] = defaultdict(Readings)
    begun = time.perf_counter()
    number = 0
    while number < grid.min_rounds or time.perf_counter() - begun < grid.budget_s:
        for num_layers in grid.layers:
            cut.use(num_layers)
            for point in grid.points:
                prompts: list[float] = []
                steps: list[float] = []
                while quiet.reads():
                    if number < _PREFILL_ROUNDS:
                        prompts = counted([_prefill(cut, point, grid.output_tokens)], enough=1)
                    steps = counted(_decode(cut, point, grid.output_tokens, grid.output_tokens), enough=2)
                readings[num_layers, point].add(prompts, steps, quiet.others)
        number += 1
    return readings


def _prefill(cut: Cut, point: Point, output_tokens: int) -> Timed:
    return cut.timed(*prompt_passes(point.batch, point.input_tokens, point.input_tokens + output_tokens))


def _decode(cut: Cut, point: Point, num_steps: int, output_tokens: int) -> list[Timed]:
    """Each step of a run but its first, which finds the processor's caches full of something else."""
    context = point.input_tokens + output_tokens
    cached = range(point.input_tokens, point.input_tokens + num_steps)
    return [cut.timed(decode_pass(point.batch, at, context)) for at in cached][1:]


def _peak(cut: Cut, grid: Grid, point: Point) -> int:
    """Of reading the prompts and of one step; the cache is there before, and this warms the shape up."""
    cut.use(grid.layers[-1])
    _decode(cut, point, 2, grid.output_tokens)
    cut.use(grid.layers[0])
    reading = peak_bytes(partial(_prefill, cut, point, grid.output_tokens), cut.device)
    return max(reading, peak_bytes(partial(_decode, cut, point, 1, grid.output_tokens), cut.device))
