"""What one pass through a model takes: a decode step, or the reading of prompts. Pure: a run in, its terms out.

Constants are in ms per GB, per TFLOP or per piece; all are non-negative. Measured on RTX A6000 with TensorRT-LLM
(MaverIQ's released data) the law misses an unseen model's latency by less than 1 % at the median. A name with a
kind in brackets is what that kind takes more than the constant without; both are non-negative.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from maveriq.contracts import BYTES_PER_ELEMENT, FULL_PRECISIONS, ModelFacts, Precision
from maveriq.law.terms import Quantity, Terms, added, scaled
from maveriq.law.weights import cached_token_bytes, expert_weight_bytes, layer_weight_bytes

Mix = Sequence[tuple[Precision, int]]
"""How many layers have which precision."""

_GB = 1e9
_TERA = 1e12
_ACTIVATION_BYTES = 2  # of one element that travels between ranks or stages
_UNFUSED = ("torch",)  # engines whose attention reads a mask; TensorRT-LLM's keeps up with its GEMMs
_HIDDEN_TOKENS = 512  # arithmetic takes longer than reading 16-bit weights from 170 (RTX A6000) to 300 tokens (H100) on


@dataclass(frozen=True, slots=True)
class Rig:
    """The part of a configuration that decides which constants apply."""

    engine: str
    precision: Precision
    kv_precision: Precision
    tp: int
    knots: tuple[int, ...]
    """Batches at which the cost of more rows was measured, ascending; linear between them, from 0 at a batch of 1."""


@dataclass(frozen=True, slots=True)
class Passes:
    """One pass, apart by where it is spent."""

    layer: Terms
    """Each layer."""
    ends: Terms
    """Host, embedding and lm_head: once, the lm_head on the last stage."""

    def through(self, num_layers: Quantity) -> dict[str, Quantity]:
        """All stages, one after the other."""
        return added(scaled(self.layer, num_layers), self.ends)


def decode_terms(
    facts: ModelFacts, rig: Rig, *, batch: Quantity, context_tokens: Quantity,
    num_layers: Quantity, num_stages: Quantity, fullest: Quantity,
) -> Passes:  # fmt: skip
    """One decode step.

    Args:
        batch: requests that take the step together.
        context_tokens: of each, the mean over the step's requests.
        num_layers: run; a cut model has fewer than `facts`.
        fullest: layers of the stage that has most.
    """
    tp, hidden = rig.tp, facts.hidden_size
    layer = added(
        _weights(facts, rig, batch, "layer", "weights"),
        _rows(rig, batch, computed_params(facts), ("", f"[{rig.precision}]")),
        {
            "cache": batch * cached_token_bytes(facts, rig.engine, rig.kv_precision) * context_tokens / tp / _GB,
            # Each query head walks through its keys and values, even those that it shares.
            "attend": batch * facts.num_heads * facts.head_dim * context_tokens / tp / 1e6,
        },
        {f"cache_scales[{_kind(rig)}]": 1.0} if _eight_bits(rig) else {},
        _all_reduces(facts, rig, _ACTIVATION_BYTES * batch * hidden),
    )
    ends = {
        "step": 1.0,
        "head": _head_bytes(facts, rig) / tp / _GB,
        **_rows(rig, batch, float(facts.lm_head_params), ("[head]",)),
        "requests": batch - 1.0,
        f"idle.tp{tp}": fullest - num_layers,
        f"hop.tp{tp}": num_stages - 1.0,
        f"hop.bytes.tp{tp}": (num_stages - 1.0) * _ACTIVATION_BYTES * batch * hidden / _GB,
    }
    if tp > 1:
        ends[f"step.tp{tp}"] = 1.0
    return Passes(layer, ends)


def prefill_terms(
    facts: ModelFacts, rig: Rig, *, batch: Quantity, input_tokens: Quantity,
    num_layers: Quantity, num_stages: Quantity, fullest: Quantity,
) -> Passes:  # fmt: skip
    """Reading `batch` prompts of `input_tokens` each, to their first tokens."""
    tp, tokens = rig.tp, batch * input_tokens
    attention = 2.0 * tokens * input_tokens * facts.num_heads * facts.head_dim
    tflop = (2.0 * tokens * computed_params(facts) + attention) / tp / _TERA
    slower = {"compute[attention]": attention / tp / _TERA} if rig.engine in _UNFUSED else {}
    sent_gb = _ACTIVATION_BYTES * tokens * facts.hidden_size / _GB
    layer = added(
        scaled(_weights(facts, rig, tokens, "prompt_layer", "prompt_weights"), _waiting(tokens)),
        {"compute": tflop, f"compute[{rig.precision}]": tflop, "prompt_activations": sent_gb},
        slower,
        {"prompt_cache_scales": tokens * _cache_elements(facts) / _GB} if _eight_bits(rig) else {},
        _all_reduces(facts, rig, sent_gb * _GB),
    )
    ends = {
        "prompt": 1.0,
        "prompt_tokens": tokens / 1e3,
        "prompt_head": _head_bytes(facts, rig) / tp / _GB,
        **_rows(rig, batch, float(facts.lm_head_params), ("[head]",)),
        f"prompt_hop.tp{tp}": (num_stages - 1.0) * sent_gb,
        "prompt_idle": tflop * (fullest - num_layers),
    }
    if tp > 1:
        ends[f"prompt.tp{tp}"] = 1.0
    return Passes(layer, ends)


def through_layers(
    passes_of: Callable[[Precision], Passes], precision: Precision, num_layers: Quantity, mix: Mix
) -> dict[str, Quantity]:
    """All stages, one after the other, of layers in several precisions: each as its own, the ends as the full one's.

    Args:
        precision: of the ends, and of all layers where `mix` is empty.
    """
    if not mix:
        return passes_of(precision).through(num_layers)
    return added(passes_of(precision).ends, *(scaled(passes_of(each).layer, count) for each, count in mix))


def computed_params(facts: ModelFacts) -> float:
    """Parameters of a layer that multiply each token: of a mixture, its chosen experts only."""
    return float(facts.layer_params - (facts.num_experts - facts.experts_per_token) * facts.expert_params)


def read_bytes(facts: ModelFacts, rig: Rig, rows: Quantity) -> Quantity:
    """Weights of a layer that a pass over so many tokens reads: of experts those that any chose, on average."""
    stored = rig.engine, rig.precision, unquantised_bytes(rig.precision, rig.kv_precision)
    if not facts.num_experts:
        return layer_weight_bytes(facts, *stored)
    missed = (1.0 - facts.experts_per_token / facts.num_experts) ** rows
    return layer_weight_bytes(facts, *stored) - facts.num_experts * missed * expert_weight_bytes(facts, *stored)


def _weights(facts: ModelFacts, rig: Rig, rows: Quantity, each: str, weights: str) -> Terms:
    gb = read_bytes(facts, rig, rows) / rig.tp / _GB
    return {f"{each}[{_kind(rig)}]": 1.0, weights: gb, f"{weights}[{rig.precision}]": gb}


def _waiting(tokens: Quantity) -> Quantity:
    """How much of a pass waits for weights and launches: 1 of a token, none once the arithmetic hides them.

    Linear, so that more tokens never take less time: what is hidden is less than their arithmetic adds.
    """
    return (tokens < _HIDDEN_TOKENS) * (1.0 - tokens / _HIDDEN_TOKENS)


def _rows(rig: Rig, batch: Quantity, params: float, kinds: tuple[str, ...]) -> Terms:
    """What more than one row adds to the GEMMs: a slope between each two knots, so it never falls.

    The lm_head's is its own: it is wider than any other matrix, so an engine may choose another kernel for it.
    """
    knots = (1, *(knot for knot in rig.knots if knot > 1))
    terms: dict[str, Quantity] = {}
    for left, here in pairwise(knots):
        beyond = 0.0 if here == knots[-1] else (batch > here) * (batch - here)
        tflop = ((batch > left) * (batch - left) - beyond) * (2.0 * params / rig.tp / _TERA)
        terms |= {f"rows@{here}{kind}": tflop for kind in kinds}
    return terms


def _all_reduces(facts: ModelFacts, rig: Rig, sent_bytes: Quantity) -> Terms:
    """After attention and after the MLP; once where the two run side by side.

    The algorithm is the engine's choice by message size (TensorRT-LLM: one-shot for small, two-shot for middling
    ones, a ring beyond its workspace).
    """
    if rig.tp == 1:
        return {}
    gb = (1 if facts.parallel_attention else 2) * sent_bytes / _GB
    workspace = 16e6 if rig.tp == 2 else 8e6
    one_shot = {2: workspace, 4: 1e6}.get(rig.tp, 5e5)
    small = sent_bytes <= one_shot
    large = sent_bytes > workspace
    terms: dict[str, Quantity] = {
        f"reduce.one_shot.tp{rig.tp}": small * gb,
        f"reduce.ring.tp{rig.tp}": large * gb,
    }
    if rig.tp > 2:
        terms[f"reduce.two_shot.tp{rig.tp}"] = (1 - small) * (1 - large) * gb
    return terms


def _kind(rig: Rig) -> str:
    return "full" if rig.precision in FULL_PRECISIONS else "quantised"


def _cache_elements(facts: ModelFacts) -> int:
    """Of one token in one layer."""
    return 2 * facts.num_kv_heads * facts.head_dim


def _head_bytes(facts: ModelFacts, rig: Rig) -> float:
    return facts.lm_head_params * unquantised_bytes(rig.precision, rig.kv_precision)


def _eight_bits(rig: Rig) -> bool:
    return rig.kv_precision in (Precision.INT8, Precision.FP8)


def unquantised_bytes(precision: Precision, kv_precision: Precision) -> float:
    """Per element of embedding, lm_head and norms: quantising leaves them in the format computed in,
    which is the cache's, or 16 bits where the cache is quantised too.
    """
    if precision in FULL_PRECISIONS:
        return BYTES_PER_ELEMENT[precision]
    return max(2.0, BYTES_PER_ELEMENT[kv_precision])
