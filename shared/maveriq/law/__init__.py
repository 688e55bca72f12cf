"""The latency and memory law: what a run costs, as terms that are linear in the constants of its GPU type.

The profiler fits the constants (calibration), the planner multiplies them out. docs/law.md derives each term.
"""

from maveriq.law.memory import activation_terms, known_bytes, memory_terms
from maveriq.law.passes import Passes, Rig, decode_terms, prefill_terms, through_layers, unquantised_bytes
from maveriq.law.scope import uncovered
from maveriq.law.terms import Quantity, Terms, added, dot, scaled
from maveriq.law.weights import cached_token_bytes, layer_weight_bytes

__all__ = [
    "Passes",
    "Quantity",
    "Rig",
    "Terms",
    "activation_terms",
    "added",
    "cached_token_bytes",
    "decode_terms",
    "dot",
    "known_bytes",
    "layer_weight_bytes",
    "memory_terms",
    "prefill_terms",
    "scaled",
    "through_layers",
    "uncovered",
    "unquantised_bytes",
]
