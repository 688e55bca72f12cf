"""What a calibration does next, within its budget."""

from maveriq.contracts import Precision
from maveriq_profiler.agenda import Agenda
from maveriq_profiler.pool import Outcome
from maveriq_profiler.programme import Item, programme


def items(*expected_s: float) -> tuple[Item, ...]:
    whole = programme(
        engine="torch", on_cpu=True, free_bytes=2**50, precisions=(Precision.FP32,), max_pp=1, budget_s=float("inf")
    )
    return tuple(whole[n].model_copy(update={"key": f"m{n}", "expected_s": each}) for n, each in enumerate(expected_s))


def done(*numbers: int, problem: str = "") -> dict[str, Outcome]:
    return {f"m{n}": Outcome(cost_s=10.0, problem=problem) for n in numbers}


def keys(agenda: Agenda) -> list[str]:
    return [item.key for item in agenda.next_items]


def test_what_was_run_is_not_run_again_and_the_order_is_kept() -> None:
    assert keys(Agenda(items(10, 10, 10), done(1), 10, 100)) == ["m0", "m2"]


def test_only_what_the_budget_still_allows_is_run() -> None:
    agenda = Agenda(items(10, 10, 50, 15), done(0, 1), 20, 40)
    assert keys(agenda) == ["m3"]
    assert (agenda.num_done, agenda.num_planned) == (2, 3)


def test_the_first_two_are_run_whatever_the_budget_says() -> None:
    agenda = Agenda(items(10, 10, 1), {}, 0, 1)
    assert keys(agenda) == ["m0", "m1", "m2"]
    assert agenda.num_planned == 2
    assert keys(Agenda(items(10, 10, 1), done(0, 1), 20, 1)) == []


def test_the_end_says_what_is_left_and_why() -> None:
    assert Agenda(items(10, 10), done(0, 1), 20, 40).left_undone == ""
    assert "1 models left" in Agenda(items(10, 10, 10), done(0, 1), 20, 20).left_undone
    assert "out of memory" in Agenda(items(10, 10), done(0) | done(1, problem="out of memory"), 20, 90).left_undone
    assert "more memory" in Agenda((), {}, 0, 90).left_undone
