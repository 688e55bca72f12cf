"""Runs a model cut to a few layers with random weights, and times it. The torch engine's fingerprint.

The cuts take turns within a round, so that a machine that grows slower for a while slows all of them alike.
"""

import inspect
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from maveriq.contracts import Precision, Sample
from maveriq_profiler.cutting import build, config_from, find_layers, with_layers
from maveriq_profiler.grid import Grid, Point
from maveriq_profiler.kv_cache import Rooms
from maveriq_profiler.orders import ProbeOrder
from maveriq_profiler.peak import peak_bytes, runtime_bytes

DTYPES = {Precision.FP32: torch.float32, Precision.BF16: torch.bfloat16, Precision.FP16: torch.float16}
_PREFILL_ROUNDS = 3  # a prefill is long enough to be timed well by few repeats
_FIXED_TOKEN = 7  # which token is read makes no difference to random weights


class Cut:
    """The deepest cut model; fewer layers are run by hiding the others."""

    def __init__(self, config_json: str, num_layers: int, device: torch.device, dtype: torch.dtype) -> None:
        self.config = with_layers(config_from(config_json), num_layers)
        self.model = build(self.config, str(device), dtype)
        self.device = device
        self._layers = find_layers(self.model, num_layers)
        self._all = self._layers.all
        keep = inspect.signature(self.model.forward).parameters
        self._last_only: dict[str, int] = {"logits_to_keep": 1} if "logits_to_keep" in keep else {}

    def use(self, num_layers: int) -> None:
        setattr(self._layers.parent, self._layers.name, torch.nn.ModuleList(list(self._all)[:num_layers]))
        self.model.config.num_hidden_layers = num_layers

    def step(self, tokens: torch.Tensor, cache: Any) -> torch.Tensor:
        """[batch, new tokens] -> [batch, 1]: one forward pass and a greedy choice, as an engine's step."""
        logits: torch.Tensor = self.model(
            input_ids=tokens, past_key_values=cache, use_cache=True, **self._last_only
        ).logits
        return logits[:, -1].argmax(dim=-1, keepdim=True)

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


@dataclass(frozen=True, slots=True)
class Readings:
    prefill_ms: list[float]
    decode_ms: list[float]


def measure(order: ProbeOrder, report: Callable[[Sample], None]) -> tuple[Sample, ...]:
    """All samples of an order.

    Args:
        report: told each sample once it is final.

    Raises:
        Unreadable, RuntimeError (out of memory among them).
    """
    torch.set_num_threads(order.threads)
    device = torch.device(order.device)
    runtime = runtime_bytes(device)
    cut = Cut(order.config_json, order.grid.layers[-1], device, DTYPES[order.precision])
    with torch.inference_mode():
        rooms = {point: _rooms(order.grid, point) for point in order.grid.points}
        peaks = {point: _peak(cut, rooms[point], order.grid, point) for point in order.grid.points}
        readings = _rounds(cut, rooms, order.grid)
    samples: list[Sample] = []
    for (num_layers, point), taken in readings.items():
        samples.append(_sample(num_layers, point, order.grid.output_tokens, taken, peaks[point], runtime))
        report(samples[-1])
    return tuple(samples)


def _rounds(cut: Cut, rooms: dict[Point, Rooms], grid: Grid) -> dict[tuple[int, Point], Readings]:
    readings: dict[tuple[int, Point], Readings] = defaultdict(lambda: Readings([], []))
    begun = time.perf_counter()
    number = 0
    while number < grid.min_rounds or time.perf_counter() - begun < grid.budget_s:
        for num_layers in grid.layers:
            cut.use(num_layers)
            for point in grid.points:
                taken = readings[num_layers, point]
                if number < _PREFILL_ROUNDS:
                    taken.prefill_ms.append(_prefill_ms(cut, rooms[point], num_layers, point))
                taken.decode_ms.extend(_decode_ms(cut, rooms[point], num_layers, point, grid.output_tokens))
        number += 1
    return readings


def _prefill_ms(cut: Cut, rooms: Rooms, num_layers: int, point: Point) -> float:
    prompt = torch.full((point.batch, point.input_tokens), _FIXED_TOKEN, device=cut.device)
    cache = rooms.cache(num_layers, 0)
    cut.synchronize()
    begun = time.perf_counter()
    cut.step(prompt, cache)
    cut.synchronize()
    return (time.perf_counter() - begun) * 1e3


def _decode_ms(cut: Cut, rooms: Rooms, num_layers: int, point: Point, num_steps: int) -> list[float]:
    """Each step of a run but its first, which finds the processor's caches full of something else."""
    token = torch.full((point.batch, 1), _FIXED_TOKEN, device=cut.device)
    cache = rooms.cache(num_layers, point.input_tokens)
    taken: list[float] = []
    for _ in range(num_steps):
        cut.synchronize()
        begun = time.perf_counter()
        token = cut.step(token, cache)
        cut.synchronize()
        taken.append((time.perf_counter() - begun) * 1e3)
    return taken[1:]


def _peak(cut: Cut, rooms: Rooms, grid: Grid, point: Point) -> int:
    """Of reading the prompts and of one step; the cache is there before, and this warms the shape up."""
    num_layers = grid.layers[0]
    cut.use(grid.layers[-1])
    _decode_ms(cut, rooms, grid.layers[-1], point, 2)
    cut.use(num_layers)
    reading = peak_bytes(lambda: _prefill_ms(cut, rooms, num_layers, point), cut.device)
    return max(reading, peak_bytes(lambda: _decode_ms(cut, rooms, num_layers, point, 1), cut.device))


def _rooms(grid: Grid, point: Point) -> Rooms:
    return Rooms(grid.layers[-1], point.input_tokens + grid.output_tokens)


def _sample(num_layers: int, point: Point, output_tokens: int, taken: Readings, peak: int, runtime: int) -> Sample:
    return Sample(
        num_layers=num_layers,
        batch=point.batch,
        input_tokens=point.input_tokens,
        output_tokens=output_tokens,
        prefill_ms=median(taken.prefill_ms),
        decode_ms=median(taken.decode_ms),
        activation_bytes=peak,
        runtime_bytes=runtime,
    )
