"""Runs one item of a calibration's programme with the torch engine's double, and times it.

All splits stand side by side and take turns within a round, so that a machine that grows slower for a while slows all
of them alike.
"""

import json
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from maveriq.contracts import ModelFacts, RunSample
from maveriq_profiler.cutting import config_from, with_layers
from maveriq_profiler.engine_stage import (
    EngineStage,
    Pass,
    build_for_engine,
    chosen,
    decode_pass,
    prompt_passes,
)
from maveriq_profiler.facts import facts_of
from maveriq_profiler.formats import Format
from maveriq_profiler.grid import Point
from maveriq_profiler.neighbours import neighbours_of
from maveriq_profiler.orders import ItemOrder
from maveriq_profiler.peak import peak_bytes, runtime_bytes
from maveriq_profiler.programme import Item
from maveriq_profiler.quiet import PATIENCE_SHARE, Quiet
from maveriq_profiler.readings import Readings
from maveriq_profiler.stage_chain import Chain, ChainSpec, Run

_CONFIGS: Any = AutoConfig  # transformers' types are partly unknown
_Key = tuple[tuple[int, ...], Point]


def measure_item(order: ItemOrder) -> tuple[RunSample, ...]:
    """All samples of an item.

    Raises:
        Unreadable, ChainFailed, RuntimeError (out of memory among them).
    """
    run = ItemRun(order)
    try:
        run.start()
        for _ in range(order.item.rounds):
            for turn in run.turns:
                run.read(turn)
    finally:
        run.stop()
    return run.samples()


class ItemRun:
    """An item whose splits are all started, and what was read of them."""

    def __init__(self, order: ItemOrder) -> None:
        torch.set_num_threads(1)  # a pool of threads does not survive the fork
        self._order, self._item = order, order.item
        self._config_json = _whole(order.item.config_json)
        self._chains: dict[tuple[int, ...], Chain] = {}
        self._model: Any | None = None
        self._readings: dict[_Key, Readings] = defaultdict(Readings)
        self._quiet = Quiet(neighbours_of(order.device), PATIENCE_SHARE * order.item.expected_s)

    def start(self) -> None:
        if self._order.device == "cpu" and self._model is None:
            self._model = build_for_engine(config_from(self._config_json), "cpu", self._item.format)
        with tempfile.TemporaryDirectory() as folder:
            for number, split in enumerate(self._item.splits):
                spec = _spec(self._order, self._config_json, split, Path(folder) / str(number))
                self._chains[split] = Chain(spec, self._model)
                for point in self._item.points_of(split):
                    self._chains[split].times_ms(self._run(point, 1))  # takes the cache

    @property
    def turns(self) -> list[_Key]:
        """The readings of a round."""
        return [
            (split, p) for p in self._item.points for split in self._item.splits if p in self._item.points_of(split)
        ]

    def read(self, turn: _Key) -> None:
        split, point = turn
        chain = self._chains[split]
        prefill: list[float] = []
        decode: list[float] = []
        while self._quiet.reads():
            prefill = chain.times_ms(self._run(point, 0))
            decode = chain.times_ms(self._run(point, self._item.output_tokens))
        self._readings[turn].add(prefill, decode, self._quiet.others)

    def stop(self) -> None:
        for chain in self._chains.values():
            chain.stop()
        self._chains = {}

    def samples(self) -> tuple[RunSample, ...]:
        """Medians; the activations are measured now."""
        item = self._item
        facts = facts_of(config_from(self._config_json))
        activations, runtime = peaks(self._config_json, item.format, item.points, self._order.device, self._model)
        return tuple(
            _sample(item, facts, key, taken, activations[key[1]], runtime) for key, taken in self._readings.items()
        )

    def _run(self, point: Point, num_steps: int) -> Run:
        return Run(point.batch, point.input_tokens, num_steps, point.input_tokens + self._item.output_tokens)


def _spec(order: ItemOrder, config_json: str, split: tuple[int, ...], rendezvous: Path) -> ChainSpec:
    item = order.item
    return ChainSpec(
        config_json=config_json,
        format=item.format,
        layers=split,
        devices=(order.device,) * len(split),
        threads=order.threads,
        rendezvous=rendezvous,
    )


def _whole(config_json: str) -> str:
    """With all that transformers adds to what the programme says."""
    text: str = _CONFIGS.for_model(**json.loads(config_json)).to_json_string(use_diff=False)
    return text


def peaks(
    config_json: str, wanted: Format, points: Sequence[Point], device_name: str, model: Any | None
) -> tuple[dict[Point, int], int]:
    """Bytes above weights and cache at each point, and what the process takes of the device before any tensor.

    A layer's activations are gone when the next one runs, so that two layers tell.

    Args:
        model: is cut to two layers; None: it is built.
    """
    device = torch.device(device_name)
    runtime = runtime_bytes(device)
    if model is None:
        model = build_for_engine(with_layers(config_from(config_json), 2), device_name, wanted)
    stage = EngineStage(model, first_layer=0, num_layers=2, is_first=True, is_last=True)
    found: dict[Point, int] = {}
    for point in points:
        context = point.input_tokens + 1
        for step in (
            prompt_passes(point.batch, point.input_tokens, context)[-1],
            decode_pass(point.batch, point.input_tokens, context),
        ):
            run = partial(_pass, stage, step)
            run()  # its cache is there from now on
            found[point] = max(peak_bytes(run, device), found.get(point, 0))
    return found, runtime


def _pass(stage: EngineStage, step: Pass) -> None:
    chosen(stage.forward(step, None), step)


def _sample(
    item: Item, facts: ModelFacts, key: _Key, taken: Readings, activation: int | None, runtime: int
) -> RunSample:
    split, point = key
    return RunSample(
        facts=facts,
        precision=item.precision,
        kv_precision=item.format.kv_precision,
        layers=split,
        batch=point.batch,
        input_tokens=point.input_tokens,
        output_tokens=item.output_tokens,
        activation_bytes=activation if len(split) == 1 else None,
        runtime_bytes=runtime if len(split) == 1 else None,
        **taken.figures,
    )
