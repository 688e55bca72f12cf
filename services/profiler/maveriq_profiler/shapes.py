"""The synthetic models of a calibration. Pure.

Each is there for a constant that the others leave together with another: layers against their bytes (deep, large
layers), the host's step against the lm_head (wide vocabulary), the cache against both (many KV heads). All are read
from memory anew in each pass: on a CPU with 32 MiB of cache, working sets up to that size run twice as fast as others.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Shape:
    """Of a Llama, whose layers have every part that the law knows."""

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    ffn: int
    vocab: int

    @property
    def layer_params(self) -> int:
        attention = 2 * self.hidden * self.hidden + 2 * self.hidden * self.kv_heads * self.head_dim
        return attention + 3 * self.hidden * self.ffn + 2 * self.hidden

    @property
    def end_params(self) -> int:
        """Of the embedding; the lm_head has as many."""
        return self.vocab * self.hidden

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads

    @property
    def config(self) -> dict[str, object]:
        """As config.json has it."""
        return {
            "model_type": "llama",
            "architectures": ["LlamaForCausalLM"],
            "hidden_size": self.hidden,
            "intermediate_size": self.ffn,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "vocab_size": self.vocab,
            "max_position_embeddings": 8192,
            "tie_word_embeddings": False,
        }


# For CPUs; the most telling first. 0.2 to 0.5 GiB each in fp32, and never less than 128 MiB in 16 bits.
SMALL = (
    Shape("deep", 32, 512, 8, 2, 1536, 4_096),
    Shape("wide-vocabulary", 4, 1024, 16, 16, 2816, 65_536),
    Shape("middle", 12, 768, 12, 4, 2048, 32_768),
    Shape("large-layers", 4, 1536, 12, 4, 4096, 8_192),
    Shape("many-kv-heads", 12, 640, 10, 10, 1792, 16_384),
)
# For GPUs, in the same order. 1.5 to 4 GiB each in 16 bits: milliseconds a pass on the fastest, and in no cache.
LARGE = (
    Shape("deep-2g", 24, 1536, 12, 2, 6144, 16_384),
    Shape("wide-vocabulary-4g", 4, 4096, 32, 32, 11_008, 131_072),
    Shape("middle-3g", 12, 3072, 24, 8, 8192, 65_536),
    Shape("large-layers-4g", 4, 6144, 48, 8, 16_384, 32_768),
    Shape("many-kv-heads-2g", 8, 2560, 20, 20, 6912, 49_152),
)
