"""Reads LLM-PQ-style tables: what layers cost on each GPU type, as numbers. Pure: parsed JSON in, pipelines out.

One cost in three forms (`contracts.quantizing.CostForm`). THEIRS is what LLM-PQ minimises, to the last digit: embedding
and lm_head count once for every layer of the first GPU, and the first of the decode's micro-batches counts for one
token only. ONCE counts the ends once. FULL counts every step of every micro-batch too, and lm_head on the last GPU.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from math import ceil, inf
from typing import TypeVar

import numpy as np

from maveriq.contracts.quantizing import CostForm as Form
from maveriq_planner.quantizing.fields import Fields, TablesError
from maveriq_planner.quantizing.pipeline import Array, Pipeline, Stage, Weights

_MB = 2**20
Of = TypeVar("Of")


@dataclass(frozen=True, slots=True)
class Reading:
    """How a table is meant where layers are grouped; the files do not say."""

    times_per_layer: bool = True
    """Times are of one layer, and a group takes as many times that."""
    bytes_per_layer: bool = True
    mean_sensitivity: bool = True
    """A group is as sensitive as its layers on average, as LLM-PQ has it; else as all of them."""


@dataclass(frozen=True, slots=True)
class Tables:
    num_layers: int
    """Groups of layers that are placed as one."""
    group: int
    precisions: tuple[str, ...]
    gpu_types: tuple[str, ...]
    numbers: tuple[int, ...]
    theta: float
    num_requests: int
    num_steps: int
    """Tokens that a request is expected to be answered with."""
    hidden_bytes: int
    """Of one token between two stages."""
    prompt_tokens: int
    sensitivity: Array  # [L, B]
    layer_bytes: tuple[float, ...]
    capacity_bytes: Mapping[str, float]
    ends_bytes: float
    step_bytes: float
    """Working memory of a step."""
    prompt_bytes: Mapping[int, float]
    """Working memory of a micro-batch of prompts, by its size."""
    prefill_ms: Mapping[str, Mapping[int, tuple[float, ...]]]
    decode_ms: Mapping[str, Mapping[int, tuple[float, ...]]]
    """By micro-batch; -1: the one size that the table is of."""
    prefill_ends_ms: Mapping[str, Mapping[int, float]]
    decode_ends_ms: Mapping[str, Mapping[int, float]]
    hop: Mapping[str, tuple[float, float]]
    """Milliseconds per MB and to begin with, between GPUs of the "same" type and "cross"."""

    @property
    def num_gpus(self) -> int:
        return sum(self.numbers)


def read_tables(given: object, reading: Reading = Reading()) -> Tables:
    """Raises TablesError: names the field and what is wrong with it."""
    fields = Fields.of(given)
    if "input" in fields.values:  # a case file: the tables, and what others made of them
        fields = fields.inside("input")
    precisions = tuple(str(label) for label in fields.items("bits"))
    group = fields.whole("group", least=1, default=1)
    num_layers = fields.whole("L", least=1)
    if num_layers % group:
        raise TablesError("group", f"{group} does not divide the {num_layers} layers of L")
    gpu_types = tuple(str(name) for name in fields.items("devices"))
    numbers = tuple(int(each) for each in fields.numbers("numbers", len(gpu_types)))
    if min(numbers) < 1:
        raise TablesError("numbers", f"{list(numbers)} must be at least 1 each: leave a type out of devices instead")
    width = len(precisions)
    times = float(group) if reading.times_per_layer else 1.0
    prefill, decode, ends = fields.inside("prefill_ms"), fields.inside("decode_ms"), fields.inside("prepost_ms")
    kinds = ("same", "cross") if len(gpu_types) > 1 else ("same",)
    polynomials = fields.inside("comm_ms_per_MB_poly")
    return Tables(
        num_layers=num_layers // group, group=group, precisions=precisions, gpu_types=gpu_types, numbers=numbers,
        theta=fields.number("theta"),
        num_requests=fields.whole("global_bz", least=1),
        num_steps=max(1, int(fields.number("gamma", default=1.0) * fields.whole("n", least=1))),
        hidden_bytes=2 * fields.whole("h1", least=1),
        prompt_tokens=fields.whole("s", least=1),
        sensitivity=_sensitivity(fields, num_layers, group, width, reading),
        layer_bytes=_layer_bytes(fields, group if reading.bytes_per_layer else 1, width),
        capacity_bytes={name: fields.inside("dev_mem_MB").number(name) * _MB for name in gpu_types},
        ends_bytes=fields.number("prepost_mem_MB") * _MB,
        step_bytes=fields.number("temp_next_MB") * _MB,
        prompt_bytes={b: mb * _MB for b, mb in fields.inside("temp_by_prefill_bz").by_batch()},
        prefill_ms={name: _times(prefill.rows_by_batch_of(name, width), times) for name in gpu_types},
        decode_ms={name: _times(decode.rows_by_batch_of(name, width), times) for name in gpu_types},
        prefill_ends_ms={name: dict(ends.inside(name).by_batch_of("prefill")) for name in gpu_types},
        decode_ends_ms={name: dict(ends.inside(name).by_batch_of("decode")) for name in gpu_types},
        hop={kind: (polynomials.numbers(kind, 2)[0], polynomials.numbers(kind, 2)[1]) for kind in kinds},
    )  # fmt: skip


def orders(tables: Tables) -> list[tuple[str, ...]]:
    """GPUs of a type next to each other, the types in every order."""
    blocks = [(name,) * number for name, number in zip(tables.gpu_types, tables.numbers, strict=True)]
    found = (tuple(name for block in order for name in block) for order in permutations(blocks))
    return list(dict.fromkeys(found))


def pipelines(tables: Tables, form: Form) -> list[Pipeline]:
    """Of every order and every micro-batch that the tables have."""
    found = [
        pipeline_of(tables, form, order, prefill, decode)
        for order in orders(tables)
        for prefill in _prefill_batches(tables)
        for decode in _decode_batches(tables)
    ]
    if not found:
        problem = "no micro-batch of up to global_bz is in prefill_ms, prepost_ms and temp_by_prefill_bz alike"
        raise TablesError("prefill_ms", problem)
    return found


def pipeline_of(tables: Tables, form: Form, order: Sequence[str], prefill: int, decode: int) -> Pipeline:
    prompts, groups = ceil(tables.num_requests / prefill), ceil(tables.num_requests / decode)
    steps = tables.num_steps - 1
    if form is Form.FULL:
        weights = Weights(prefill_longest=prompts - 1, decode_longest=0.0, steps=steps, groups=groups,
                          theta=tables.theta)  # fmt: skip
    else:
        weights = Weights(prefill_longest=prompts - 1, decode_longest=(groups - 1) * steps, theta=tables.theta)
    stages = tuple(_stage(tables, form, order, place, prefill, decode) for place in range(len(order)))
    return Pipeline(stages, weights, tables.sensitivity, prefill, decode)


def _stage(tables: Tables, form: Form, order: Sequence[str], place: int, prefill: int, decode: int) -> Stage:
    gpu, count, last = order[place], len(order), len(order) - 1
    full = form is Form.FULL
    taken = max(tables.step_bytes, tables.prompt_bytes[prefill]) if place == 0 else tables.step_bytes
    held_ends = (0.5 * ((place == 0) + (place == last)) if full else float(place == 0)) * tables.ends_bytes
    of_prompt = tables.prefill_ends_ms[gpu][prefill]
    of_step = _at(tables.decode_ends_ms[gpu], decode, f"prepost_ms.{gpu}.decode")
    prefill_ms, decode_ms = tables.prefill_ms[gpu][prefill], _at(tables.decode_ms[gpu], decode, f"decode_ms.{gpu}")
    counted = place == last if full else place == 0 and count > 1
    if form is Form.THEIRS and counted:
        prompts = ceil(tables.num_requests / prefill)
        prefill_ms = tuple(ms + of_prompt * prompts for ms in prefill_ms)
        decode_ms = tuple(ms + of_step for ms in decode_ms)
        counted = False
    per_mb, begin = tables.hop["same" if order[(place + 1) % count] == gpu else "cross"]
    return Stage(
        gpu=gpu,
        capacity_bytes=tables.capacity_bytes[gpu] - taken - held_ends,
        layer_bytes=tables.layer_bytes,
        prefill_ms=prefill_ms,
        decode_ms=decode_ms,
        prefill_ends_ms=of_prompt if counted else 0.0,
        decode_ends_ms=of_step if counted else 0.0,
        prefill_hop_ms=per_mb * (tables.hidden_bytes * tables.prompt_tokens * prefill / _MB) + begin,
        decode_hop_ms=per_mb * (tables.hidden_bytes * decode / _MB) + begin,
    )


def _prefill_batches(tables: Tables) -> list[int]:
    common = set(tables.prompt_bytes)
    for name in tables.gpu_types:
        common &= set(tables.prefill_ms[name]) & set(tables.prefill_ends_ms[name])
    return sorted(batch for batch in common if batch <= tables.num_requests)


def _decode_batches(tables: Tables) -> Iterator[int]:
    """A table without sizes is of as many requests as each stage has one micro-batch of, which is LLM-PQ's."""
    sizes = set(tables.decode_ms[tables.gpu_types[0]])
    for name in tables.gpu_types[1:]:
        sizes &= set(tables.decode_ms[name])
    if -1 in sizes or not sizes:
        yield ceil(tables.num_requests / tables.num_gpus)
    else:
        yield from sorted(size for size in sizes if size <= tables.num_requests)


def _at(by_batch: Mapping[int, Of], batch: int, field: str) -> Of:
    """Raises TablesError."""
    if batch not in by_batch and -1 not in by_batch:
        raise TablesError(field, f"has no micro-batch of {batch}")
    return by_batch[batch] if batch in by_batch else by_batch[-1]


def _sensitivity(fields: Fields, num_layers: int, group: int, width: int, reading: Reading) -> Array:
    rows = fields.matrix("omega", width)
    if len(rows) == num_layers and group > 1:
        summed: Array = rows.reshape(-1, group, width).sum(axis=1)
        return summed / group if reading.mean_sensitivity else summed
    if len(rows) * group != num_layers:
        raise TablesError("omega", f"has {len(rows)} rows: needs one a layer, {num_layers}, or a group, {group} each")
    return rows


def _layer_bytes(fields: Fields, layers: int, width: int) -> tuple[float, ...]:
    each_mb = fields.numbers("M_layer_MB", width)
    if min(each_mb) <= 0:
        raise TablesError("M_layer_MB", f"a layer of {min(each_mb):g} MB: must be above 0")
    return tuple(float(np.ceil(layers * mb)) * _MB for mb in each_mb)


def _times(rows: Iterable[tuple[int, Sequence[float]]], factor: float) -> dict[int, tuple[float, ...]]:
    """By batch. Infinity: not to be run."""
    return {batch: tuple(ms * factor if np.isfinite(ms) else inf for ms in row) for batch, row in rows}
