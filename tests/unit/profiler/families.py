"""config.json of models as published, cut to what decides their shape, with the parameters that the weights have."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Family:
    """One model of a family, and what is known of it from elsewhere."""

    config: dict[str, Any]
    num_params: int
    """All of them, a tied matrix once: of the published weights."""
    kv: tuple[int, int]
    """Heads and elements of each that the cache keeps."""
    gated: bool = True
    parallel: bool = False
    experts: tuple[int, int, int] = field(default=(0, 0, 0))
    """How many, how many for each token, and the width of one."""


def _llama(hidden: int, wide: int, layers: int, heads: int, kv_heads: int, vocab: int, **more: Any) -> dict[str, Any]:
    return {
        "model_type": "llama", "hidden_size": hidden, "intermediate_size": wide, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": kv_heads, "vocab_size": vocab,
        "max_position_embeddings": 4096, "tie_word_embeddings": False, **more,
    }  # fmt: skip


def _like(model_type: str, *sizes: int, **more: Any) -> dict[str, Any]:
    return {**_llama(*sizes), "model_type": model_type, **more}


FAMILIES = {
    "Llama-2-7B": Family(_llama(4096, 11008, 32, 32, 32, 32000), 6_738_415_616, (32, 128)),
    "Llama-2-70B": Family(_llama(8192, 28672, 80, 64, 8, 32000), 68_976_648_192, (8, 128)),
    "Llama-3-8B": Family(_llama(4096, 14336, 32, 32, 8, 128256), 8_030_261_248, (8, 128)),
    "Llama-3.2-1B": Family(
        _llama(2048, 8192, 16, 32, 8, 128256, head_dim=64, tie_word_embeddings=True), 1_235_814_400, (8, 64)
    ),
    "SmolLM2-135M": Family(_llama(576, 1536, 30, 9, 3, 49152, tie_word_embeddings=True), 134_515_008, (3, 64)),
    "SmolLM2-1.7B": Family(_llama(2048, 8192, 24, 32, 32, 49152, tie_word_embeddings=True), 1_711_376_384, (32, 64)),
    "Qwen2.5-0.5B": Family(
        _like("qwen2", 896, 4864, 24, 14, 2, 151936, tie_word_embeddings=True), 494_032_768, (2, 64)
    ),
    "Qwen2.5-7B": Family(_like("qwen2", 3584, 18944, 28, 28, 4, 152064), 7_615_616_512, (4, 128)),
    "Qwen3-8B": Family(_like("qwen3", 4096, 12288, 36, 32, 8, 151936, head_dim=128), 8_190_735_360, (8, 128)),
    "Qwen3-30B-A3B": Family(
        _like("qwen3_moe", 2048, 6144, 48, 32, 4, 151936, head_dim=128, num_experts=128, num_experts_per_tok=8,
              moe_intermediate_size=768, decoder_sparse_step=1),
        30_532_122_624, (4, 128), experts=(128, 8, 768),
    ),
    "Mistral-7B": Family(_like("mistral", 4096, 14336, 32, 32, 8, 32000, sliding_window=4096), 7_241_732_096, (8, 128)),
    "Mixtral-8x7B": Family(
        _like("mixtral", 4096, 14336, 32, 32, 8, 32000, num_local_experts=8, num_experts_per_tok=2),
        46_702_792_704, (8, 128), experts=(8, 2, 14336),
    ),
    "Gemma-2B": Family(
        _like("gemma", 2048, 16384, 18, 8, 1, 256000, head_dim=256, tie_word_embeddings=True), 2_506_172_416, (1, 256)
    ),
    "Gemma-2-9B": Family(
        _like("gemma2", 3584, 14336, 42, 16, 8, 256000, head_dim=256, tie_word_embeddings=True, sliding_window=4096),
        9_241_705_984, (8, 256),
    ),
    "Gemma-3-1B": Family(
        _like("gemma3_text", 1152, 6912, 26, 4, 1, 262144, head_dim=256, tie_word_embeddings=True, sliding_window=512),
        999_885_952, (1, 256),
    ),
    "Phi-1.5": Family(_like("phi", 2048, 8192, 24, 32, 32, 51200), 1_418_270_720, (32, 64), gated=False, parallel=True),
    "Phi-2": Family(_like("phi", 2560, 10240, 32, 32, 32, 51200), 2_779_683_840, (32, 80), gated=False, parallel=True),
    "Phi-3-mini": Family(_like("phi3", 3072, 8192, 32, 32, 32, 32064, pad_token_id=32000), 3_821_079_552, (32, 96)),
    "Phi-4": Family(_like("phi3", 5120, 17920, 40, 40, 10, 100352, pad_token_id=100349), 14_659_507_200, (10, 128)),
    "Falcon-7B": Family(
        {"model_type": "falcon", "hidden_size": 4544, "num_hidden_layers": 32, "num_attention_heads": 71,
         "vocab_size": 65024, "multi_query": True, "parallel_attn": True, "bias": False, "alibi": False,
         "new_decoder_architecture": False},
        6_921_720_704, (1, 64), gated=False, parallel=True,
    ),
    "Falcon-40B": Family(
        {"model_type": "falcon", "hidden_size": 8192, "num_hidden_layers": 60, "num_attention_heads": 128,
         "num_kv_heads": 8, "vocab_size": 65024, "multi_query": True, "parallel_attn": True, "bias": False,
         "alibi": False, "new_decoder_architecture": True},
        41_303_293_952, (8, 64), gated=False, parallel=True,
    ),
    "Falcon-RW-1B": Family(
        {"model_type": "falcon", "hidden_size": 2048, "num_hidden_layers": 24, "num_attention_heads": 32,
         "vocab_size": 50304, "multi_query": False, "parallel_attn": False, "bias": True, "alibi": True,
         "new_decoder_architecture": False},
        1_311_625_216, (32, 64), gated=False,
    ),
    "GPT-J-6B": Family(
        {"model_type": "gptj", "n_embd": 4096, "n_layer": 28, "n_head": 16, "n_inner": None, "rotary_dim": 64,
         "n_positions": 2048, "vocab_size": 50400, "tie_word_embeddings": False},
        6_050_882_784, (16, 256), gated=False, parallel=True,
    ),
    "GPT-NeoX-20B": Family(
        {"model_type": "gpt_neox", "hidden_size": 6144, "intermediate_size": 24576, "num_hidden_layers": 44,
         "num_attention_heads": 64, "vocab_size": 50432, "max_position_embeddings": 2048,
         "use_parallel_residual": True, "tie_word_embeddings": False},
        20_554_567_680, (64, 96), gated=False, parallel=True,
    ),
    "OPT-6.7B": Family(
        {"model_type": "opt", "hidden_size": 4096, "ffn_dim": 16384, "num_hidden_layers": 32,
         "num_attention_heads": 32, "vocab_size": 50272, "max_position_embeddings": 2048,
         "word_embed_proj_dim": 4096},
        6_658_473_984, (32, 128), gated=False,
    ),
    "OPT-350M": Family(
        {"model_type": "opt", "hidden_size": 1024, "ffn_dim": 4096, "num_hidden_layers": 24,
         "num_attention_heads": 16, "vocab_size": 50272, "max_position_embeddings": 2048,
         "word_embed_proj_dim": 512, "do_layer_norm_before": False},
        331_196_416, (16, 64), gated=False,
    ),
    "StableLM-3B": Family(
        _like("stablelm", 2560, 6912, 32, 32, 32, 50304, use_parallel_residual=False), 2_795_443_200, (32, 80)
    ),
    "StableLM-2-1.6B": Family(
        _like("stablelm", 2048, 5632, 24, 32, 32, 100352, use_qkv_bias=True), 1_644_515_328, (32, 64)
    ),
    "Command-R": Family(
        _like("cohere", 8192, 22528, 40, 64, 64, 256000, tie_word_embeddings=True), 34_980_831_232, (64, 128),
        parallel=True,
    ),
}  # fmt: skip
"""By the name that people know. Totals are those that model cards and hub show, as far as they count every weight."""
