"""The facts of a layer built here."""

from typing import Any

from torch import nn

from maveriq.contracts import ModelFacts


def facts_of(config: Any, layer: nn.Module, *, num_experts: int = 0) -> ModelFacts:
    return ModelFacts(
        architecture="Built", shape_key="built", num_layers=1, hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size, vocab_size=1, num_heads=config.num_attention_heads,
        num_kv_heads=config.num_key_value_heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        max_context_tokens=1, layer_params=sum(each.numel() for each in layer.parameters()), embedding_params=1,
        lm_head_params=1, tied_embeddings=False, num_experts=num_experts, experts_per_token=min(2, num_experts),
        expert_params=3 * config.hidden_size * config.intermediate_size if num_experts else 0,
    )  # fmt: skip
