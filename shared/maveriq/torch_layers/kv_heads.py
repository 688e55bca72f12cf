"""What a layer keeps of a token, as its config tells. Pure: a config in, heads and elements out."""

from typing import Any


def num_kv_heads(config: Any) -> int:
    if _is_latent(config):
        return 1
    if getattr(config, "multi_query", False) and not getattr(config, "new_decoder_architecture", False):
        return 1  # Falcon, GPT-BigCode
    for field in ("num_key_value_heads", "num_kv_heads"):
        value = getattr(config, field, None)
        if isinstance(value, int) and value > 0:
            return value
    return int(config.num_attention_heads)


def kv_copies(config: Any) -> int:
    """How often transformers hands the cache each head: Falcon's new architecture copies few for all query heads."""
    if config.model_type == "falcon" and config.new_decoder_architecture:
        return int(config.num_attention_heads) // num_kv_heads(config)
    return 1


def kv_head_dim(config: Any) -> int:
    """Elements of a head's key or value; of latent attention half of what is kept for both, rounded up."""
    if _is_latent(config):
        return (int(config.kv_lora_rank) + int(config.qk_rope_head_dim) + 1) // 2
    return int(getattr(config, "head_dim", None) or int(config.hidden_size) // int(config.num_attention_heads))


def _is_latent(config: Any) -> bool:
    """Multi-head latent attention: all heads' keys and values are made of one vector, and that is what is kept."""
    return bool(getattr(config, "kv_lora_rank", None)) and hasattr(config, "qk_rope_head_dim")
