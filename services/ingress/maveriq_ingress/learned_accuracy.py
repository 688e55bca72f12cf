"""A registered model with what was measured of its variants. Pure: model and measurement in, model out."""

from maveriq.contracts import AccuracyMeasured, Model, Provenance, Variant, VariantAccuracy

_MOST_RELATIVE = 1.5  # the contract's bound; a text that a variant predicts so much better says nothing of its quality


def with_accuracy(model: Model, measured: AccuracyMeasured) -> Model:
    """The model as registered now may be another than was measured: what differs keeps the accuracy that it has."""
    if model.source != measured.model.source:
        return model
    subjects = {variant.label: variant for variant in measured.model.variants}
    results = {result.variant: result for result in measured.variants if result.relative is not None}
    variants = tuple(
        _measured(variant, results[variant.label], measured)
        if variant.label in results and _same(variant, subjects.get(variant.label))
        else variant
        for variant in model.variants
    )
    sensitivity = model.sensitivity if measured.sensitivity is None else measured.sensitivity
    return model.model_copy(update={"variants": variants, "sensitivity": sensitivity})


def _same(variant: Variant, other: Variant | None) -> bool:
    """Whether both are the same weights in the same format."""
    if other is None:
        return False
    mine = (variant.precision, variant.cache_precision, variant.source)
    return mine == (other.precision, other.cache_precision, other.source)


def _measured(variant: Variant, result: VariantAccuracy, measured: AccuracyMeasured) -> Variant:
    assert result.relative is not None, "results without were left out"
    told = [f"{measured.num_tokens} tokens of a text"]
    if result.perplexity is not None:
        told.append(f"perplexity {result.perplexity:.4g}, full precision's {result.perplexity * result.relative:.4g}")
    if measured.reference is not None:
        told.append(f"full precision is {measured.reference}")
    if result.agreement is not None:
        told.append(f"the same next token at {result.agreement:.1%} of the positions")
    return variant.model_copy(
        update={
            "accuracy": min(result.relative, _MOST_RELATIVE),
            "provenance": Provenance.MEASURED,
            "evidence": "; ".join(told),
        }
    )
