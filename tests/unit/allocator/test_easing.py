"""What a deployment that does not fit is offered: the floor that mixed precisions keep over what was free."""

from maveriq.contracts import LayerSensitivity, PlanComputed, Precision, Rejection
from maveriq_allocator.easing import eased, in_words
from tests.unit.allocator.plans import candidate, computed, planned


def missing(accuracy: float | None, constraint: str = "min_accuracy", variant: str = "mixed") -> Rejection:
    lost = candidate()
    configuration = lost.configuration.model_copy(update={"variant": variant})
    return Rejection(
        configuration=configuration, prediction=lost.prediction, constraint=constraint, wanted=0.9999,
        predicted=accuracy,
    )  # fmt: skip


def refused(*rejected: Rejection, plan: PlanComputed | None = None) -> PlanComputed:
    asked = plan or computed(candidate(), min_accuracy=0.9999)
    return asked.model_copy(update={"plan": asked.plan.model_copy(update={"rejected": rejected})})


def test_the_best_floor_that_mixed_precisions_keep_is_offered() -> None:
    (offer,) = eased(refused(missing(0.97), missing(0.99927)))
    assert (offer.constraint, offer.wanted, offer.offered) == ("min_accuracy", 0.9999, 0.9992)
    assert offer.intent.min_accuracy == 0.9992
    assert ". Mixed precisions would fit with min_accuracy 0.9992. Planned are requests of up to " in in_words(
        refused(), (offer,)
    )


def test_nothing_is_offered_that_would_not_fit_either() -> None:
    """Variants of the model are uniform: nobody looked whether they fit. Without a floor none is lowered."""
    assert eased(refused(missing(0.99, variant="fp16"), missing(0.99, "slo.ttft_ms"), missing(None))) == ()
    assert eased(refused(missing(0.99), plan=computed(candidate()))) == ()
    split = computed(planned((10, 4), (10, 4)), min_accuracy=0.9999)
    assert eased(refused(missing(0.99), plan=split)) == ()
    assert eased(refused(missing(0.99).model_copy(update={"replicas": 2}))) == ()


def test_a_model_whose_layers_were_never_measured_is_told_how_they_are() -> None:
    assert "maveriq accuracy small --layers TEXT" in in_words(refused(), ())
    asked = refused()
    known = LayerSensitivity(precisions=(Precision.INT8,), layers=((0.1,),))
    measured = asked.admission.model.model_copy(update={"sensitivity": known})
    named = asked.admission.intent.model_copy(update={"precisions": (Precision.FP32,)})
    for changed in ({"model": measured}, {"intent": named}):
        other = asked.model_copy(update={"admission": asked.admission.model_copy(update=changed)})
        assert "accuracy" not in in_words(other, ())
