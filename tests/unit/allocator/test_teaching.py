"""What a failure for memory teaches: bounded, once a placement, and to those that are alike."""

from maveriq.contracts import Placement, Stage
from maveriq_allocator.teaching import BOUND, Lesson, learned, lesson_key, taught
from tests.unit.allocator.plans import MODEL, candidate, computed, memory


def failed(token: str, reserved: int = 100) -> Placement:
    stages = (
        Stage(gpus=("a/0",), num_layers=4, reserved_bytes=reserved),
        Stage(gpus=("a/1",), num_layers=4, reserved_bytes=reserved // 2),
    )
    return Placement(replica=0, token=token, node="a", model=MODEL, candidate=candidate(pp=2), stages=stages)


def test_each_failure_raises_the_estimate_by_a_tenth_of_the_largest_stage() -> None:
    first = learned(None, failed("t1"))
    assert first.extra_bytes == 10
    assert learned(first, failed("t2", reserved=110)).extra_bytes == 21


def test_the_same_failure_teaches_once() -> None:
    first = learned(None, failed("t1"))
    assert learned(first, failed("t1")) == first


def test_no_number_of_failures_raises_it_above_its_bound() -> None:
    lesson = Lesson(extra_bytes=0)
    for number in range(40):
        lesson = learned(lesson, failed(f"t{number}", reserved=100 + lesson.extra_bytes))
    assert lesson.extra_bytes == BOUND * 100


def test_alike_candidates_are_raised_and_others_are_not() -> None:
    alike, other = candidate(pp=3, stage=memory(runtime=5)), candidate(gpu_type="L4", stage=memory(runtime=5))
    lessons = {lesson_key(MODEL, candidate()): Lesson(extra_bytes=7)}
    raised = taught(computed(alike, other), lessons).plan.candidates
    assert [each.memory.runtime_bytes for each in raised] == [12, 5]
    assert taught(computed(alike), {}) == computed(alike)
