"""Every decoder family that the torch engine is checked with, tiny: what its config changes of `tiny_models.SHAPE`."""

from typing import Any

_EXPERTS: dict[str, Any] = {"num_local_experts": 4, "num_experts_per_tok": 2}
_MANY_EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
_ALL_HEADS: dict[str, Any] = {"num_key_value_heads": 4}
_GPT: dict[str, Any] = {**_ALL_HEADS, "n_embd": 32, "n_head": 4, "n_layer": 4, "n_positions": 128}
_OPT: dict[str, Any] = {**_ALL_HEADS, "ffn_dim": 64, "word_embed_proj_dim": 32, "max_position_embeddings": 128}
_FALCON: dict[str, Any] = {**_ALL_HEADS, "alibi": False, "bias": False, "multi_query": True, "parallel_attn": True}
_LATENT: dict[str, Any] = {
    "kv_lora_rank": 16, "q_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8, "head_dim": 4,
}  # fmt: skip

FAMILIES: dict[str, dict[str, Any]] = {
    "Llama": {"tie_word_embeddings": True},
    "Mistral": {"sliding_window": 6},
    "Mixtral": _EXPERTS,
    "Qwen2": {},
    "Qwen3": {},
    "Qwen3Moe": _MANY_EXPERTS,
    "SmolLM3": {"no_rope_layers": [1, 1, 1, 0]},
    "Gemma": {},
    "Gemma2": {"sliding_window": 6},
    "Gemma3Text": {"sliding_window": 6},
    "Phi": {},
    "Phi3": {},
    "Falcon, 7B": {**_FALCON, "new_decoder_architecture": False},
    "Falcon, new architecture": {**_FALCON, "new_decoder_architecture": True, "num_kv_heads": 2},
    "GPTJ": {**_GPT, "rotary_dim": 4, "tie_word_embeddings": False},
    "GPTNeoX": _ALL_HEADS,
    "GPTNeoX, one after the other": {**_ALL_HEADS, "use_parallel_residual": False},
    "GPT2": _GPT,
    "GPTBigCode": _GPT,
    "OPT": _OPT,
    "OPT, projected": {**_OPT, "word_embed_proj_dim": 16, "do_layer_norm_before": False},
    "StableLm": {"use_parallel_residual": True},
    "Olmo": {},
    "Olmo2": {},
    "Granite": {"embedding_multiplier": 3.0, "logits_scaling": 2.0},
    "Cohere": {},
    "Cohere2": {"sliding_window": 6},
    "Starcoder2": {"sliding_window": 6},
    "GptOss": {"sliding_window": 6, "num_local_experts": 4},
    "MiniCPM3": {**_ALL_HEADS, **_LATENT},
    "DiffLlama": {},
    "Apertus": {},
}
"""The class of the config without `Config`, and what tells it from another of the family."""

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "Falcon": ({**_FALCON, "alibi": True}, "ALiBi"),
    "GPTNeo": (
        {**_ALL_HEADS, "num_layers": 4, "num_heads": 4, "attention_types": [[["global", "local"], 2]]},
        "kind global, local",
    ),
    "XGLM": ({**_ALL_HEADS, "d_model": 32, "attention_heads": 4, "num_layers": 4, "ffn_dim": 64}, "changes the activ"),
    "OpenAIGPT": (_GPT, "masks, positions and cache"),
}
"""With what the refusal says."""
