"""What a replica says of its passes: few kinds, medians, and nothing that the law's times cannot be compared with."""

from maveriq.contracts import ServedTime
from maveriq_worker.pass_clock import ALONE_EVERY_S, PassClock
from maveriq_worker.timings import MAX_KINDS, Passed, SoloClock, Timings
from maveriq_worker.torch_steps import Pick, Step


def decoding(ms: float, batch: int = 1, prompt: float = 100, answer: float = 20) -> Passed:
    return Passed(False, batch, prompt, answer, ms)


def test_a_kind_is_told_as_the_median_of_its_passes_and_their_mean_lengths() -> None:
    timings = Timings()
    for ms, answer in ((5.0, 10), (50.0, 12), (6.0, 14)):
        timings.add(decoding(ms, batch=2, answer=answer))
    timings.add(Passed(True, 2, 64, 1, 9.0))
    assert timings.take() == (
        ServedTime(batch=2, input_tokens=100, output_tokens=12, decode_ms=6.0, count=3),
        ServedTime(batch=2, input_tokens=64, output_tokens=1, prefill_ms=9.0, count=1),
    )


def test_what_was_told_is_forgotten_and_nothing_is_told_when_nothing_ran() -> None:
    timings = Timings()
    timings.add(decoding(5.0))
    assert len(timings.take()) == 1
    assert timings.take() == ()


def test_short_and_long_contexts_are_kinds_of_their_own() -> None:
    timings = Timings()
    for prompt in (16, 64, 1024):
        timings.add(decoding(prompt / 10, prompt=prompt, answer=1))
    assert sorted(time.input_tokens for time in timings.take()) == [16, 64, 1024]


def test_however_many_kinds_there_are_few_are_told_and_those_are_the_most_frequent() -> None:
    timings = Timings()
    for batch in range(1, 2000):
        timings.add(decoding(1.0, batch=batch))
    for _ in range(1000):
        timings.add(decoding(1.0, batch=7))
    told = timings.take()
    assert len(told) == MAX_KINDS
    assert (told[0].batch, told[0].count) == (7, 1001)


def step(
    *, group: int = 0, starts: tuple[int, ...] = (0,), width: int = 1, picks: bool = True, first_row: int = 0
) -> Step:
    token_ids = tuple((1,) * width for _ in starts)
    chosen = tuple(Pick(key, key, 0) for key in range(len(starts))) if picks else ()
    return Step(group, first_row, token_ids, starts, chosen)


def test_a_decode_step_is_told_with_its_requests_mean_lengths() -> None:
    clock = PassClock()
    clock.launched(step(starts=(10, 30)), 8 + 20, 1.0)
    assert clock.done(0, 1.5) == Passed(False, 2, 14.0, 7.0, 500.0)


def test_prompts_read_together_are_told_with_what_they_are_padded_to() -> None:
    clock = PassClock()
    clock.launched(step(starts=(0, 0, 0), width=12), None, 1.0)
    assert clock.done(0, 1.25) == Passed(True, 3, 12, 1, 250.0)


def test_steps_that_overlap_in_a_pipeline_are_not_told() -> None:
    clock = PassClock()
    clock.launched(step(group=0, starts=(5,)), 5, 1.0)
    clock.launched(step(group=1, starts=(5,)), 5, 1.1)
    assert clock.done(0, 2.0) is None
    clock.launched(step(group=0, starts=(6,)), 5, 2.0)
    assert clock.done(1, 3.0) is None
    assert clock.done(0, 4.0) is None
    clock.launched(step(group=0, starts=(7,)), 5, 4.0)
    assert clock.done(0, 5.0) is not None


def test_a_pipeline_under_load_runs_a_step_alone_now_and_then_and_tells_it() -> None:
    """Two micro-batches of steps of 2 s: each is launched as soon as the clock lets it, and done 2 s later."""
    clock, now_s, told, waited = PassClock(), 0.0, list[Passed](), 0
    flying: list[tuple[float, int]] = []
    while now_s < 100:
        for group in (0, 1):
            if all(group != other for _, other in flying):
                if clock.holds(now_s):
                    waited += 1
                else:
                    clock.launched(step(group=group, starts=(5,)), 5, now_s)
                    flying.append((now_s + 2 + group / 10, group))
        (now_s, done), *flying = sorted(flying)
        passed = clock.done(done, now_s)
        told += [passed] if passed is not None else []
    assert 3 <= len(told) <= 100 / ALONE_EVERY_S
    assert all(2000 <= passed.ms <= 2101 for passed in told)
    assert waited < 20


def test_one_stage_is_never_held_up() -> None:
    clock = PassClock()
    for second in range(100):
        assert not clock.holds(float(second))
        clock.launched(step(starts=(5,)), 5, float(second))
        assert clock.done(0, second + 0.5) is not None


def test_a_prompt_of_several_steps_is_told_once_from_its_first_to_its_last() -> None:
    clock = PassClock()
    clock.launched(step(width=512, picks=False), None, 1.0)
    assert clock.done(0, 2.0) is None
    clock.launched(step(starts=(512,), width=100), None, 2.0)
    assert clock.done(0, 2.5) == Passed(True, 1, 612, 1, 1500.0)


def test_a_prompt_that_others_interrupt_is_not_told_and_neither_is_what_interrupts_it() -> None:
    clock = PassClock()
    clock.launched(step(first_row=1, width=512, picks=False), None, 1.0)
    clock.done(0, 1.1)  # of a GPU that may still be reading
    clock.launched(step(starts=(9,)), 5, 1.1)
    assert clock.done(0, 2.0) is None
    clock.launched(step(first_row=1, starts=(512,), width=100), None, 2.0)
    assert clock.done(0, 2.5) is None
    clock.launched(step(starts=(10,)), 5, 2.5)
    assert clock.done(0, 2.6) is not None


def test_a_request_alone_is_told_by_its_first_token_and_its_mean_step() -> None:
    clock = SoloClock(1.0)
    assert clock.produced(1, 40, 1.5, last=False) == Passed(True, 1, 40, 1, 500.0)
    assert clock.produced(1, 40, 1.625, last=False) is None
    assert clock.produced(3, 40, 2.0, last=True) == Passed(False, 1, 40, 2.5, 125.0)


def test_an_answer_of_a_few_tokens_tells_no_step() -> None:
    clock = SoloClock(1.0)
    clock.produced(1, 40, 1.5, last=False)
    assert clock.produced(1, 40, 1.6, last=True) is None
