"""Pure: a launch and the model's shape in, the arguments of TensorRT-LLM's LLM out.

Names, types and defaults are those of the LLM API of TensorRT-LLM 1.2 (PyTorch backend).
"""

from collections.abc import Mapping
from dataclasses import dataclass

from maveriq.contracts import Model, Precision, Sampling
from maveriq_worker.engine import EngineFailed, Launch, LocalStage
from maveriq_worker.modelopt_description import DESCRIPTION_FILES, MIXED, Described, difference, told

BLOCK_TOKENS = 32  # TensorRT-LLM's own tokens_per_block
MAX_STEP_TOKENS = 8192  # its own max_num_tokens: longer prompts are prefilled in chunks of it
MAX_CUDA_GRAPHS = 4  # each may take 200 MB (TensorRT-LLM's figure): the runtime bytes of a fingerprint hold as many
FREE_FRACTION = 0.95  # of what is free once the model is loaded; the rest is for the allocator's slack

_DTYPES = {Precision.FP32: "float32", Precision.BF16: "bfloat16", Precision.FP16: "float16"}
_QUANTISED_KV_DTYPES = {Precision.FP8: "fp8", Precision.INT8: "int8"}
_KV_ELEMENT_BYTES = {
    Precision.FP32: 4, Precision.BF16: 2, Precision.FP16: 2, Precision.FP8: 1, Precision.INT8: 1,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Shape:
    """What decides the size of a KV cache."""

    num_layers: int
    num_kv_heads: int
    head_dim: int


@dataclass(frozen=True, slots=True)
class Options:
    llm: Mapping[str, object]
    kv_cache: Mapping[str, object]
    cuda_graph: Mapping[str, object]
    """max_batch_size and batch_sizes of CudaGraphConfig."""


def options(launch: Launch, shape: Shape, *, dummy: bool) -> Options:
    """The LLM of one replica.

    Args:
        dummy: random weights, and as many layers as the stages have together: for measuring.

    Raises:
        EngineFailed: TensorRT-LLM cannot run this placement.
    """
    wanted = launch.configuration
    layers = [stage.num_layers for stage in launch.stages]
    if not dummy and sum(layers) != shape.num_layers:
        raise EngineFailed(f"the stages have {sum(layers)} layers; the model has {shape.num_layers}")
    for stage in launch.stages:
        if len(stage.devices) != wanted.tp:
            raise EngineFailed(f"a stage has {len(stage.devices)} GPUs; tensor parallelism is {wanted.tp}")
    llm: dict[str, object] = {
        "model": source_of(launch),
        "dtype": _DTYPES.get(wanted.precision, "auto"),  # quantised: as the checkpoint says
        "tensor_parallel_size": wanted.tp,
        "pipeline_parallel_size": len(layers),
        "gpus_per_node": wanted.tp * len(layers),
        "max_batch_size": wanted.max_batch,
        "max_input_len": wanted.context_tokens,
        "max_seq_len": wanted.context_tokens,
        "max_num_tokens": min(MAX_STEP_TOKENS, max(wanted.context_tokens, wanted.max_batch)),
        "enable_chunked_prefill": True,
        "load_format": "dummy" if dummy else "auto",
    }
    if len(layers) > 1:
        llm["pp_partition"] = layers
    if dummy:
        llm["model_kwargs"] = {"num_hidden_layers": sum(layers)}
    graphs = graph_batch_sizes(wanted.max_batch)
    return Options(llm, _kv_cache(launch, shape), {"batch_sizes": graphs, "enable_padding": True})


def layer_precisions(launch: Launch) -> tuple[Precision, ...]:
    """Of all layers, first to last."""
    whole = launch.configuration.precision
    return tuple(
        precision for stage in launch.stages for precision in (stage.precisions or (whole,) * stage.num_layers)
    )


def is_mixed(launch: Launch) -> bool:
    return any(stage.precisions for stage in launch.stages)


def source_of(launch: Launch) -> str:
    """The checkpoint of a launch.

    Raises:
        EngineFailed: there is none.
    """
    wanted, model = launch.configuration, launch.model
    if not is_mixed(launch):
        return source(model, wanted.precision, wanted.variant)
    variant = model.variant(wanted.variant, wanted.precision) if wanted.variant else None
    if variant is None or variant.source is None:
        raise EngineFailed(
            f"{model.name} has no checkpoint of {told(layer_precisions(launch))}; TensorRT-LLM reads one made by its "
            "Model Optimizer: quantise these layers so with modelopt.torch.quantization (quantize with a quant_cfg of "
            "these layers' names, or auto_quantize), write it with modelopt.torch.export.export_hf_checkpoint, and "
            f"register the model with a variant named {wanted.variant or 'mixed'} whose source is that folder"
        )
    return variant.source


def check_description(launch: Launch, checkpoint: str, found: Described | None) -> None:
    """Whether a checkpoint holds the layers that the placement asks for, which its bytes were counted for.

    Args:
        found: None: the checkpoint has no description.

    Raises:
        EngineFailed
    """
    if not is_mixed(launch):
        if found is not None and found.is_mixed:
            raise EngineFailed(
                f"{checkpoint} holds layers of several precisions and the placement asks for one; register it as the "
                "source of a variant named mixed"
            )
        return
    if found is None or not found.is_mixed:
        raise EngineFailed(
            f"{checkpoint} has no {DESCRIPTION_FILES[0]} of {MIXED} on this node; give a folder as Model Optimizer "
            "writes it"
        )
    wrong = difference(found, layer_precisions(launch), launch.configuration.kv_precision)
    if wrong is not None:
        raise EngineFailed(f"{checkpoint} is not what was planned: {wrong}; plan with what it holds, or quantise again")


def source(model: Model, precision: Precision, label: str = "") -> str:
    """The checkpoint to read: of the variant of that label, or of the first of that precision.

    Raises:
        EngineFailed: none can be had at this precision.
    """
    variant = model.variant(label, precision)
    found = (variant.source if variant else None) or model.source
    if precision not in _DTYPES and (variant is None or variant.source is None):
        raise EngineFailed(
            f"{model.name} has no {precision} checkpoint; TensorRT-LLM reads one made by its Model Optimizer: "
            f"register the model with the variant's source"
        )
    if found.endswith(".gguf"):
        raise EngineFailed(f"{found}: TensorRT-LLM reads no GGUF; register a Hugging Face folder or id")
    return found


def kv_bytes_per_token(shape: Shape, tp: int, precision: Precision, num_layers: int) -> int:
    """Keys and values of one token in `num_layers` layers, on one of `tp` ranks."""
    element_bytes = _KV_ELEMENT_BYTES.get(precision)
    if element_bytes is None:
        raise EngineFailed(f"TensorRT-LLM keeps no KV cache in {precision}")
    return 2 * max(1, -(-shape.num_kv_heads // tp)) * shape.head_dim * element_bytes * num_layers


def graph_batch_sizes(max_batch: int) -> list[int]:
    """The batch sizes to capture as CUDA graphs: the largest and quarters of it; others are padded up to one."""
    sizes = {1, max_batch}
    size = max_batch // 4
    while size > 1 and len(sizes) < MAX_CUDA_GRAPHS:
        sizes.add(size)
        size //= 4
    return sorted(sizes)


def sampling_arguments(sampling: Sampling, seed: int, max_tokens: int) -> dict[str, object]:
    """SamplingParams of one request."""
    chosen: dict[str, object] = {
        "max_tokens": max_tokens, "ignore_eos": sampling.ignore_eos, "seed": seed % 2**64  # unsigned there
    }  # fmt: skip
    if sampling.temperature == 0:
        chosen["top_k"] = 1  # greedy, whichever way a version reads a temperature of 0
    else:
        chosen |= {"temperature": sampling.temperature, "top_p": sampling.top_p}
    if sampling.stop:
        chosen["stop"] = list(sampling.stop)
    if sampling.logprobs is not None:
        chosen["logprobs"] = max(1, sampling.logprobs)  # 0 (the chosen token alone) is cut off again
    return chosen


def _kv_cache(launch: Launch, shape: Shape) -> dict[str, object]:
    """Room for every slot's whole context and no more: what is beside it on the GPU is others'.

    `max_tokens` sets the size on every rank; the bytes, which are one number for all ranks, are
    those of the stage with the most layers.
    """
    wanted = launch.configuration
    blocks = -(-wanted.context_tokens // BLOCK_TOKENS)
    num_tokens = wanted.max_batch * blocks * BLOCK_TOKENS

    def stage_bytes(stage: LocalStage) -> int:
        return num_tokens * kv_bytes_per_token(shape, wanted.tp, wanted.kv_precision, stage.num_layers)

    for stage in launch.stages:
        if stage_bytes(stage) >= stage.reserved_bytes:
            raise EngineFailed(
                f"{stage_bytes(stage)} bytes of KV cache do not fit the {stage.reserved_bytes} reserved for a stage"
            )
    return {
        "max_tokens": num_tokens,
        "max_gpu_total_bytes": max(stage_bytes(stage) for stage in launch.stages),
        "free_gpu_memory_fraction": FREE_FRACTION,
        "dtype": _QUANTISED_KV_DTYPES.get(wanted.kv_precision, "auto"),
    }
