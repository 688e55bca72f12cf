"""Which variants of a model can be measured from their weights. Pure: a variant in, what stands against it out."""

from maveriq.contracts import FULL_PRECISIONS, Model, ModelFacts, Precision, Variant
from maveriq.contracts.accuracy import LAYER_PRECISIONS

_SHAPE = ("num_layers", "hidden_size", "intermediate_size", "vocab_size", "num_heads", "num_kv_heads", "layer_params")


def own_source(model: Model, variant: Variant) -> str | None:
    """Its own checkpoint; None: it is made of the model's."""
    return variant.source if variant.source != model.source else None


def obstacle(model: Model, variant: Variant) -> str:
    """Why transformers cannot run a variant as the engine would; '' where it can."""
    label, cache = variant.label, variant.cache_precision
    another = variant.precision in FULL_PRECISIONS and cache in FULL_PRECISIONS and cache is not variant.precision
    if another or cache not in (*FULL_PRECISIONS, Precision.INT8):
        return (
            f"{label}: only the serving engine keeps a KV cache in {cache} beside {variant.precision} weights; "
            "enter its accuracy, or import it with --from-lm-eval"
        )
    if variant.precision not in (*FULL_PRECISIONS, *LAYER_PRECISIONS) and own_source(model, variant) is None:
        return (
            f"{label}: only the serving engine makes {variant.precision} of the model's weights; register a "
            f"checkpoint of it ({variant.precision}@SOURCE), enter its accuracy, or import it with --from-lm-eval"
        )
    return ""


def shape_difference(model: ModelFacts, variant: ModelFacts, label: str) -> str:
    """Why a checkpoint is no variant of the model; '' where it is one.

    A plan is made for the model's shape: one with other layers costs something else, and is split differently.
    """
    for field in _SHAPE:
        theirs, ours = getattr(variant, field), getattr(model, field)
        if theirs != ours:
            return (
                f"{label}: its checkpoint has {field} {theirs} where the model has {ours}; "
                "register it as a model of its own"
            )
    return ""


def computed_in(variant: Variant) -> Precision:
    """Number format of everything that is not a quantised weight."""
    for each in (variant.precision, variant.cache_precision):
        if each in FULL_PRECISIONS:
            return each
    return Precision.BF16
