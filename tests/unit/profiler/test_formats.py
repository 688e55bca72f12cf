"""In which formats of weights and cache a model's cost is to be known."""

from maveriq.contracts import LayerSensitivity, Model, Precision, Variant
from maveriq_profiler.formats import Format, formats_of, measurable

FP32, BF16, INT8, INT4 = Precision.FP32, Precision.BF16, Precision.INT8, Precision.INT4
ON_CPU = (FP32, BF16, INT8, INT4)


def model(*variants: Variant, mixed: tuple[Precision, ...] = ()) -> Model:
    lost = LayerSensitivity(precisions=mixed, layers=((0.1,) * len(mixed),)) if mixed else None
    return Model(name="m", source="/m", variants=variants, sensitivity=lost)


def test_a_quantised_variant_keeps_the_cache_that_it_says_or_16_bits() -> None:
    variants = (Variant(precision=INT8), Variant(name="b", precision=INT8, kv_precision=FP32), Variant(precision=FP32))
    assert formats_of(model(*variants)) == (Format(INT8, BF16), Format(INT8, FP32), Format(FP32, FP32))


def test_layers_are_mixed_with_each_full_precision_that_the_model_is_served_in() -> None:
    fp16 = Precision.FP16
    usual = model(*(Variant(precision=each) for each in (FP32, BF16, fp16)), mixed=(FP32, INT8, INT4))
    assert formats_of(usual)[3:] == measurable(usual)[3:] == (
        Format(INT8, FP32), Format(INT4, FP32), Format(INT8, BF16), Format(INT4, BF16)
    )  # fmt: skip
    assert formats_of(model(Variant(precision=BF16), mixed=(FP32, INT4))) == (Format(BF16, BF16), Format(INT4, BF16))
    assert formats_of(model(Variant(precision=fp16), mixed=(INT4,)))[1:] == (Format(INT4, fp16),)
    pruned = Variant(name="pruned", precision=BF16, source="/p")
    assert formats_of(model(pruned, mixed=(FP32, INT4)))[1:] == (Format(INT4, FP32),)


def test_only_what_an_engine_makes_of_the_models_weights_can_be_measured() -> None:
    variants = (Variant(precision=INT8, source="/q8"), Variant(name="p", precision=BF16, source="/p"))
    assert measurable(model(*variants)) == (Format(BF16, BF16),)
    assert measurable(model(Variant(precision=INT4, source="/m"))) == (Format(INT4, BF16),)


def test_a_rig_runs_what_it_has_weights_and_arithmetic_for() -> None:
    assert Format(INT8, FP32).runs_in(ON_CPU) and Format(BF16, BF16).runs_in(ON_CPU)
    assert not Format(INT8, Precision.FP16).runs_in(ON_CPU)
    assert not Format(BF16, FP32).runs_in(ON_CPU)
    assert Format(INT8, INT8).runs_in(ON_CPU) and Format(FP32, INT8).runs_in(ON_CPU)
    assert not Format(FP32, INT4).runs_in(ON_CPU) and not Format(INT4, Precision.FP8).runs_in(ON_CPU)
    assert not Format(INT8, BF16).runs_in((BF16,))


def test_quantised_weights_are_computed_with_in_the_caches_format_or_16_bits() -> None:
    assert Format(INT4, FP32).computed_in is FP32
    assert Format(INT4, INT8).computed_in is BF16
    assert Format(FP32, INT8).computed_in is FP32
