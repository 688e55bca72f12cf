"""Pipelines of a model over the fragments that there are, by the law. Pure: laws and fragments in, pipelines out.

Of fragments of a type, those with most room come first: no other choice of as many of them fits more. Types follow each
other in every order; in the first block each different fragment leads once, as it holds the embedding, and in the last
block each closes once, as it holds lm_head.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations, product
from math import ceil, inf

from maveriq.contracts import Precision, Workload
from maveriq.contracts.quantizing import Aim
from maveriq_planner.quantizing.layer_law import LayerLaw, Parts, Room
from maveriq_planner.quantizing.pipeline import Array, Pipeline, Stage, Weights

_MS_PER_HOUR = 3.6e6


@dataclass(frozen=True, slots=True)
class Fragment:
    name: str
    gpu_type: str
    free_bytes: float
    price_per_hour: float = 0.0


@dataclass(frozen=True, slots=True)
class Wish:
    """What is asked of one pipeline."""

    workload: Workload
    num_requests: int
    """Held at the same time: all of a batch, or as many as are served together."""
    aim: Aim = Aim.LATENCY
    theta: float = 0.0
    ordered: bool = False
    """The fragments as they are given, all of them."""
    max_stages: int = 8
    min_stages: int = 1
    uniform_stages: bool = False


Laws = Mapping[tuple[str, Precision], LayerLaw]
"""By GPU type and precision."""


def pipelines_over(
    fragments: Sequence[Fragment], laws: Laws, precisions: Sequence[Precision], sensitivity: Array, wish: Wish
) -> list[Pipeline]:
    """Over every order and micro-batch; GPU types of which no law speaks are left out.

    Args:
        sensitivity: [L, B], columns as `precisions`.
    """
    known = [f for f in fragments if any((f.gpu_type, precision) in laws for precision in precisions)]
    if wish.ordered and len(known) < len(fragments):
        return []
    found: list[Pipeline] = []
    costs = _Costs(laws, tuple(precisions), wish, {}, {}, {})
    for order in orders_of(known, wish):
        for prefill, decode in product(prefill_batches(wish), decode_batches(wish, len(order))):
            if decode > costs.max_batch(order):
                continue
            stages = tuple(costs.stage(order, place, prefill, decode) for place in range(len(order)))
            weights = weights_of(order, wish, prefill, decode)
            found.append(Pipeline(stages, weights, sensitivity, prefill, decode, wish.uniform_stages))
    return found


def orders_of(fragments: Sequence[Fragment], wish: Wish) -> Iterator[tuple[Fragment, ...]]:
    if wish.ordered:
        yield tuple(fragments)
        return
    by_type: dict[str, list[Fragment]] = {}
    for fragment in sorted(fragments, key=lambda f: (-f.free_bytes, f.name)):
        by_type.setdefault(fragment.gpu_type, []).append(fragment)
    for numbers in product(*(range(len(block) + 1) for block in by_type.values())):
        blocks = [tuple(block[:n]) for block, n in zip(by_type.values(), numbers, strict=True) if n]
        if wish.min_stages <= sum(numbers) <= wish.max_stages:
            for order in permutations(blocks):
                yield from _with_ends(order)


def prefill_batches(wish: Wish) -> list[int]:
    return sorted({*(2**k for k in range(wish.num_requests.bit_length())), wish.num_requests})


def decode_batches(wish: Wish, num_stages: int) -> list[int]:
    """All at once, one micro-batch a stage, and half and double as many."""
    groups = {1, 2, num_stages, 2 * num_stages}
    return sorted({ceil(wish.num_requests / m) for m in groups})


def weights_of(order: Sequence[Fragment], wish: Wish, prefill: int, decode: int) -> Weights:
    prompts, groups = ceil(wish.num_requests / prefill), ceil(wish.num_requests / decode)
    steps = max(0, wish.workload.output_tokens - 1)
    if wish.aim is Aim.THROUGHPUT:
        return Weights(prompts, 0.0, prefill_sum=0.0, decode_sum=0.0, steps=steps, groups=groups, theta=wish.theta)
    price = sum(fragment.price_per_hour for fragment in order) / _MS_PER_HOUR
    return Weights(prefill_longest=prompts - 1, decode_longest=0.0, decode_sum=0.0, steps=steps, groups=groups,
                   theta=wish.theta, scale=price if wish.aim is Aim.PRICE else 1.0)  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Costs:
    """What laws say, each asked once."""

    laws: Laws
    precisions: tuple[Precision, ...]
    wish: Wish
    prefills: dict[tuple[str, Precision, int], Parts]
    decodes: dict[tuple[str, Precision, int], Parts]
    rooms: dict[tuple[str, Precision, int, int], Room]

    def max_batch(self, order: Sequence[Fragment]) -> int:
        """That every stage has a precision for."""
        laws = self.laws
        return min(max(law.max_batch for (gpu, _), law in laws.items() if gpu == f.gpu_type) for f in order)

    def stage(self, order: Sequence[Fragment], place: int, prefill: int, decode: int) -> Stage:
        fragment = order[place]
        speaking = [p for p in self.precisions if (fragment.gpu_type, p) in self.laws]
        prompts = {p: self._prefill(fragment.gpu_type, p, prefill) for p in speaking}
        steps = {p: self._decode(fragment.gpu_type, p, decode) for p in speaking}
        rooms = {p: self._room(fragment.gpu_type, p, len(order), prefill) for p in speaking}
        held = max(self._held(room, place, len(order)) for room in rooms.values())
        last = place == len(order) - 1
        most = max(rooms.values(), key=lambda room: room.layer).layer
        return Stage(
            gpu=fragment.name,
            capacity_bytes=fragment.free_bytes - held,
            layer_bytes=tuple(rooms[p].layer if p in rooms else most for p in self.precisions),
            prefill_ms=tuple(prompts[p].layer if p in prompts else inf for p in self.precisions),
            decode_ms=tuple(steps[p].layer if p in steps else inf for p in self.precisions),
            # Sending on is not hidden behind computing: engines send when a stage is done.
            prefill_ends_ms=max(part.ends if last else part.hop for part in prompts.values()),
            decode_ends_ms=max(part.ends if last else part.hop for part in steps.values()),
        )

    @staticmethod
    def _held(room: Room, place: int, num_stages: int) -> float:
        """Beside layers: the runtime, the embedding on the first, lm_head on the last; one matrix if both are here."""
        first, last = place == 0, place == num_stages - 1
        return room.runtime + room.first * first + room.last * last - room.tied_saving * (first and last)

    def _prefill(self, gpu_type: str, precision: Precision, batch: int) -> Parts:
        key = (gpu_type, precision, batch)
        if key not in self.prefills:
            self.prefills[key] = self.laws[gpu_type, precision].prefill(batch, self.wish.workload)
        return self.prefills[key]

    def _decode(self, gpu_type: str, precision: Precision, batch: int) -> Parts:
        key = (gpu_type, precision, batch)
        if key not in self.decodes:
            law = self.laws[gpu_type, precision]
            parts = law.decode(batch, self.wish.workload)
            self.decodes[key] = parts if batch <= law.max_batch else Parts(inf, parts.ends, parts.hop)
        return self.decodes[key]

    def _room(self, gpu_type: str, precision: Precision, num_stages: int, prefill: int) -> Room:
        key = (gpu_type, precision, num_stages, prefill)
        if key not in self.rooms:
            law = self.laws[gpu_type, precision]
            self.rooms[key] = law.room(num_stages, self.wish.num_requests, prefill, self.wish.workload)
        return self.rooms[key]


def _with_ends(blocks: Sequence[tuple[Fragment, ...]]) -> Iterator[tuple[Fragment, ...]]:
    """Each different fragment of the first block first, and of the last block last."""
    seen: set[tuple[tuple[str, float], ...]] = set()
    for first in _led(blocks[0]):
        for last in _led(blocks[-1]) if len(blocks) > 1 else _led(first[1:]):
            head = first if len(blocks) > 1 else first[:1]
            order = (*head, *(f for block in blocks[1:-1] for f in block), *last[::-1])
            key = tuple((f.gpu_type, f.free_bytes) for f in order)
            if key not in seen:
                seen.add(key)
                yield order


def _led(block: tuple[Fragment, ...]) -> Iterator[tuple[Fragment, ...]]:
    if not block:
        yield ()
    for place, leader in enumerate(block):
        yield (leader, *block[:place], *block[place + 1 :])
