"""Runs one item of a calibration's programme with the torch engine's double, and times it.

All splits stand side by side and take turns within a round, so that a machine that grows slower for a while slows all
of them alike.
"""

import json
import tempfile
from collections import defaultdict
from functools import partial
from pathlib import Path
from statistics import median

import torch
from transformers import AutoConfig

from maveriq.contracts import ModelFacts, RunSample
from maveriq_profiler.cutting import build, config_from, with_layers
from maveriq_profiler.engine_stage import PREFILL_TOKENS, EngineStage, Pass, chosen
from maveriq_profiler.facts import facts_of
from maveriq_profiler.grid import Point
from maveriq_profiler.orders import ItemOrder
from maveriq_profiler.peak import peak_bytes, runtime_bytes
from maveriq_profiler.programme import Item
from maveriq_profiler.stage_chain import DTYPES, Chain, ChainSpec, Run

_Key = tuple[tuple[int, ...], Point]


def measure_item(order: ItemOrder) -> tuple[RunSample, ...]:
    """All samples of an item.

    Raises:
        Unreadable, ChainFailed, RuntimeError (out of memory among them).
    """
    torch.set_num_threads(1)  # a pool of threads does not survive the fork
    item = order.item
    on_cpu = order.device == "cpu"
    config = config_from(_whole(item.config_json))
    facts = facts_of(config)
    model = build(config, "cpu", DTYPES[item.precision]) if on_cpu else None
    chains: dict[tuple[int, ...], Chain] = {}
    with tempfile.TemporaryDirectory() as folder:
        try:
            for number, split in enumerate(item.splits):
                chains[split] = Chain(_spec(order, split, Path(folder) / str(number)), model)
            prefill, decode = _rounds(chains, item)
        finally:
            for chain in chains.values():
                chain.stop()
    peaks, runtime = _peaks(item, order.device)
    return tuple(_sample(item, facts, key, prefill[key], decode[key], peaks[key[1]], runtime) for key in decode)


def _rounds(
    chains: dict[tuple[int, ...], Chain], item: Item
) -> tuple[dict[_Key, list[float]], dict[_Key, list[float]]]:
    prefill: dict[_Key, list[float]] = defaultdict(list)
    decode: dict[_Key, list[float]] = defaultdict(list)
    for number in range(-1, item.rounds):
        for point in item.points:
            for split, chain in chains.items():
                read = chain.times_ms(Run(point.batch, point.input_tokens, 0))
                # the first step finds the processor's caches full of something else
                steps = chain.times_ms(Run(point.batch, point.input_tokens, item.output_tokens if number >= 0 else 1))
                if number >= 0:
                    prefill[split, point] += read
                    decode[split, point] += steps[1:]
    return prefill, decode


def _spec(order: ItemOrder, split: tuple[int, ...], rendezvous: Path) -> ChainSpec:
    item = order.item
    return ChainSpec(
        config_json=_whole(item.config_json),
        precision=item.precision,
        layers=split,
        devices=(order.device,) * len(split),
        threads=order.threads,
        max_batch=max(point.batch for point in item.points),
        context_tokens=max(point.input_tokens for point in item.points) + item.output_tokens,
        rendezvous=rendezvous,
    )


def _whole(config_json: str) -> str:
    """With all that transformers adds to what the programme says."""
    text: str = AutoConfig.for_model(**json.loads(config_json)).to_json_string(use_diff=False)
    return text


def _peaks(item: Item, device_name: str) -> tuple[dict[Point, int], int]:
    """Bytes above weights and cache at each point, and what the process takes of the device before any tensor.

    A layer's activations are gone when the next one runs, so that two layers tell.
    """
    device = torch.device(device_name)
    runtime = runtime_bytes(device)
    model = build(with_layers(config_from(_whole(item.config_json)), 2), device_name, DTYPES[item.precision])
    longest = max(point.input_tokens for point in item.points) + 1
    batch = max(point.batch for point in item.points)
    stage = EngineStage(model, first_layer=0, num_layers=2, is_last=True, max_batch=batch, context_tokens=longest)
    found: dict[Point, int] = {}
    for point in item.points:
        for tokens, start in ((min(point.input_tokens, PREFILL_TOKENS), 0), (1, point.input_tokens)):
            rows = min(point.batch, max(1, PREFILL_TOKENS // tokens))
            picks = tuple((row, row, tokens - 1) for row in range(rows))
            step = Pass(((7,) * tokens,) * rows, (start,) * rows, picks)
            run = partial(_pass, stage, step)
            run()  # its cache is there from now on
            found[point] = max(peak_bytes(run, device), found.get(point, 0))
    return found, runtime


def _pass(stage: EngineStage, step: Pass) -> None:
    chosen(stage.forward(step, None), step)


def _sample(
    item: Item, facts: ModelFacts, key: _Key, prefill: list[float], decode: list[float], activation: int | None,
    runtime: int,
) -> RunSample:  # fmt: skip
    split, point = key
    return RunSample(
        facts=facts,
        precision=item.precision,
        kv_precision=item.precision,
        layers=split,
        batch=point.batch,
        input_tokens=point.input_tokens,
        output_tokens=item.output_tokens,
        prefill_ms=median(prefill),
        decode_ms=median(decode),
        activation_bytes=activation if len(split) == 1 else None,
        runtime_bytes=runtime if len(split) == 1 else None,
    )
