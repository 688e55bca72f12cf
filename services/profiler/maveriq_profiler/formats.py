"""In which number formats a model's cost is to be known. Pure: a model in, formats of weights and KV cache out."""

from collections.abc import Collection
from dataclasses import dataclass

from maveriq.contracts import FULL_PRECISIONS, Model, Precision
from maveriq_profiler.variants import own_source


@dataclass(frozen=True, slots=True)
class Format:
    """Of a layer's weights, and of its KV cache."""

    precision: Precision
    kv_precision: Precision

    def __str__(self) -> str:
        plain = self.precision is self.kv_precision
        return f"{self.precision}" if plain else f"{self.precision} with {self.kv_precision}"

    @property
    def computed_in(self) -> Precision:
        """Of activations and of everything that is not a quantised weight."""
        for each in (self.precision, self.kv_precision):
            if each in FULL_PRECISIONS:
                return each
        return Precision.BF16

    def runs_in(self, precisions: Collection[Precision]) -> bool:
        """Whether an engine that runs these runs it. Who makes int8 of weights makes it of a cache; never of a full
        precision another.
        """
        if self.kv_precision not in FULL_PRECISIONS:
            cached = self.kv_precision is Precision.INT8
        else:
            cached = self.precision not in FULL_PRECISIONS or self.kv_precision is self.precision
        return cached and {self.precision, self.kv_precision, self.computed_in} <= set(precisions)


def formats_of(model: Model) -> tuple[Format, ...]:
    """All that the model may be served in, in the order of its variants; then those that its layers may be mixed of."""
    variants = (Format(variant.precision, variant.cache_precision) for variant in model.variants)
    return tuple(dict.fromkeys((*variants, *_mixed(model))))


def measurable(model: Model) -> tuple[Format, ...]:
    """Of those, what an engine makes of the model's own weights: a quantised checkpoint's kernels are not known."""
    own = (
        Format(variant.precision, variant.cache_precision)
        for variant in model.variants
        if variant.precision in FULL_PRECISIONS or own_source(model, variant) is None
    )
    return tuple(dict.fromkeys((*own, *_mixed(model))))


def _mixed(model: Model) -> tuple[Format, ...]:
    """One KV cache serves all layers of a mix: that of the full precision which its other layers have."""
    if model.sensitivity is None:
        return ()
    own = [each.precision for each in model.variants if own_source(model, each) is None]
    served = [full for full in (Precision.FP32, Precision.BF16) if full in own]  # fp16 is as large as bf16
    known = [each for each in (*own, *model.sensitivity.precisions) if each in FULL_PRECISIONS]
    return tuple(
        Format(precision, full)
        for full in served or known[:1]
        for precision in model.sensitivity.precisions
        if precision not in FULL_PRECISIONS
    )
