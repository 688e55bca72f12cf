"""What a stage takes of each of its GPUs. Pure: facts, precisions and shapes in, bytes out.

Weights and KV cache are never too small: an engine refuses to start in less than they need. See docs/law.md.
"""

from dataclasses import dataclass
from math import ceil

import numpy as np

from maveriq import law
from maveriq.contracts import BYTES_PER_ELEMENT, FULL_PRECISIONS, Fingerprint, ModelFacts, Precision
from maveriq_planner.arrays import Array
from maveriq_planner.least_squares import fit_non_negative

GIB = 2**30
_SCALE_BYTES = 4  # of one output channel of an 8-bit matrix


@dataclass(frozen=True, slots=True)
class Counted:
    """On each GPU, what can be counted from the model's shape."""

    layer_bytes: Array  # [S]
    """Weights of a layer and the cache of its slots."""
    first_bytes: float
    last_bytes: float
    tied_saving_bytes: float


@dataclass(frozen=True, slots=True)
class ActivationLaw:
    """bytes = fixed + token * bN + attention * bN^2 for b prompts of N tokens, raised until no sample exceeds it."""

    token_bytes: float
    attention_bytes: float
    fixed_bytes: float
    raised: float = 1.0
    """Factor by which it was."""

    def at(self, input_tokens: int, decoding: Array) -> Array:
        """One prompt being read while `decoding` requests take a step."""
        quadratic = self.attention_bytes * input_tokens**2
        total: Array = np.ceil(self.token_bytes * (input_tokens + decoding) + quadratic + self.fixed_bytes)
        return total


def fit_activations(fingerprint: Fingerprint) -> ActivationLaw:
    samples = [sample for sample in fingerprint.samples if sample.activation_bytes > 0]
    if not samples:
        return ActivationLaw(0.0, 0.0, 0.0)
    rows = [[float(s.batch * s.input_tokens), float(s.batch * s.input_tokens**2), 1.0] for s in samples]
    constants = fit_non_negative(rows, [float(sample.activation_bytes) for sample in samples])
    most = max(
        sample.activation_bytes / sum(x * c for x, c in zip(row, constants, strict=True))
        for sample, row in zip(samples, rows, strict=True)
    )
    raised = max(1.0, most)
    token, attention, fixed = (constant * raised for constant in constants)
    return ActivationLaw(token, attention, fixed, raised)


def counted(
    facts: ModelFacts, engine: str, precision: Precision, kv_precision: Precision, tp: int, slots: Array,
    context_tokens: int,
) -> Counted:  # fmt: skip
    unquantised = law.unquantised_bytes(precision, kv_precision)
    head = facts.lm_head_params - facts.hidden_size
    norm = facts.hidden_size * (1 if tp == 1 else 2)  # a bias of the norm is in `head`, but whole on each rank
    shared = facts.tied_params or facts.vocab_size * facts.hidden_size
    tied = min(shared, facts.embedding_params, head) if facts.tied_embeddings else 0
    of_token = law.cached_token_bytes(facts, engine, kv_precision, tp)
    weights = _layer_weight_bytes(facts, engine, precision, tp, unquantised)
    return Counted(
        layer_bytes=weights + np.ceil(slots * context_tokens * of_token),
        first_bytes=ceil(facts.embedding_params * unquantised),
        # MaverIQ's data show (tp + 1) x V x H over a TP group: the embedding whole on each rank, the lm_head divided.
        last_bytes=ceil(head / tp * unquantised) + ceil(norm * unquantised),
        tied_saving_bytes=int(tied * unquantised) if tp == 1 else 0,
    )


def _layer_weight_bytes(facts: ModelFacts, engine: str, precision: Precision, tp: int, unquantised: float) -> int:
    """Matrices divided over the ranks; norms and biases whole on each, and never quantised."""
    if engine == "torch":
        return ceil(law.layer_weight_bytes(facts, engine, precision, unquantised))  # exact: it has no TP
    vectors = 4 * facts.hidden_size + 4 * facts.head_dim  # two norms, two biases, norms of queries and keys
    scales = 0.0
    if precision in (Precision.INT8, Precision.FP8):
        shortest_row = min(facts.hidden_size, facts.intermediate_size, facts.num_heads * facts.head_dim)
        scales = _SCALE_BYTES * facts.layer_params / shortest_row
    if tp == 1 and precision in FULL_PRECISIONS:
        return ceil(facts.layer_params * unquantised)
    matrices = facts.layer_params * BYTES_PER_ELEMENT[precision] + scales
    return ceil(matrices / tp + vectors * unquantised)
