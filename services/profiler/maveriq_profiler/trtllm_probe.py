"""Times cut models through TensorRT-LLM's LLM API (1.2), with dummy weights. The only import of tensorrt_llm."""

import asyncio
import os
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from importlib import import_module
from statistics import median
from typing import Any

import torch

from maveriq.contracts import Precision, Sample
from maveriq_profiler.cutting import build, config_from, with_layers
from maveriq_profiler.grid import Grid, Point
from maveriq_profiler.orders import ProbeOrder

_DTYPES = {Precision.BF16: "bfloat16", Precision.FP16: "float16"}
_ROUNDS = 3
_TOKEN = 7


class NvmlMeter:
    """Bytes taken of the GPU: TensorRT-LLM runs in processes of its own, whose allocators cannot be asked."""

    def __init__(self, device: str) -> None:
        self._nvml: Any = import_module("pynvml")
        self._nvml.nvmlInit()
        self._handle = self._nvml.nvmlDeviceGetHandleByIndex(int(device.removeprefix("cuda:")))

    def used_bytes(self) -> int:
        return int(self._nvml.nvmlDeviceGetMemoryInfo(self._handle).used)


def measure(order: ProbeOrder, report: Callable[[Sample], None]) -> tuple[Sample, ...]:
    """All samples of an order."""
    meter = NvmlMeter(order.device)
    os.environ["CUDA_VISIBLE_DEVICES"] = order.device.removeprefix("cuda:")  # before tensorrt_llm starts CUDA
    llm, api = import_module("tensorrt_llm"), import_module("tensorrt_llm.llmapi")
    engine = TensorRt(llm.LLM, llm.SamplingParams, api.KvCacheConfig, meter.used_bytes)
    return asyncio.run(measure_with(engine, order, report))


@dataclass(frozen=True, slots=True)
class TensorRt:
    """The names of TensorRT-LLM that are used."""

    llm: Callable[..., Any]
    sampling_params: Callable[..., Any]
    kv_cache_config: Callable[..., Any]
    used_bytes: Callable[[], int]


async def measure_with(trt: TensorRt, order: ProbeOrder, report: Callable[[Sample], None]) -> tuple[Sample, ...]:
    config = config_from(order.config_json)
    samples: list[Sample] = []
    with tempfile.TemporaryDirectory() as folder:
        config.architectures = [type(build(with_layers(config, 1), "meta", torch.float32)).__name__]
        config.save_pretrained(folder)  # no checkpoint: its weights are dummies
        for num_layers in order.grid.layers:
            async for sample in _samples(trt, order, config, folder, num_layers):
                samples.append(sample)
                report(sample)
    return tuple(samples)


async def _samples(
    trt: TensorRt, order: ProbeOrder, config: Any, folder: str, num_layers: int
) -> AsyncIterator[Sample]:
    grid = order.grid
    cache_tokens = max(p.batch * (p.input_tokens + grid.output_tokens + 32) for p in grid.points)  # blocks hold 32
    before = trt.used_bytes()
    llm = trt.llm(
        model=folder,
        skip_tokenizer_init=True,
        dtype=_DTYPES[order.precision],
        load_format="dummy",
        model_kwargs=_cut_fields(config, num_layers),
        max_batch_size=max(point.batch for point in grid.points),
        max_num_tokens=max(point.batch * point.input_tokens for point in grid.points),
        max_seq_len=max(point.input_tokens for point in grid.points) + grid.output_tokens,
        kv_cache_config=trt.kv_cache_config(enable_block_reuse=False, max_tokens=cache_tokens),
    )
    try:
        runtime = max(0, trt.used_bytes() - before - _model_bytes(config, num_layers, cache_tokens))
        for point in grid.points:
            loaded = trt.used_bytes()
            runs = [await _batch_ms(trt, llm, point, grid) for _ in range(_ROUNDS + 1)][1:]
            yield Sample(
                num_layers=num_layers,
                batch=point.batch,
                input_tokens=point.input_tokens,
                output_tokens=grid.output_tokens,
                prefill_ms=median(prefill for prefill, _ in runs),
                decode_ms=median(decode for _, decode in runs),
                activation_bytes=max(0, trt.used_bytes() - loaded),
                runtime_bytes=runtime,
            )
    finally:
        llm.shutdown()


async def _batch_ms(trt: TensorRt, llm: Any, point: Point, grid: Grid) -> tuple[float, float]:
    """Until all requests have their first token, and a step from there to the end."""
    sampling = trt.sampling_params(max_tokens=grid.output_tokens, ignore_eos=True, end_id=-1, detokenize=False)
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
    return (prefilled - begun) * 1e3, (ended - prefilled) * 1e3 / (grid.output_tokens - 1)


def _cut_fields(config: Any, num_layers: int) -> dict[str, Any]:
    cut = with_layers(config, num_layers)
    fields: dict[str, Any] = {"num_hidden_layers": num_layers}
    if getattr(cut, "layer_types", None):
        fields["layer_types"] = list(cut.layer_types)
    return fields


def _model_bytes(config: Any, num_layers: int, cache_tokens: int) -> int:
    """Weights and KV cache in 16 bits."""
    model = build(with_layers(config, num_layers), "meta", torch.float32)
    weights = sum(parameter.numel() for parameter in model.parameters())
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * (weights + num_layers * cache_tokens * 2 * heads * head_dim))
