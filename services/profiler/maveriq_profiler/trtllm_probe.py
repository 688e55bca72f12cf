"""Times cut models through TensorRT-LLM's LLM API (1.2), with dummy weights. The only import of tensorrt_llm."""

import asyncio
import os
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import torch

from maveriq.contracts import Precision, RunSample, Sample
from maveriq_profiler.cutting import build, config_from, with_layers
from maveriq_profiler.facts import facts_of
from maveriq_profiler.grid import Point
from maveriq_profiler.neighbours import Neighbours, Untold, neighbours_of
from maveriq_profiler.orders import ItemOrder, ProbeOrder
from maveriq_profiler.programme import Item
from maveriq_profiler.quiet import PATIENCE_SHARE, Quiet
from maveriq_profiler.readings import Figures, Readings

_DTYPES = {Precision.BF16: "bfloat16", Precision.FP16: "float16"}
_ROUNDS = 3
_TOKEN = 7


class NvmlMeter:
    """Bytes taken of the GPUs: TensorRT-LLM runs in processes of its own, whose allocators cannot be asked."""

    def __init__(self, device: str) -> None:
        self._nvml: Any = import_module("pynvml")
        self._nvml.nvmlInit()
        self._handles = [self._nvml.nvmlDeviceGetHandleByIndex(int(number)) for number in _ordinals(device)]

    def used_bytes(self) -> int:
        return sum(int(self._nvml.nvmlDeviceGetMemoryInfo(handle).used) for handle in self._handles)


def _ordinals(device: str) -> list[str]:
    """Of `cuda:0,cuda:1`: 0 and 1."""
    return [each.removeprefix("cuda:") for each in device.split(",")]


def _start(device: str) -> "TensorRt":
    meter = NvmlMeter(device)
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(_ordinals(device))  # before tensorrt_llm starts CUDA
    llm, api = import_module("tensorrt_llm"), import_module("tensorrt_llm.llmapi")
    return TensorRt(llm.LLM, llm.SamplingParams, api.KvCacheConfig, meter.used_bytes, neighbours_of(device))


def measure(order: ProbeOrder, report: Callable[[Sample], None]) -> tuple[Sample, ...]:
    """All samples of an order."""
    return asyncio.run(measure_with(_start(order.device), order, report))


def measure_item(order: ItemOrder) -> tuple[RunSample, ...]:
    """All samples of an item of a calibration's programme."""
    return asyncio.run(measure_item_with(_start(order.device), order.item))


@dataclass(frozen=True, slots=True)
class TensorRt:
    """The names of TensorRT-LLM that are used."""

    llm: Callable[..., Any]
    sampling_params: Callable[..., Any]
    kv_cache_config: Callable[..., Any]
    used_bytes: Callable[[], int]
    neighbours: Neighbours = field(default_factory=Untold)


@dataclass(frozen=True, slots=True)
class _Division:
    """How a model is spread over GPUs."""

    tp: int
    layers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Taken:
    """Of one point."""

    figures: Figures
    activation_bytes: int
    runtime_bytes: int


async def measure_with(trt: TensorRt, order: ProbeOrder, report: Callable[[Sample], None]) -> tuple[Sample, ...]:
    grid, config = order.grid, config_from(order.config_json)
    quiet = Quiet(trt.neighbours, grid.budget_s)
    samples: list[Sample] = []
    with tempfile.TemporaryDirectory() as folder:
        _save(config, folder)
        for num_layers in grid.layers:
            arguments = _arguments(
                config, order.precision, _Division(1, (num_layers,)), grid.points, grid.output_tokens
            )
            async for point, taken in _runs(trt, quiet, folder, arguments, config, grid.points, grid.output_tokens):
                samples.append(
                    Sample(
                        num_layers=num_layers,
                        batch=point.batch,
                        input_tokens=point.input_tokens,
                        output_tokens=grid.output_tokens,
                        activation_bytes=taken.activation_bytes,
                        runtime_bytes=taken.runtime_bytes,
                        **taken.figures,
                    )
                )
                report(samples[-1])
    return tuple(samples)


async def measure_item_with(trt: TensorRt, item: Item) -> tuple[RunSample, ...]:
    config = config_from(item.config_json)
    facts, quiet = facts_of(config), Quiet(trt.neighbours, PATIENCE_SHARE * item.expected_s)
    samples: list[RunSample] = []
    with tempfile.TemporaryDirectory() as folder:
        _save(config, folder)
        for split in item.splits:
            points = item.points_of(split)
            arguments = _arguments(config, item.precision, _Division(item.tp, split), points, item.output_tokens)
            async for point, taken in _runs(trt, quiet, folder, arguments, config, points, item.output_tokens):
                samples.append(
                    RunSample(
                        facts=facts,
                        precision=item.precision,
                        kv_precision=item.precision,
                        tp=item.tp,
                        layers=split,
                        batch=point.batch,
                        input_tokens=point.input_tokens,
                        output_tokens=item.output_tokens,
                        activation_bytes=taken.activation_bytes,
                        runtime_bytes=taken.runtime_bytes // (item.tp * len(split)),
                        **taken.figures,
                    )
                )
    return tuple(samples)


def _save(config: Any, folder: str) -> None:
    """A checkpoint without weights: they are dummies."""
    config.architectures = [type(build(with_layers(config, 1), "meta", torch.float32)).__name__]
    config.save_pretrained(folder)


def _arguments(
    config: Any, precision: Precision, division: _Division, points: Sequence[Point], output_tokens: int
) -> dict[str, Any]:
    """Of LLM, save the model's folder and the cache."""
    spread: dict[str, Any] = {}
    if division.tp > 1 or len(division.layers) > 1:
        num_gpus = division.tp * len(division.layers)
        spread = {
            "tensor_parallel_size": division.tp,
            "pipeline_parallel_size": len(division.layers),
            "gpus_per_node": num_gpus,
        }
    if len(division.layers) > 1:
        spread["pp_partition"] = list(division.layers)
    return spread | {
        "skip_tokenizer_init": True,
        "dtype": _DTYPES[precision],
        "load_format": "dummy",
        "model_kwargs": _cut_fields(config, sum(division.layers)),
        "max_batch_size": max(point.batch for point in points),
        "max_num_tokens": max(point.batch * point.input_tokens for point in points),
        "max_seq_len": max(point.input_tokens for point in points) + output_tokens,
    }


async def _runs(
    trt: TensorRt, quiet: Quiet, folder: str, arguments: dict[str, Any], config: Any, points: Sequence[Point],
    output_tokens: int,
) -> AsyncIterator[tuple[Point, _Taken]]:  # fmt: skip
    """One engine from its start to its end; each point in turn."""
    cache_tokens = max(p.batch * (p.input_tokens + output_tokens + 32) for p in points)  # blocks hold 32
    before = trt.used_bytes()
    cache = trt.kv_cache_config(enable_block_reuse=False, max_tokens=cache_tokens)
    llm = trt.llm(model=folder, kv_cache_config=cache, **arguments)
    try:
        num_layers = int(arguments["model_kwargs"]["num_hidden_layers"])
        tp = int(arguments.get("tensor_parallel_size", 1))
        known = _model_bytes(config, num_layers, cache_tokens, tp)
        runtime = max(0, trt.used_bytes() - before - known)
        for point in points:
            loaded = trt.used_bytes()
            await _batch_ms(trt, llm, point, output_tokens)  # the first of anything is slower
            readings = Readings()
            for _ in range(_ROUNDS):
                taken_ms = (0.0, 0.0)
                while quiet.reads():
                    taken_ms = await _batch_ms(trt, llm, point, output_tokens)
                readings.add(taken_ms[:1], taken_ms[1:], quiet.others)
            yield point, _Taken(readings.figures, max(0, trt.used_bytes() - loaded), runtime)
    finally:
        llm.shutdown()


async def _batch_ms(trt: TensorRt, llm: Any, point: Point, output_tokens: int) -> tuple[float, float]:
    """Until all requests have their first token, and a step from there to the end."""
    sampling = trt.sampling_params(max_tokens=output_tokens, ignore_eos=True, end_id=-1, detokenize=False)
    begun = time.perf_counter()

    async def first_and_last() -> tuple[float, float]:
        first = 0.0
        async for output in llm.generate_async([_TOKEN] * point.input_tokens, sampling_params=sampling, streaming=True):
            if not first and output.outputs[0].token_ids:
                first = time.perf_counter()
        return first, time.perf_counter()

    times = await asyncio.gather(*(first_and_last() for _ in range(point.batch)))
    prefilled = max(first for first, _ in times)
    ended = max(last for _, last in times)
    return (prefilled - begun) * 1e3, (ended - prefilled) * 1e3 / (output_tokens - 1)


def _cut_fields(config: Any, num_layers: int) -> dict[str, Any]:
    cut = with_layers(config, num_layers)
    fields: dict[str, Any] = {"num_hidden_layers": num_layers}
    if getattr(cut, "layer_types", None):
        fields["layer_types"] = list(cut.layer_types)
    return fields


def _model_bytes(config: Any, num_layers: int, cache_tokens: int, tp: int) -> int:
    """Weights and KV cache in 16 bits, over all ranks: the embedding is whole on each of the first stage."""
    model = build(with_layers(config, num_layers), "meta", torch.float32)
    weights = sum(parameter.numel() for parameter in model.parameters())
    embedding = (tp - 1) * model.get_input_embeddings().weight.numel()
    facts = facts_of(config)
    cache = num_layers * cache_tokens * 2 * facts.num_kv_heads * facts.head_dim
    return int(2 * (weights + embedding + cache))
