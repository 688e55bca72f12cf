"""Uneven pipeline stages for fragmented memory. Pure: one node's fragments in, stages out, or what was short.

The rules, in order: it fits; the ranks of each stage reach one another over NVLink, else over that and PCIe switches,
where any such placement fits; least latency, which counts only where GPU types differ in speed, because a request
passes through all layers whatever GPU each is on; least cost: the bytes that stay free on the GPUs taken, or what the
strategy prefers; stages as even as the GPUs taken allow.

Exact (`tests/unit/allocator` holds it to brute force), with three bounds. Of more than `MAX_FRAGMENTS` GPUs of one type
only the richest are looked at, and of more than `selection.MAX_STATES` choices only those that cut one stage after the
other: it still fits if it can, and `Packing.is_exact` says that a cheaper choice may have been left out. What cannot
join the ranks of every stage is asked of none.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum

import numpy as np

from maveriq.contracts import Stage, StageMemory
from maveriq_allocator.evenness import evenest, split
from maveriq_allocator.islands import islands
from maveriq_allocator.mixing import Mixture, mix
from maveriq_allocator.selection import Block, Row, Selection
from maveriq_allocator.strategies import Preference

MAX_FRAGMENTS = 32  # of one node and type: declared CPU devices, and pools of nodes, can be more
NS_PER_MS = 1_000_000


@dataclass(frozen=True, slots=True)
class Fragment:
    """Free bytes of one GPU."""

    gpu: str
    gpu_type: str
    free_bytes: int
    utilisation: float = 0.0
    """Share of the last two minutes in which it was busy."""
    linked: frozenset[str] = frozenset()
    """GPUs that it reaches over NVLink."""
    near: frozenset[str] = frozenset()
    """GPUs that it reaches through PCIe switches alone."""
    node: str = ""
    """'': that of all others asked about."""


class Joined(IntEnum):
    """By what all ranks of each stage reach one another; the least is best."""

    NVLINK = 0
    """Also where there is one rank."""
    SWITCHES = 1
    """Of PCIe, or NVLink."""
    ANYHOW = 2

    def reach(self, fragment: Fragment) -> frozenset[str]:
        return fragment.linked if self is Joined.NVLINK else fragment.linked | fragment.near


@dataclass(frozen=True, slots=True)
class Packing:
    """One replica on one node's fragments."""

    stages: tuple[Stage, ...]
    latency_ms: float | None = None
    """Of all layers, one after the other; None: speeds were not told."""
    cost: int = 0
    """Of the GPUs taken, as the strategy counts it."""
    joined: Joined = Joined.NVLINK
    is_exact: bool = True
    """All fragments, and all ways to choose among them, were looked at."""


@dataclass(frozen=True, slots=True)
class Shortfall:
    """Why a replica does not fit."""

    reason: str


def pack(
    memory: StageMemory, num_layers: int, *, pp: int, tp: int, fragments: Sequence[Fragment],
    speeds: Mapping[str, float] | None = None, preference: Preference | None = None, most_layers: int | None = None,
) -> Packing | Shortfall:  # fmt: skip
    """Stages for one replica on `fragments`: of one node, or of several where the engine spans nodes.

    Args:
        speeds: ms per layer by GPU type; None: all are equally fast.
        most_layers: of one stage; None: no limit.
    """
    if pp > num_layers:
        return Shortfall(f"{num_layers} layers cannot make {pp} stages")
    if len(fragments) < pp * tp:
        return Shortfall(f"{pp * tp} GPUs needed, {len(fragments)} there")
    richest = _richest(fragments, pp, tp)
    for joined in _joins(richest, tp):
        bench = _Bench(richest, tp, speeds, preference or Preference(), joined)
        packing = bench.packing(memory, num_layers, pp, num_layers if most_layers is None else most_layers)
        if packing is not None:
            return replace(packing, is_exact=packing.is_exact and len(richest) == len(fragments))
    return Shortfall(f"{num_layers} layers and both ends do not fit the {pp * tp} largest fragments")


def _joins(fragments: Sequence[Fragment], tp: int) -> Iterator[Joined]:
    """What may join all ranks, the best first."""
    if tp == 1:
        yield Joined.NVLINK
        return
    for joined in (Joined.NVLINK, Joined.SWITCHES):
        if any(len(joined.reach(fragment)) >= tp - 1 for fragment in fragments):
            yield joined
    yield Joined.ANYHOW


def _richest(fragments: Sequence[Fragment], pp: int, tp: int) -> list[Fragment]:
    """Those that are looked at, richest first."""
    kept: list[Fragment] = []
    seen: Counter[tuple[str, str]] = Counter()
    for fragment in sorted(fragments, key=lambda f: (-f.free_bytes, f.gpu)):
        key = (fragment.gpu_type, fragment.node if tp > 1 else "")
        seen[key] += 1
        if seen[key] <= max(MAX_FRAGMENTS, pp * tp):
            kept.append(fragment)
    return kept


class _Bench:
    """The fragments in the order in which blocks are cut from them: by speed, by row, poorest first."""

    def __init__(
        self, fragments: Sequence[Fragment], tp: int, speeds: Mapping[str, float] | None, preference: Preference,
        joined: Joined,
    ) -> None:  # fmt: skip
        self._tp, self._joined, self._speeds = tp, joined, speeds
        alike = tp == 1 or joined is Joined.ANYHOW
        groups = {} if alike else islands({f.gpu: joined.reach(f) for f in fragments})
        free_bytes = np.array([f.free_bytes for f in fragments], dtype=np.int64)
        costs = preference.costs(free_bytes, np.array([f.utilisation for f in fragments]))
        self._costs = {f.gpu: int(cost) for f, cost in zip(fragments, costs, strict=True)}
        fragments = sorted(fragments, key=lambda f: (f.free_bytes, self._costs[f.gpu]))
        self._lanes: dict[int, dict[tuple[object, ...], list[Fragment]]] = {}
        for fragment in fragments:
            lane = self._lanes.setdefault(_layer_ns(fragment, speeds), {})
            lane.setdefault(_row_key(fragment, tp, groups), []).append(fragment)

    def packing(self, memory: StageMemory, num_layers: int, pp: int, most_layers: int) -> Packing | None:
        lanes = sorted(self._lanes.items())
        selections = [(ns, self._selection(memory, num_layers, pp, most_layers, rows)) for ns, rows in lanes]
        mixture = mix(selections, pp, num_layers)
        if mixture is None:
            return None
        fragments = [[f for row in rows.values() for f in row] for _, rows in lanes]
        seats = sorted(_seats(mixture, fragments, memory, most_layers), key=_order)
        return Packing(
            stages=tuple(self._stage(memory, seat) for seat in seats),
            latency_ms=None if self._speeds is None else mixture.latency_ns / NS_PER_MS,
            cost=mixture.cost,
            joined=self._joined,
            is_exact=all(selection.is_exact for _, selection in selections),
        )

    def _selection(
        self, memory: StageMemory, num_layers: int, pp: int, most_layers: int,
        rows: Mapping[tuple[object, ...], Sequence[Fragment]],
    ) -> Selection:  # fmt: skip
        cut = [Row(tuple(f.free_bytes for f in row), tuple(self._costs[f.gpu] for f in row)) for row in rows.values()]
        return Selection(memory, num_layers, pp=pp, tp=self._tp, most_layers=most_layers, rows=cut)

    def _stage(self, memory: StageMemory, seat: "_Seat") -> Stage:
        ranks = seat.ranks
        held = memory.of_stage(seat.num_layers, first=seat.block.first, last=seat.block.last)
        return Stage(
            gpus=tuple(sorted(f.gpu for f in ranks)),
            num_layers=seat.num_layers,
            reserved_bytes=held,
            node=ranks[0].node,
            gpu_type=ranks[0].gpu_type,
        )


def _layer_ns(fragment: Fragment, speeds: Mapping[str, float] | None) -> int:
    return 0 if speeds is None else round(speeds[fragment.gpu_type] * NS_PER_MS)


def _row_key(fragment: Fragment, tp: int, groups: Mapping[str, int]) -> tuple[object, ...]:
    """Fragments of one key can be ranks of one stage.

    Args:
        groups: that NVLink or switches make; empty: these need not join ranks.
    """
    return () if tp == 1 else (fragment.node, fragment.gpu_type, groups.get(fragment.gpu))


@dataclass(frozen=True, slots=True)
class _Seat:
    block: Block
    num_layers: int
    ranks: Sequence[Fragment]
    """The poorest first."""


def _seats(
    mixture: Mixture, lanes: Sequence[Sequence[Fragment]], memory: StageMemory, most_layers: int
) -> Iterator[_Seat]:
    for part, fragments in zip(mixture.parts, lanes, strict=True):
        blocks: Sequence[Block] = part.blocks
        if len(lanes) == 1 and len(blocks) > 1:
            blocks = evenest(
                memory, blocks, [fragments[b.ranks[0]].free_bytes for b in blocks], part.num_layers, most_layers
            )
        blocks = sorted(blocks, key=lambda b: (not b.first, b.last, -fragments[b.ranks[0]].free_bytes))
        layers = split([block.capacity for block in blocks], part.num_layers) if blocks else ()
        for block, n in zip(blocks, layers, strict=True):
            yield _Seat(block, n, [fragments[rank] for rank in block.ranks])


def _order(seat: _Seat) -> tuple[bool, bool, int]:
    """First stage, the others from rich to poor, last stage."""
    return not seat.block.first, seat.block.last, -seat.ranks[0].free_bytes
