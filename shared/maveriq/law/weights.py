"""Bytes of a layer's weights and of a cached token, as each engine stores them. Pure: facts and precisions in.

The torch engine's are exact: int8 has a scale for each output channel, int4 a scale and a zero point for each group of
inputs, an int8 cache a scale for each token and head, all in 16 bits. It quantises the linear layers of a decoder
layer; norms, biases and the experts of a mixture, which share one tensor, stay whole.
"""

from maveriq.contracts import BYTES_PER_ELEMENT, FULL_PRECISIONS, ModelFacts, Precision

TORCH_QUANTISED = (Precision.INT8, Precision.INT4)
"""Precisions that the torch engine makes of full weights itself."""
INT4_GROUPS = (128, 64, 32)
"""Inputs that share a scale and a zero point: the first of these that divides them."""
SCALE_BYTES = 2
_INT4_OUTPUTS = 16  # the kernel takes so many output channels at a time


def int4_group(in_features: int) -> int:
    """0: none divides it."""
    return next((size for size in INT4_GROUPS if in_features % size == 0), 0)


def kept_in(out_features: int, in_features: int, precision: Precision) -> Precision:
    """What the torch engine stores one matrix in: int8 where its int4 kernel does not take the shape."""
    if precision is Precision.INT4 and (out_features % _INT4_OUTPUTS or not int4_group(in_features)):
        return Precision.INT8
    return precision


def matrix_bytes(out_features: int, in_features: int, precision: Precision) -> int:
    """Of a quantised matrix of the torch engine, its scales and zero points included."""
    elements = out_features * in_features
    if kept_in(out_features, in_features, precision) is Precision.INT8:
        return elements + SCALE_BYTES * out_features
    return elements // 2 + 2 * SCALE_BYTES * (elements // int4_group(in_features))


def layer_matrices(facts: ModelFacts) -> tuple[tuple[int, int], ...]:
    """Output and input features of what the torch engine quantises in one layer: as they were read, else as they
    mostly are; matrices that a model fuses count the same apart.
    """
    if facts.matrices:
        return facts.matrices
    hidden, wide = facts.hidden_size, facts.intermediate_size
    queries, keys = facts.num_heads * facts.head_dim, facts.num_kv_heads * facts.head_dim
    attention = ((queries, hidden), (keys, hidden), (keys, hidden), (hidden, queries))
    if facts.num_experts:
        return attention
    return (*attention, *((wide, hidden),) * (2 if facts.gated_mlp else 1), (hidden, wide))


def layer_weight_bytes(facts: ModelFacts, engine: str, precision: Precision, unquantised: float) -> float:
    """One layer, whole.

    Args:
        unquantised: bytes of an element that quantising leaves as it is (`unquantised_bytes`).
    """
    if engine != "torch" or precision not in (*TORCH_QUANTISED, *FULL_PRECISIONS):
        return facts.layer_params * BYTES_PER_ELEMENT[precision]
    if precision in FULL_PRECISIONS:
        return facts.layer_params * unquantised
    shapes = layer_matrices(facts)
    rest = facts.layer_params - sum(rows * columns for rows, columns in shapes)
    return sum(matrix_bytes(rows, columns, precision) for rows, columns in shapes) + max(0, rest) * unquantised


def expert_weight_bytes(facts: ModelFacts, engine: str, precision: Precision, unquantised: float) -> float:
    """One expert of a mixture."""
    each = unquantised if engine == "torch" else BYTES_PER_ELEMENT[precision]
    return facts.expert_params * each


def cached_token_bytes(facts: ModelFacts, engine: str, kv_precision: Precision, tp: int = 1) -> float:
    """Keys and values of one token in one layer, on one of `tp` ranks; a head is never divided."""
    of_head = facts.head_dim * BYTES_PER_ELEMENT[kv_precision]
    if engine == "torch" and kv_precision is Precision.INT8:
        of_head += SCALE_BYTES
    return 2 * -(-facts.num_kv_heads // tp) * of_head
