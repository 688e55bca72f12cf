"""Which synthetic models a calibration runs, and at which shapes. Pure: a device's limits in, ordered items out.

Their weights are random: a model of the same shape costs the same. The first two items differ as much as they can, so
that a calibration can be used once they ran; each later one tells apart what the earlier ones leave together.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from maveriq.contracts import BYTES_PER_ELEMENT, Precision, Value
from maveriq_profiler.grid import Point


class Item(Value):
    """One synthetic model, and the runs of it."""

    key: str = Field(description="Names all that its samples depend on, save engine version and GPU type.")
    engine: Literal["torch", "trtllm"]
    config_json: str
    precision: Precision
    tp: int = Field(default=1, gt=0)
    splits: tuple[tuple[int, ...], ...] = Field(min_length=1, description="Layers of each stage, of each run.")
    points: tuple[Point, ...] = Field(min_length=1)
    output_tokens: int = Field(gt=1, description="Decode steps of a run.")
    rounds: int = Field(gt=0, description="How often each run is repeated; they take turns.")
    bytes_needed: int = Field(gt=0, description="To be free on each of `num_gpus` GPUs while it runs.")
    expected_s: float = Field(gt=0)

    @property
    def num_gpus(self) -> int:
        """The torch engine's stages share one; TensorRT-LLM has a GPU for each rank."""
        return self.tp * max(len(split) for split in self.splits) if self.engine == "trtllm" else 1


@dataclass(frozen=True, slots=True)
class _Shape:
    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    ffn: int
    vocab: int

    @property
    def layer_params(self) -> int:
        head_dim = self.hidden // self.heads
        attention = 2 * self.hidden * self.hidden + 2 * self.hidden * self.kv_heads * head_dim
        return attention + 3 * self.hidden * self.ffn + 2 * self.hidden

    @property
    def end_params(self) -> int:
        """Embedding, or lm_head with the last norm."""
        return self.vocab * self.hidden + self.hidden


# More than 128 MiB each in the narrowest format: the first two streamed from memory, not from a processor's cache.
_CPU_SHAPES = (
    _Shape("deep", 32, 512, 8, 2, 1536, 4_096),
    _Shape("wide-vocabulary", 4, 1024, 16, 16, 2816, 65_536),
    _Shape("large-layers", 4, 1536, 12, 4, 4096, 8_192),
    _Shape("middle", 12, 768, 12, 4, 2048, 32_768),
    _Shape("many-kv-heads", 12, 640, 10, 10, 1792, 16_384),
)
_CUDA_SHAPES = (
    _Shape("deep", 24, 1536, 12, 2, 6144, 16_384),
    _Shape("wide-vocabulary", 4, 4096, 32, 32, 11_008, 131_072),
    _Shape("large-layers", 4, 6144, 48, 8, 16_384, 32_768),
    _Shape("middle", 12, 3072, 24, 8, 8192, 65_536),
    _Shape("many-kv-heads", 8, 2560, 20, 20, 6912, 49_152),
)


def programme(
    *, engine: Literal["torch", "trtllm"], on_cpu: bool, free_bytes: int, precisions: Sequence[Precision], max_pp: int,
    budget_s: float, num_gpus: int = 1,
) -> tuple[Item, ...]:  # fmt: skip
    """Most telling first; empty where not even the smallest model fits.

    Args:
        free_bytes: of each GPU.
        precisions: those to be calibrated, the most wanted first.
        max_pp: most stages that the engine can run.
        budget_s: no item is planned beyond it, but for the first two of the first precision.
    """
    shapes = _CPU_SHAPES if on_cpu else _CUDA_SHAPES
    items = [_item(engine, shape, precision, on_cpu, max_pp) for precision in precisions for shape in shapes]
    planned: list[Item] = []
    spent_s = 0.0
    for item in (item for item in items if item.bytes_needed <= free_bytes and item.num_gpus <= num_gpus):
        if len(planned) < 2 or spent_s + item.expected_s <= budget_s:
            planned.append(item)
            spent_s += item.expected_s
    return tuple(planned)


def _item(engine: Literal["torch", "trtllm"], shape: _Shape, precision: Precision, on_cpu: bool, max_pp: int) -> Item:
    uneven = (shape.layers * 3 // 4, shape.layers - shape.layers * 3 // 4)
    splits = ((shape.layers,), uneven) if max_pp > 1 and engine == "torch" else ((shape.layers,),)
    weights = (shape.layers * shape.layer_params + 2 * shape.end_params) * BYTES_PER_ELEMENT[precision]
    return Item(
        key=f"{engine}|{shape.name}|{precision}",
        engine=engine,
        config_json=json.dumps(_config(shape)),
        precision=precision,
        splits=splits,
        points=tuple(Point(batch=b, input_tokens=n) for b, n in ((1, 32), (1, 512), (2, 32), (4, 32), (8, 32))),
        output_tokens=8 if on_cpu else 32,
        rounds=2,
        bytes_needed=int(len(splits) * weights + 2**30),
        expected_s=20.0,
    )


def _config(shape: _Shape) -> dict[str, object]:
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": shape.hidden,
        "intermediate_size": shape.ffn,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "vocab_size": shape.vocab,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": False,
    }
