"""Made-up decoders and a made-up GPU type whose constants are known."""

from collections.abc import Mapping
from dataclasses import dataclass

from maveriq import law
from maveriq.contracts import ModelFacts, Precision


def facts(
    hidden_size: int = 1024, intermediate_size: int = 4096, vocab_size: int = 32000, num_layers: int = 8,
    num_heads: int = 16, num_kv_heads: int = 16, **more: object,
) -> ModelFacts:  # fmt: skip
    head_dim = hidden_size // num_heads
    attention = hidden_size * head_dim * (2 * num_heads + 2 * num_kv_heads)
    plain = ModelFacts(
        architecture="LlamaForCausalLM", shape_key=f"{hidden_size}/{intermediate_size}/{vocab_size}/{num_kv_heads}",
        num_layers=num_layers, hidden_size=hidden_size, intermediate_size=intermediate_size, vocab_size=vocab_size,
        num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=head_dim, max_context_tokens=8192,
        layer_params=attention + 3 * hidden_size * intermediate_size, embedding_params=vocab_size * hidden_size,
        lm_head_params=vocab_size * hidden_size, tied_embeddings=False,
    )  # fmt: skip
    return plain.model_copy(update=more)


def mixture() -> ModelFacts:
    expert = 3 * 1024 * 4096
    dense = facts()
    return dense.model_copy(
        update={
            "shape_key": "mixture", "num_experts": 8, "experts_per_token": 2, "expert_params": expert,
            "layer_params": dense.layer_params + 7 * expert,
        }
    )  # fmt: skip


def rig(precision: Precision = Precision.FP16, *, tp: int = 1, cache: Precision = Precision.FP16) -> law.Rig:
    return law.Rig("engine", precision, cache, tp, (1, 2, 4, 8))


CONSTANTS = {
    "step": 0.3, "head": 1.5, "requests": 0.02, "layer[full]": 0.09, "weights": 1.45, "cache": 1.2, "rows@4": 6.0,
    "rows@8": 9.0, "idle.tp1": 0.03, "hop.tp1": 0.06, "hop.bytes.tp1": 150.0, "prompt": 1.5, "compute": 8.0,
    "prompt_activations": 40.0, "prompt_hop.tp1": 100.0, "prompt_weights": 1.0,
}  # fmt: skip
"""ms a unit, about those of an RTX A6000."""


@dataclass(frozen=True, slots=True)
class Run:
    model: ModelFacts
    layers: tuple[int, ...]
    rig: law.Rig

    def decode(self, batch: float, context_tokens: float) -> law.Terms:
        return law.decode_terms(
            self.model, self.rig, batch=batch, context_tokens=context_tokens,
            num_layers=sum(self.layers), num_stages=len(self.layers), fullest=max(self.layers),
        ).through(sum(self.layers))  # fmt: skip

    def prefill(self, batch: float, input_tokens: float) -> law.Terms:
        return law.prefill_terms(
            self.model, self.rig, batch=batch, input_tokens=input_tokens,
            num_layers=sum(self.layers), num_stages=len(self.layers), fullest=max(self.layers),
        ).through(sum(self.layers))  # fmt: skip


def ms(terms: law.Terms, constants: Mapping[str, float] = CONSTANTS) -> float:
    return float(law.dot(constants, terms))
