"""Shapes of models that `fingerprint_cpu.py` predicts: config.json's fields, no weights."""

from typing import Any


def _llama(
    hidden: int, ffn: int, layers: int, heads: int, kv_heads: int, vocab: int, *, tied: bool = False
) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocab,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": tied,
    }


CPU_MODELS = {
    "smollm2-135m": _llama(576, 1536, 30, 9, 3, 49_152, tied=True),
    "narrow-448": _llama(448, 1792, 24, 7, 7, 32_000),
    "like-qwen2.5-0.5b": _llama(896, 4864, 10, 14, 2, 24_576),
    "wide-1280": _llama(1280, 3456, 6, 20, 5, 50_304),
}
CUDA_MODELS = {
    "smollm2-1.7b": _llama(2048, 8192, 24, 32, 32, 49_152, tied=True),
    "llama-3.2-1b": _llama(2048, 8192, 16, 32, 8, 128_256, tied=True),
    "llama-3.1-8b": _llama(4096, 14_336, 32, 32, 8, 128_256),
    "llama-2-13b": _llama(5120, 13_824, 40, 40, 40, 32_000),
}
