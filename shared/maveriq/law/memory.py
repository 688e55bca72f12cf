"""What a replica takes of its GPUs' memory beyond what can be counted. Pure: a run in, its terms out.

Weights and KV cache are counted, never fitted. The runtime's own bytes and the activations are terms, in GiB.
"""

from maveriq.contracts import ModelFacts
from maveriq.law.passes import Rig, unquantised_bytes
from maveriq.law.terms import Quantity
from maveriq.law.weights import cached_token_bytes, layer_weight_bytes

GIB = 2**30


def known_bytes(facts: ModelFacts, rig: Rig, *, num_layers: Quantity, cached_tokens: Quantity) -> Quantity:
    """Weights and KV cache over all GPUs of a replica.

    The embedding is whole on each rank of the first stage, the lm_head divided over those of the last: MaverIQ's data
    show (tp + 1) x vocabulary x hidden.

    Args:
        cached_tokens: of all requests together.
    """
    ends = unquantised_bytes(rig.precision, rig.kv_precision)
    weights = num_layers * layer_weight_bytes(facts, rig.engine, rig.precision, ends)
    cache = num_layers * cached_tokens * cached_token_bytes(facts, rig.engine, rig.kv_precision)
    return weights + cache + (rig.tp * facts.embedding_params + facts.lm_head_params) * ends


def memory_terms(
    facts: ModelFacts, rig: Rig, *, num_layers: int, num_stages: int, tokens: Quantity
) -> dict[str, Quantity]:  # fmt: skip
    """Over all GPUs of a replica. Each rank's buffers of a layer are rounded up by the allocator.

    Args:
        tokens: of the largest pass: prompts that are read together.
    """
    return {
        f"runtime.tp{rig.tp}.pp{num_stages}": 1.0,
        "buffers": num_layers * rig.tp / 1024,
        **activation_terms(facts, rig, num_stages=num_stages, tokens=tokens),
    }


def activation_terms(facts: ModelFacts, rig: Rig, *, num_stages: Quantity, tokens: Quantity) -> dict[str, Quantity]:
    """Hidden states whole on each rank; what is as wide as the MLP or the attention divided over them.

    A mixture computes as many MLPs for a token as it chooses experts. Of what is computed in 32 bits a token is two.
    """
    tokens = tokens * unquantised_bytes(rig.precision, rig.kv_precision) / 2.0
    wide = facts.intermediate_size * (2 if facts.gated_mlp else 1) * max(1, facts.experts_per_token)
    wide += (facts.num_heads + 2 * facts.num_kv_heads) * facts.head_dim
    return {
        "activation.hidden": tokens * facts.hidden_size * rig.tp * num_stages / GIB,
        "activation.wide": tokens * wide * num_stages / GIB,
    }
