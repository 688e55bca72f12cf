"""What a stage takes of each of its GPUs. Pure: facts, fingerprint and configuration in, bytes out.

Weights and KV cache are never too small: an engine refuses to start in less than they need. See docs/law.md.
"""

from dataclasses import dataclass
from math import ceil

from maveriq.contracts import (
    BYTES_PER_ELEMENT,
    FULL_PRECISIONS,
    Configuration,
    Fingerprint,
    ModelFacts,
    Precision,
    StageMemory,
)
from maveriq_planner.least_squares import fit_non_negative

_SCALE_BYTES = 4  # of one output channel of an 8-bit matrix


@dataclass(frozen=True, slots=True)
class ActivationLaw:
    """bytes = fixed + token * bN + attention * bN^2 for b prompts of N tokens, raised until no sample exceeds it."""

    token_bytes: float
    attention_bytes: float
    fixed_bytes: float

    def at(self, input_tokens: int, decoding: int) -> int:
        """One prompt being read while `decoding` requests take a step."""
        quadratic = self.attention_bytes * input_tokens**2
        return ceil(self.token_bytes * (input_tokens + decoding) + quadratic + self.fixed_bytes)


def fit_activations(fingerprint: Fingerprint) -> ActivationLaw:
    samples = [sample for sample in fingerprint.samples if sample.activation_bytes > 0]
    if not samples:
        return ActivationLaw(0.0, 0.0, 0.0)
    rows = [[float(s.batch * s.input_tokens), float(s.batch * s.input_tokens**2), 1.0] for s in samples]
    constants = fit_non_negative(rows, [float(sample.activation_bytes) for sample in samples])
    raised = max(
        sample.activation_bytes / sum(x * c for x, c in zip(row, constants, strict=True))
        for sample, row in zip(samples, rows, strict=True)
    )
    token, attention, fixed = (constant * max(1.0, raised) for constant in constants)
    return ActivationLaw(token, attention, fixed)


def stage_memory(
    facts: ModelFacts, configuration: Configuration, activations: ActivationLaw, runtime_bytes: int
) -> StageMemory:
    """
    Args:
        runtime_bytes: what a process takes of a GPU before any tensor.
    """
    c = configuration
    unquantised = _unquantised_bytes(c.precision, c.kv_precision)
    head = facts.lm_head_params - facts.hidden_size
    norm = facts.hidden_size * (1 if c.tp == 1 else 2)  # a bias of the norm is in `head`, but whole on each rank
    tied = min(facts.vocab_size * facts.hidden_size, facts.embedding_params, head) if facts.tied_embeddings else 0
    return StageMemory(
        layer_bytes=_layer_weight_bytes(facts, c, unquantised) + _layer_kv_bytes(facts, c),
        first_bytes=ceil(facts.embedding_params * unquantised),
        # MaverIQ's data show (tp + 1) x V x H over a TP group: the embedding whole on each rank, the lm_head divided.
        last_bytes=ceil(head / c.tp * unquantised) + ceil(norm * unquantised),
        tied_saving_bytes=int(tied * unquantised) if c.tp == 1 else 0,
        runtime_bytes=runtime_bytes + activations.at(c.context_tokens, c.max_batch),
    )


def replica_bytes(memory: StageMemory, configuration: Configuration, num_layers: int) -> int:
    """Over all GPUs of a replica. How the layers are split makes no difference to the sum."""
    pp = configuration.pp
    if pp == 1:
        return configuration.tp * memory.of_stage(num_layers, first=True, last=True)
    total = num_layers * memory.layer_bytes + pp * memory.runtime_bytes
    return configuration.tp * (total + memory.first_bytes + memory.last_bytes)


def _layer_kv_bytes(facts: ModelFacts, c: Configuration) -> int:
    of_token = 2 * ceil(facts.num_kv_heads / c.tp) * facts.head_dim * BYTES_PER_ELEMENT[c.kv_precision]
    return ceil(c.max_batch * c.context_tokens * of_token)


def _layer_weight_bytes(facts: ModelFacts, c: Configuration, unquantised: float) -> int:
    """Matrices divided over the ranks; norms and biases whole on each, and never quantised."""
    vectors = 4 * facts.hidden_size + 4 * facts.head_dim  # two norms, two biases, norms of queries and keys
    scales = 0.0
    if c.precision in (Precision.INT8, Precision.FP8):
        shortest_row = min(facts.hidden_size, facts.intermediate_size, facts.num_heads * facts.head_dim)
        scales = _SCALE_BYTES * facts.layer_params / shortest_row
    if c.tp == 1 and c.precision in FULL_PRECISIONS:
        return ceil(facts.layer_params * unquantised)
    matrices = facts.layer_params * BYTES_PER_ELEMENT[c.precision] + scales
    return ceil(matrices / c.tp + vectors * unquantised)


def _unquantised_bytes(precision: Precision, kv_precision: Precision) -> float:
    """Per element of embedding, lm_head and norms: quantising leaves them in the format computed in,
    which is the cache's, or 16 bits where the cache is quantised too.
    """
    if precision in FULL_PRECISIONS:
        return BYTES_PER_ELEMENT[precision]
    return max(2.0, BYTES_PER_ELEMENT[kv_precision])
