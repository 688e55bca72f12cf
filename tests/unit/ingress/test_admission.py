"""Which intents are admitted, and what a refused one is told."""

from uuid import uuid4

from maveriq.contracts import Admission, Fragment, Intent, IntentSubmitted, LayerSensitivity, Precision
from maveriq_ingress.admission import MAX_NAMES, admit, taken
from maveriq_ingress.fragments import FEW, MOST
from tests.fakes import ADMISSION, INTENT, MODEL


def submitted(model: str = "smol", *, dry_run: bool = False) -> IntentSubmitted:
    return IntentSubmitted(deployment_id=uuid4(), intent=Intent(model=model), dry_run=dry_run)


def test_an_intent_for_a_registered_model_is_admitted_with_the_model_resolved() -> None:
    assert admit(submitted(dry_run=True), {"smol": MODEL}) == Admission(intent=INTENT, model=MODEL, dry_run=True)


def test_what_is_free_goes_along_where_layers_may_be_mixed_and_asking_again_is_the_same_intent() -> None:
    measured = MODEL.model_copy(
        update={"sensitivity": LayerSensitivity(precisions=(Precision.INT8,), layers=((0.1,), (0.2,)))}
    )
    free = (Fragment(node="a", gpu="a/0", engine="torch", gpu_type="cpu-1t", free_bytes=5),)
    admitted = admit(submitted(), {"smol": measured}, free)
    assert isinstance(admitted, Admission)
    assert admitted.fragments == free
    assert taken(submitted(), admitted) is None
    for wanted in (submitted(), submitted(dry_run=True)):
        shown = admit(wanted, {"smol": MODEL}, free)
        assert isinstance(shown, Admission)
        assert (shown.fragments, shown.num_left_out) == (free, 0)


def nodes(count: int) -> list[Fragment]:
    return [Fragment(node=f"n{i}", gpu=f"n{i}/0", engine="torch", gpu_type="x", free_bytes=5) for i in range(count)]


def test_what_nothing_is_planned_over_goes_along_only_where_it_is_little() -> None:
    for count, carried in ((FEW, FEW), (FEW + 1, 0)):
        admitted = admit(submitted(), {"smol": MODEL}, nodes(count))
        assert isinstance(admitted, Admission)
        assert (len(admitted.fragments), admitted.num_left_out) == (carried, count - carried)


def test_an_admission_says_how_many_gpus_it_has_no_room_for() -> None:
    free = nodes(MOST + 3)
    admitted = admit(submitted(dry_run=True), {"smol": MODEL}, free)
    assert isinstance(admitted, Admission)
    assert (len(admitted.fragments), admitted.num_left_out) == (MOST, 3)


def test_an_unknown_model_is_refused_with_the_close_name_and_the_known_ones() -> None:
    found = admit(submitted("smoll"), {"smol": MODEL, "other": MODEL})
    assert not isinstance(found, Admission)
    assert found[0].field == "intent.model"
    assert "did you mean smol?" in found[0].remedy
    assert "other, smol" in found[0].remedy


def test_a_long_list_of_models_is_cut_in_the_remedy() -> None:
    found = admit(submitted("x"), {f"model-{n}": MODEL for n in range(MAX_NAMES + 5)})
    assert not isinstance(found, Admission)
    assert "and 5 more" in found[0].remedy


def test_with_no_model_registered_the_remedy_says_so() -> None:
    found = admit(submitted(), {})
    assert not isinstance(found, Admission)
    assert "no model is registered yet" in found[0].remedy


def test_asking_twice_for_the_same_is_no_conflict() -> None:
    assert taken(submitted(), ADMISSION) is None


def test_an_id_is_taken_by_the_intent_that_had_it_first() -> None:
    for other in (submitted("other"), submitted(dry_run=True)):
        fault = taken(other, ADMISSION)
        assert fault is not None
        assert fault.field == "deployment_id"
        assert fault.remedy == "choose a new UUID"
