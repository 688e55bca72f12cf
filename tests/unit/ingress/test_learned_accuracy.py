"""What was measured is remembered with the variant that it was measured of, and with no other."""

from uuid import UUID

from maveriq.contracts import (
    AccuracyMeasured,
    AccuracyProgressed,
    LayerSensitivity,
    Model,
    Precision,
    Provenance,
    Variant,
    VariantAccuracy,
)
from maveriq.contracts.accuracy import AccuracyRecord
from maveriq_ingress.accuracies import folded
from maveriq_ingress.learned_accuracy import with_accuracy

ID = UUID(int=5)
MODEL = Model(
    name="tiny",
    source="/models/tiny",
    variants=(
        Variant(precision=Precision.FP32, accuracy=1.0),
        Variant(precision=Precision.BF16),
        Variant(precision=Precision.INT8, source="/models/q8", accuracy=0.9),
    ),
)


def measured(*results: VariantAccuracy, model: Model = MODEL) -> AccuracyMeasured:
    return AccuracyMeasured(
        accuracy_id=ID, model=model, reference=Precision.FP32, variants=results, num_tokens=600
    )  # fmt: skip


BF16 = VariantAccuracy(variant="bf16", perplexity=12.5, agreement=0.98, relative=0.99)


def test_a_measured_variant_carries_its_accuracy_and_what_it_is_from() -> None:
    fp32, bf16, int8 = with_accuracy(MODEL, measured(BF16)).variants
    assert (bf16.accuracy, bf16.provenance) == (0.99, Provenance.MEASURED)
    assert "600 tokens" in bf16.evidence and "perplexity 12.5" in bf16.evidence and "98.0%" in bf16.evidence
    assert (fp32, int8) == (MODEL.variants[0], MODEL.variants[2])


def test_a_variant_that_could_not_be_measured_keeps_what_it_had() -> None:
    told = measured(VariantAccuracy(variant="int8", problem="int8: cannot be loaded"))
    assert with_accuracy(MODEL, told) == MODEL


def test_a_model_registered_anew_meanwhile_is_left_alone_where_it_differs() -> None:
    elsewhere = MODEL.model_copy(update={"source": "/models/other"})
    assert with_accuracy(elsewhere, measured(BF16)) == elsewhere
    requantised = Variant(precision=Precision.INT8, source="/models/q8-new")
    again = MODEL.model_copy(update={"variants": (*MODEL.variants[:2], requantised)})
    int8 = VariantAccuracy(variant="int8", perplexity=14.0, agreement=0.9, relative=0.8)
    assert with_accuracy(again, measured(int8, BF16)).variants[2] == requantised
    assert with_accuracy(again, measured(int8, BF16)).variants[1].accuracy == 0.99


def test_what_layers_lose_is_kept_with_the_model_until_it_is_measured_again_or_the_model_is_another() -> None:
    lost = LayerSensitivity(precisions=(Precision.FP32, Precision.INT8), layers=((0.0, 0.1),), evidence="a text")
    told = measured().model_copy(update={"sensitivity": lost})
    known = with_accuracy(MODEL, told)
    assert known.sensitivity == lost
    assert known.variants == MODEL.variants
    assert with_accuracy(known, measured(BF16)).sensitivity == lost, "a measurement of the variants says nothing of it"
    elsewhere = MODEL.model_copy(update={"source": "/models/other"})
    assert with_accuracy(elsewhere, told).sensitivity is None


def test_a_record_keeps_the_latest_of_each_variant_and_its_end() -> None:
    record = AccuracyRecord(accuracy_id=ID, model="tiny", variants=("fp32", "bf16"), max_tokens=600)
    for variant, done in (("fp32", 0), ("fp32", 600), ("bf16", 300)):
        news = AccuracyProgressed(accuracy_id=ID, variant=variant, num_done=done, num_tokens=600)
        record = folded(record, news)
    assert [(each.variant, each.num_done) for each in record.progress] == [("fp32", 600), ("bf16", 300)]
    ended = folded(record, measured(BF16))
    assert ended.finished and ended.results == (BF16,)
    assert folded(ended, AccuracyProgressed(accuracy_id=ID, variant="x", num_done=0, num_tokens=6)) == ended
