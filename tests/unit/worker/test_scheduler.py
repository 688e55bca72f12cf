"""The scheduler against a machine that runs its steps literally and remembers every token by KV row and position."""

from dataclasses import dataclass, field
from itertools import count

from hypothesis import given, settings
from hypothesis import strategies as st

from maveriq.contracts import FinishReason
from maveriq_worker.scheduler import PREFILL_TOKENS, Scheduler
from maveriq_worker.torch_steps import Cancel, Choice, Emitted, SamplerSpec, Step, StepDone, Submit

GREEDY = SamplerSpec(temperature=0, top_p=1, seed=0, logprobs=None)
EOS = 7


def follow(tokens: list[int]) -> int:
    """The machine's model: the next token depends on every token before it, in order."""
    total = 0
    for token in tokens:
        total = (total * 31 + token + 1) % 1009
    return total % 97


def expected(submit: Submit) -> list[int]:
    tokens = list(submit.token_ids)
    while len(tokens) - len(submit.token_ids) < submit.max_tokens:
        tokens.append(follow(tokens))
        if tokens[-1] == EOS and not submit.ignore_eos:
            break
    return tokens[len(submit.token_ids) :]


def ask(key: int, prompt_tokens: int = 3, max_tokens: int = 5, ignore_eos: bool = True) -> Submit:
    token_ids = tuple((key * 13 + position) % 97 for position in range(prompt_tokens))
    return Submit(key, token_ids, max_tokens, ignore_eos, GREEDY)


@dataclass
class Machine:
    """Runs steps in the order of their launch, as the stages do; a step's tokens come back when asked for."""

    scheduler: Scheduler
    rows: dict[int, dict[int, int]] = field(default_factory=dict)
    open: set[int] = field(default_factory=set)
    in_flight: list[StepDone] = field(default_factory=list)
    answers: dict[int, list[int]] = field(default_factory=dict)
    reasons: dict[int, FinishReason] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)

    def launch(self) -> bool:
        step = self.scheduler.next_step()
        if step is None:
            return False
        self.steps.append(step)
        for move in step.moves:
            source = self.rows.get(move.source, {})
            self.rows[move.target] = {at: source[at] for at in range(move.num_tokens)}
        self.open |= {key for key, _ in step.opened}
        self.open -= set(step.closed)
        for number, (token_ids, start) in enumerate(zip(step.token_ids, step.starts, strict=True)):
            row = self.rows.setdefault(step.first_row + number, {})
            row |= {start + offset: token for offset, token in enumerate(token_ids)}
        self.in_flight.append(StepDone(step.group, tuple(self._choose(step, *each) for each in _picks(step))))
        return True

    def _choose(self, step: Step, key: int, row: int, last: int) -> Choice:
        assert key in self.open
        cached = self.rows[step.first_row + row]
        return Choice(key, follow([cached[at] for at in range(step.starts[row] + last + 1)]))

    def finish(self) -> tuple[Emitted, ...]:
        emitted = self.scheduler.done(self.in_flight.pop(0))
        for each in emitted:
            self.answers.setdefault(each.choice.key, []).append(each.choice.token_id)
            if each.finish_reason is not None:
                self.reasons[each.choice.key] = each.finish_reason
        return emitted

    def run(self) -> None:
        while self.launch() or self.in_flight:
            if self.in_flight:
                self.finish()


def _picks(step: Step) -> list[tuple[int, int, int]]:
    return [(pick.key, pick.row, pick.token) for pick in step.picks]


def scheduler(max_batch: int = 4, num_groups: int = 1) -> Scheduler:
    return Scheduler(max_batch=max_batch, num_groups=num_groups, eos_ids=(EOS,))


events = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), st.integers(1, 3 * PREFILL_TOKENS // 2) | st.integers(1, 12), st.integers(1, 9)),
        st.tuples(st.just("cancel"), st.integers(0, 12), st.just(0)),
        st.tuples(st.just("launch"), st.just(0), st.just(0)),
        st.tuples(st.just("finish"), st.just(0), st.just(0)),
    ),
    max_size=60,
)


@settings(deadline=None, max_examples=150)
@given(max_batch=st.integers(1, 7), num_groups=st.integers(1, 4), events=events, ignore_eos=st.booleans())
def test_every_answer_is_as_if_alone_whoever_joins_leaves_or_cancels(
    max_batch: int, num_groups: int, events: list[tuple[str, int, int]], ignore_eos: bool
) -> None:
    machine = Machine(scheduler(max_batch, num_groups))
    submitted: dict[int, Submit] = {}
    cancelled: set[int] = set()
    keys = count()
    for what, first, second in events:
        if what == "submit":
            submit = ask(next(keys), first, second, ignore_eos)
            submitted[submit.key] = submit
            machine.scheduler.submit(submit)
        elif what == "cancel":
            machine.scheduler.cancel(Cancel(first).key)
            cancelled |= {first} & set(submitted)
        elif what == "launch":
            machine.launch()
        elif machine.in_flight:
            machine.finish()
        assert machine.scheduler.num_active <= max_batch
    machine.run()
    for key, submit in submitted.items():
        answer = machine.answers.get(key, [])
        assert answer == expected(submit)[: len(answer)]
        assert key in machine.reasons or key in cancelled
        if key in machine.reasons:
            assert answer == expected(submit)
    assert (machine.scheduler.num_active, machine.scheduler.num_waiting) == (0, 0)


def test_all_slots_are_used_before_anyone_waits() -> None:
    machine = Machine(scheduler(max_batch=5, num_groups=3))
    for key in range(8):
        machine.scheduler.submit(ask(key))
    while machine.launch():
        pass
    assert (machine.scheduler.num_active, machine.scheduler.num_waiting) == (5, 3)


def test_two_requests_over_two_stages_are_two_micro_batches() -> None:
    machine = Machine(scheduler(num_groups=2))
    machine.scheduler.submit(ask(0))
    machine.scheduler.submit(ask(1))
    assert machine.launch() and machine.launch()
    assert {step.group for step in machine.steps} == {0, 1}
    assert not machine.launch()


def test_short_prompts_are_prefilled_in_one_step() -> None:
    machine = Machine(scheduler(max_batch=4))
    for key in range(4):
        machine.scheduler.submit(ask(key, prompt_tokens=10))
    machine.launch()
    assert len(machine.steps[0].token_ids) == 4


def test_a_short_prompt_is_not_padded_to_a_much_longer_one() -> None:
    machine = Machine(scheduler(max_batch=4))
    machine.scheduler.submit(ask(0, prompt_tokens=10))
    machine.scheduler.submit(ask(1, prompt_tokens=200))
    machine.launch()
    assert len(machine.steps[0].token_ids) == 1


def test_decoding_goes_on_between_the_chunks_of_a_long_prompt() -> None:
    machine = Machine(scheduler(max_batch=4))
    machine.scheduler.submit(ask(0, max_tokens=10))
    machine.launch()
    machine.finish()
    machine.scheduler.submit(ask(1, prompt_tokens=3 * PREFILL_TOKENS))
    for _ in range(6):
        machine.launch()
        machine.finish()
    widths = [len(step.token_ids[0]) for step in machine.steps[1:]]
    assert widths == [PREFILL_TOKENS, 1, PREFILL_TOKENS, 1, PREFILL_TOKENS, 1]


def test_an_end_of_sequence_ends_unless_it_is_ignored() -> None:
    machine = Machine(scheduler(max_batch=64))
    for key in range(40):
        machine.scheduler.submit(ask(key, max_tokens=60, ignore_eos=key % 2 == 0))
    machine.run()
    assert all(machine.reasons[key] is FinishReason.LENGTH for key in range(0, 40, 2))
    assert FinishReason.STOP in {machine.reasons[key] for key in range(1, 40, 2)}


def test_a_group_left_with_everything_shares_it_once_both_stand_still() -> None:
    machine = Machine(scheduler(max_batch=8, num_groups=2))
    for key in range(8):
        machine.scheduler.submit(ask(key, max_tokens=4 if key % 2 else 40))
    while machine.launch():
        pass
    first = {pick.key for pick in machine.steps[0].picks}
    for key in first:
        machine.scheduler.cancel(key)
    while machine.in_flight:
        machine.finish()
    machine.steps.clear()
    while machine.launch():
        pass
    assert sorted(len(step.token_ids) for step in machine.steps) == [2, 2]
