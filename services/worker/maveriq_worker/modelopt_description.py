"""What a checkpoint of NVIDIA's Model Optimizer says of its layers. Pure: descriptions in, precisions out, and back.

TensorRT-LLM 1.2 reads hf_quant_config.json; of MIXED_PRECISION the layers are there or in quant_cfg.json beside it,
which counts where both say something. Modules that neither names are whole.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from maveriq.contracts import FULL_PRECISIONS, Precision

DESCRIPTION_FILES = ("hf_quant_config.json", "quant_cfg.json")
MIXED = "MIXED_PRECISION"
ALGORITHMS = {Precision.FP8: "FP8", Precision.INT8: "W8A16", Precision.INT4: "W4A16_AWQ"}
"""Weight formats by TensorRT-LLM's name. Others (NVFP4, W4A8_AWQ) have no precision here."""
KV_ALGORITHMS = {Precision.FP8: "FP8", Precision.INT8: "INT8"}
GROUP_SIZE = 128  # of AWQ, as Model Optimizer writes it
LLAMA_MATRICES = (
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
    "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
)  # fmt: skip

_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")


class Undescribed(Exception):
    """The description cannot be read as one precision for each layer; says why."""


@dataclass(frozen=True, slots=True)
class Described:
    layers: Mapping[int, Precision]
    """Of the quantised ones; the others are whole."""
    kv_algorithm: str | None
    is_mixed: bool


def describe(
    precisions: Sequence[Precision],
    kv_precision: Precision,
    *,
    matrices: Sequence[str] = LLAMA_MATRICES,
    layers: str = "model.layers",
) -> dict[str, Any]:
    """hf_quant_config.json of a checkpoint with these precisions of its layers.

    Args:
        matrices: of a layer, by the names in its checkpoint.
        layers: name of the list of layers there.

    Raises:
        Undescribed: TensorRT-LLM has no such weights.
    """
    unknown = [precision for precision in precisions if precision not in (*FULL_PRECISIONS, *ALGORITHMS)]
    if unknown:
        raise Undescribed(f"TensorRT-LLM mixes {', '.join(ALGORITHMS)} and whole layers, not {unknown[0]}")
    quantised = {
        f"{layers}.{number}.{matrix}": _one(precision)
        for number, precision in enumerate(precisions)
        if precision in ALGORITHMS
        for matrix in matrices
    }
    return {
        "producer": {"name": "modelopt"},
        "quantization": {
            "quant_algo": MIXED,
            "kv_cache_quant_algo": KV_ALGORITHMS.get(kv_precision),
            "quantized_layers": quantised,
            "exclude_modules": ["lm_head"],
        },
    }


def described(hf_quant_config: Mapping[str, Any], quant_cfg: Mapping[str, Any] | None = None) -> Described:
    """
    Args:
        quant_cfg: the content of the second file; None: there is none.

    Raises:
        Undescribed
    """
    said: dict[str, Any] = {**hf_quant_config.get("quantization", {})}
    is_mixed = said.get("quant_algo") == MIXED
    if is_mixed:
        said |= quant_cfg or {}
    layers: dict[int, Precision] = {}
    for module, of_module in said.get("quantized_layers", {}).items() if is_mixed else ():
        place, precision = _LAYER.search(module), _precision(module, of_module.get("quant_algo"))
        if place is None:
            raise Undescribed(f"{module} is quantised and belongs to no layer")
        if layers.setdefault(int(place[1]), precision) is not precision:
            raise Undescribed(f"layer {place[1]} holds {layers[int(place[1])]} and {precision}")
    return Described(layers, said.get("kv_cache_quant_algo"), is_mixed)


def difference(found: Described, precisions: Sequence[Precision], kv_precision: Precision) -> str | None:
    """Where a checkpoint is not what a placement asks for, in words; None: it is."""
    for number, wanted in enumerate(precisions):
        held = found.layers.get(number)
        if held is not (wanted if wanted in ALGORITHMS else None):
            return f"layer {number} is {held or 'whole'} there and {wanted} in the placement"
    if beyond := [number for number in found.layers if number >= len(precisions)]:
        return f"it describes layer {beyond[0]}, and the placement has {len(precisions)} layers"
    if found.kv_algorithm not in (None, KV_ALGORITHMS.get(kv_precision)):
        return f"its KV cache is {found.kv_algorithm} and the placement's {kv_precision}"
    return None


def told(precisions: Sequence[Precision]) -> str:
    """As "layers 0-3 int4, 4-9 int8"."""
    runs: list[str] = []
    first = 0
    for precision, run in groupby(precisions):
        last = first + len(list(run)) - 1
        runs.append(f"{first}-{last} {precision}" if last > first else f"{first} {precision}")
        first = last + 1
    return "layers " + ", ".join(runs)


def _one(precision: Precision) -> dict[str, Any]:
    algorithm: dict[str, Any] = {"quant_algo": ALGORITHMS[precision]}
    return algorithm | ({"group_size": GROUP_SIZE} if precision is Precision.INT4 else {})


def _precision(module: str, algorithm: object) -> Precision:
    for precision, name in ALGORITHMS.items():
        if name == algorithm:
            return precision
    raise Undescribed(f"{module} is {algorithm}; {', '.join(ALGORITHMS.values())} can be planned with")
