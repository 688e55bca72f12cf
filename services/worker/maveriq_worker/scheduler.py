"""Pure: which request gets which decode slot, and what the next step of each micro-batch is.

The slots are divided into groups, one for each stage, so that every stage has a micro-batch to work on. Within a
group the occupied rows are always a prefix, decoding rows first: a step is then one view of the KV cache. A request
that leaves is replaced by the last row, which the stages copy (`Move`) before the group's next step.
"""

from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field

from maveriq.contracts import FinishReason
from maveriq_worker.torch_steps import Choice, Emitted, Move, Pick, SamplerSpec, Step, StepDone, Submit

PREFILL_TOKENS = 512
"""Prompt tokens of one step, so that a long prompt delays those who decode by a chunk of it, not by all of it."""
PADDING_ALLOWED = 1.25
"""Prompts are prefilled together while the padded tokens stay below this multiple of their own."""


@dataclass(slots=True, eq=False)
class _Sequence:
    submit: Submit
    num_cached: int = 0
    """Tokens whose keys and values are in the cache, those of the step in flight included."""
    last_token: int = 0
    num_output: int = 0
    cancelled: bool = False


@dataclass(slots=True, eq=False)
class _Group:
    number: int
    first_row: int
    capacity: int
    rows: list[_Sequence] = field(default_factory=list[_Sequence])
    num_decoding: int = 0
    """The first of `rows`; the others are one batch of prompts under way."""
    in_flight: bool = False
    decode_next: bool = False
    """Decoding and prefilling take turns."""
    launched: int = 0
    """Number of its last step: the group that waited longest goes first."""

    @property
    def prefilling(self) -> list[_Sequence]:
        return self.rows[self.num_decoding :]


class Scheduler:
    """State of one replica's requests. One step of each group may be in flight at a time; stages run them in order."""

    def __init__(self, *, max_batch: int, num_groups: int, eos_ids: Collection[int]) -> None:
        num_groups = min(num_groups, max_batch)
        bounds = [max_batch * number // num_groups for number in range(num_groups + 1)]
        self._groups = [
            _Group(number, bounds[number], bounds[number + 1] - bounds[number]) for number in range(num_groups)
        ]
        self._eos_ids = frozenset(eos_ids)
        self._waiting: deque[_Sequence] = deque()
        self._moves: list[Move] = []
        self._opened: list[tuple[int, SamplerSpec]] = []
        self._closed: list[int] = []
        self._launches = 0

    @property
    def num_active(self) -> int:
        return sum(len(group.rows) for group in self._groups)

    @property
    def num_busy(self) -> int:
        """Groups that have requests: no more steps than these are under way at a time."""
        return sum(bool(group.rows) for group in self._groups)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    def submit(self, submit: Submit) -> None:
        self._waiting.append(_Sequence(submit))

    def cancel(self, key: int) -> None:
        """Forget a request. One that is in a step leaves when that is done; an unknown one has just finished."""
        for sequence in self._waiting:
            if sequence.submit.key == key:
                self._waiting.remove(sequence)
                return
        for group in self._groups:
            for index, sequence in enumerate(group.rows):
                if sequence.submit.key == key:
                    sequence.cancelled = True
                    if not group.in_flight:
                        self._leave(group, index)
                    return

    def next_step(self) -> Step | None:
        """A step that may start now; None where every group is in flight or has nothing to do."""
        idle = sorted((group for group in self._groups if not group.in_flight), key=lambda group: group.launched)
        self._balance(idle)
        for group in idle:
            self._admit(group)
            if group.rows:
                return self._launch(group)
        return None

    def prompt_tokens(self, step: Step) -> int | None:
        """Of all requests of a decode step under way; None: it reads prompts."""
        group = self._groups[step.group]
        if step.first_row - group.first_row >= group.num_decoding:
            return None
        return sum(len(sequence.submit.token_ids) for sequence in group.rows[: group.num_decoding])

    def done(self, done: StepDone) -> tuple[Emitted, ...]:
        """Take in what a step brought; those who finish leave."""
        group = self._groups[done.group]
        group.in_flight = False
        sequences = {sequence.submit.key: sequence for sequence in group.rows}
        if any(sequences[choice.key] in group.prefilling for choice in done.choices):
            group.num_decoding = len(group.rows)
        emitted = [
            self._took(sequences[choice.key], choice) for choice in done.choices if not sequences[choice.key].cancelled
        ]
        finished = {each.choice.key for each in emitted if each.finish_reason is not None}
        for index in reversed(range(len(group.rows))):
            if group.rows[index].cancelled or group.rows[index].submit.key in finished:
                self._leave(group, index)
        return tuple(emitted)

    def _took(self, sequence: _Sequence, choice: Choice) -> Emitted:
        sequence.last_token = choice.token_id
        sequence.num_output += 1
        if choice.token_id in self._eos_ids and not sequence.submit.ignore_eos:
            return Emitted(choice, FinishReason.STOP)
        return Emitted(choice, FinishReason.LENGTH if sequence.num_output >= sequence.submit.max_tokens else None)

    def _leave(self, group: _Group, index: int) -> None:
        """Take a row out and close the gap: the last decoding row fills it, the last of all fills that one's place."""
        self._closed.append(group.rows[index].submit.key)
        if index < group.num_decoding:
            group.num_decoding -= 1
            self._fill(group, index, group.num_decoding)
            index = group.num_decoding
        self._fill(group, index, len(group.rows) - 1)
        group.rows.pop()

    def _fill(self, group: _Group, target: int, source: int) -> None:
        if target != source:
            group.rows[target] = group.rows[source]
            num_tokens = group.rows[source].num_cached
            self._moves.append(Move(group.first_row + source, group.first_row + target, num_tokens))

    def _balance(self, idle: list[_Group]) -> None:
        """Groups that stand still together share what they decode: with one empty group a stage would have no work."""
        fullest = max(idle, key=lambda group: group.num_decoding, default=None)
        for group in idle:
            while (
                fullest is not None
                and not group.prefilling
                and not fullest.prefilling
                and len(group.rows) < group.capacity
                and fullest.num_decoding - group.num_decoding >= 2
            ):
                sequence = fullest.rows.pop()
                source, target = fullest.first_row + len(fullest.rows), group.first_row + len(group.rows)
                self._moves.append(Move(source, target, sequence.num_cached))
                group.rows.append(sequence)
                fullest.num_decoding -= 1
                group.num_decoding += 1

    def _admit(self, group: _Group) -> None:
        """Give rows to those who waited longest, as many as this group's fair share and one step can take."""
        if group.prefilling:
            return
        fair_share = -(-(self.num_active + self.num_waiting) // len(self._groups))
        free = min(group.capacity, fair_share) - len(group.rows)
        longest, total = 0, 0
        while self._waiting and free > len(group.prefilling):
            num_tokens = len(self._waiting[0].submit.token_ids)
            longest, total = max(longest, num_tokens), total + num_tokens
            padded = longest * (len(group.prefilling) + 1)
            if group.prefilling and (padded > PREFILL_TOKENS or padded > PADDING_ALLOWED * total):
                return
            sequence = self._waiting.popleft()
            self._opened.append((sequence.submit.key, sequence.submit.sampler))
            group.rows.append(sequence)

    def _launch(self, group: _Group) -> Step:
        decode = not group.prefilling or (group.num_decoding > 0 and group.decode_next)
        group.decode_next = not decode and group.num_decoding > 0
        group.in_flight = True
        self._launches += 1
        group.launched = self._launches
        first_row = group.first_row if decode else group.first_row + group.num_decoding
        rows = group.rows[: group.num_decoding] if decode else group.prefilling
        starts = tuple(sequence.num_cached for sequence in rows)
        token_ids, picks = _decode_input(rows) if decode else _prefill_input(rows)
        step = Step(
            group.number, first_row, token_ids, starts, picks,
            tuple(self._moves), tuple(self._opened), tuple(self._closed),
        )  # fmt: skip
        self._moves, self._opened, self._closed = [], [], []
        return step


def _decode_input(rows: list[_Sequence]) -> tuple[tuple[tuple[int, ...], ...], tuple[Pick, ...]]:
    for sequence in rows:
        sequence.num_cached += 1
    picks = tuple(Pick(sequence.submit.key, row, 0) for row, sequence in enumerate(rows))
    return tuple((sequence.last_token,) for sequence in rows), picks


def _prefill_input(rows: list[_Sequence]) -> tuple[tuple[tuple[int, ...], ...], tuple[Pick, ...]]:
    """Several prompts fit into one step by `_admit`; a single one may take more than one."""
    start = rows[0].num_cached
    pieces = [sequence.submit.token_ids[start : start + PREFILL_TOKENS] for sequence in rows]
    width = max(len(piece) for piece in pieces)
    picks: list[Pick] = []
    for row, (sequence, piece) in enumerate(zip(rows, pieces, strict=True)):
        sequence.num_cached += len(piece)
        if sequence.num_cached == len(sequence.submit.token_ids):
            picks.append(Pick(sequence.submit.key, row, len(piece) - 1))
    return tuple(piece + (0,) * (width - len(piece)) for piece in pieces), tuple(picks)
