"""Which runs calibrate a GPU type, and in which order. Pure: a device's limits in, ordered items out.

Weights are random: a model of the same shape costs the same. The first two items give a calibration that can be used,
those that follow sharpen it, and at last all are run once more, at another time than the first. Of a quantised
precision there are few: embedding, lm_head, cache and hops are those of the full precision that it is computed in.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import zip_longest
from math import ceil

from pydantic import Field

from maveriq.agreed_settings import EngineName
from maveriq.contracts import BYTES_PER_ELEMENT, Precision, Value
from maveriq_profiler.formats import Format
from maveriq_profiler.grid import Point
from maveriq_profiler.shapes import LARGE, SMALL, Shape

_FIRST = 2  # models of each precision, before any precision has more
_PASSES = 2
_FEW = 3  # models of a quantised precision
# At most 512 tokens are one pass. 3 rows: MKL changes kernels from 3 to 4, and what is between two batches is a line.
_CPU_POINTS = ((1, 32), (8, 32), (1, 128), (1, 512), (2, 32), (4, 32), (3, 32), (6, 32))
_GPU_POINTS = ((1, 128), (8, 64), (1, 512), (1, 2048), (2, 128), (4, 128), (16, 32), (32, 16))
_NUM_IN_STAGES = 2  # of the points, the first ones: what a hop costs, short and long
_DIVISIONS = ((1, 1), (2, 1), (1, 2), (4, 1), (2, 2), (8, 1), (4, 2))  # TP and PP on TensorRT-LLM
_LEAST_BYTES = 80 * 2**20
_NARROWEST_BYTES = 2
_GIB = 2**30


class Item(Value):
    """One synthetic model, and the runs of it."""

    key: str = Field(description="Names all that its samples depend on, save engine version and GPU type.")
    engine: EngineName
    config_json: str
    precision: Precision
    kv_precision: Precision | None = Field(default=None, description="None: as the weights.")
    tp: int = Field(default=1, gt=0)
    splits: tuple[tuple[int, ...], ...] = Field(min_length=1, description="Layers of each stage, of each run.")
    points: tuple[Point, ...] = Field(min_length=1)
    num_in_stages: int = Field(ge=0, description="So many of the points, from the first, run in several stages too.")
    output_tokens: int = Field(gt=1, description="Decode steps of a run.")
    rounds: int = Field(gt=0, description="How often each run is repeated; they take turns.")
    bytes_needed: int = Field(gt=0, description="To be free on each of `num_gpus` GPUs while it runs.")
    expected_s: float = Field(gt=0)

    @property
    def format(self) -> Format:
        return Format(self.precision, self.kv_precision or self.precision)

    @property
    def num_gpus(self) -> int:
        """The torch engine's stages share one; TensorRT-LLM has a GPU for each rank."""
        return self.tp * max(len(split) for split in self.splits) if self.engine == "trtllm" else 1

    def points_of(self, split: Sequence[int]) -> tuple[Point, ...]:
        return self.points if len(split) == 1 else self.points[: self.num_in_stages]


def programme(
    *, engine: EngineName, on_cpu: bool, free_bytes: int, precisions: Sequence[Precision], max_pp: int,
    budget_s: float, num_gpus: int = 1, quantised: Sequence[Precision] = (),
) -> tuple[Item, ...]:  # fmt: skip
    """Most telling first; empty where not even the smallest model fits.

    Args:
        free_bytes: of each GPU.
        precisions: full ones to be calibrated, the most wanted first.
        max_pp: most stages that the engine can run.
        budget_s: no item is planned beyond it, but for the first two.
        quantised: what the torch engine makes of the layers of a model in the first of `precisions`.
    """

    def fitting(items: Iterable[Item]) -> list[Item]:
        return [item for item in items if item.bytes_needed <= free_bytes and item.num_gpus <= num_gpus]

    def of(items: Callable[[Sequence[Shape]], Iterable[Item]]) -> list[Item]:
        large = [] if on_cpu else fitting(items(LARGE))
        return large if len(large) >= _FIRST else fitting(items(SMALL))

    of_precisions = [of(partial(_items, engine, precision=p, on_cpu=on_cpu, max_pp=max_pp)) for p in precisions]
    first = [item for items in of_precisions for item in items[:_FIRST]]
    few = [of(partial(_quantised, Format(p, precisions[0]), on_cpu=on_cpu))[:_FEW] for p in quantised]
    rest = [item for row in zip_longest(*(items[_FIRST:] for items in of_precisions)) for item in row if item]
    once = first + rest
    again = [item.model_copy(update={"key": f"{item.key}|{n}"}) for n in range(2, _PASSES + 1) for item in once]
    return _affordable((*first, *(item for items in few for item in items), *rest, *again), budget_s)


def _items(
    engine: EngineName, family: Sequence[Shape], *, precision: Precision, on_cpu: bool, max_pp: int
) -> Iterable[Item]:
    """TensorRT-LLM starts anew for each division of a model; the torch engine's stand side by side."""
    whole = Format(precision, precision)
    if engine == "torch":
        for shape in family:
            splits = [split for split in (*_depths(shape), *_divided(shape)) if len(split) <= max_pp]
            yield _item(engine, shape, whole, splits, on_cpu=on_cpu)
        return
    for tp, pp in _DIVISIONS:
        for shape in family:
            if shape.kv_heads % tp == 0 and pp <= max_pp:
                yield _item(engine, shape, whole, _depths(shape) if pp == 1 else _divided(shape)[:1], tp=tp)


def _quantised(wanted: Format, family: Sequence[Shape], *, on_cpu: bool) -> Iterable[Item]:
    for shape in family:
        yield _item("torch", shape, wanted, ((shape.layers,),), on_cpu=on_cpu)


def _item(
    engine: EngineName, shape: Shape, wanted: Format, splits: Sequence[tuple[int, ...]], *, tp: int = 1,
    on_cpu: bool = False,
) -> Item:  # fmt: skip
    points = tuple(Point(batch=b, input_tokens=n) for b, n in (_CPU_POINTS if on_cpu else _GPU_POINTS))
    division = "" if engine == "torch" else f"|tp{tp}.pp{len(splits[0])}"
    item = Item(
        key=f"{engine}|{shape.name}|{wanted.precision}{division}",
        engine=engine,
        config_json=json.dumps(shape.config),
        precision=wanted.precision,
        kv_precision=None if wanted.precision is wanted.kv_precision else wanted.kv_precision,
        tp=tp,
        splits=tuple(splits),
        points=points,
        num_in_stages=_NUM_IN_STAGES if engine == "torch" else len(points),
        output_tokens=7 if on_cpu else 32,
        rounds=3,
        bytes_needed=1,
        expected_s=1,
    )
    needed = _bytes_needed(item, shape, on_cpu=on_cpu)
    return item.model_copy(update={"bytes_needed": needed, "expected_s": _expected_s(item, shape, on_cpu=on_cpu)})


def _depths(shape: Shape) -> tuple[tuple[int, ...], ...]:
    """Whole and cut, which tells the layers from the ends; not cut so short that a processor's cache holds it."""
    enough = ceil((_LEAST_BYTES / _NARROWEST_BYTES - shape.end_params) / shape.layer_params)
    return (shape.layers,), (min(shape.layers, max(1, shape.layers // 4, enough)),)


def _divided(shape: Shape) -> tuple[tuple[int, ...], ...]:
    """Into two stages and three; uneven, so that what the fullest saves or costs is seen."""
    few = shape.layers // 4
    return (shape.layers - few, few), (shape.layers - 2 * few, few, few)


def _bytes_needed(item: Item, shape: Shape, *, on_cpu: bool) -> int:
    """All splits stand side by side: on a CPU they share the weights, elsewhere each has its own and a runtime."""
    element = BYTES_PER_ELEMENT[item.format.computed_in]  # quantised weights are whole at first
    num_stages = sum(len(split) for split in item.splits)
    tokens = sum(
        p.batch * (p.input_tokens + item.output_tokens) for split in item.splits for p in item.points_of(split)
    )
    cache = tokens * shape.layers * 2 * shape.kv_heads * shape.head_dim * element
    activations = 512 * (4 * shape.ffn + 8 * shape.hidden) * 4 + 32 * shape.vocab * 4
    layers, ends = shape.layer_params * element, 2 * shape.end_params * element
    all_layers = sum(sum(split) for split in item.splits) * layers
    if on_cpu:
        return int(shape.layers * layers + ends + cache + activations * num_stages)
    if item.engine == "trtllm":
        return int(1.2 * (shape.layers * layers / item.num_gpus + ends + cache) + 4 * activations + 4 * _GIB)
    return int(all_layers + num_stages * ends + cache + (activations + 0.75 * _GIB) * num_stages)


def _expected_s(item: Item, shape: Shape, *, on_cpu: bool) -> float:
    """From a slow device of the kind: one core with 8 GB/s and 60 GFLOP/s, a GPU with 0.3 TB/s."""
    setup_s, bytes_per_s, flops_per_s, least_s = (10.0, 8e9, 6e10, 1e-3) if on_cpu else (30.0, 3e11, 5e13, 5e-4)
    total_s = 0.0
    for split in item.splits:
        params = sum(split) * shape.layer_params + shape.end_params
        pass_s = max(params * BYTES_PER_ELEMENT[item.format.computed_in] / bytes_per_s, sum(split) * least_s)
        for point in item.points_of(split):
            compute_s = 2 * point.batch * params / flops_per_s
            total_s += item.output_tokens * (pass_s + compute_s) + pass_s + point.input_tokens * compute_s
    return round((setup_s if item.engine == "torch" else 60.0 * len(item.splits)) + item.rounds * total_s, 1)


def _affordable(items: Iterable[Item], budget_s: float) -> tuple[Item, ...]:
    planned: list[Item] = []
    spent_s = 0.0
    for item in items:
        if len(planned) < _FIRST or spent_s + item.expected_s <= budget_s:
            planned.append(item)
            spent_s += item.expected_s
    return tuple(planned)
