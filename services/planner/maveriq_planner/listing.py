"""What a plan lists of an outcome: candidates, rejections, the front. Pure: outcome in, contract values out."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import TypeAdapter

from maveriq.contracts import (
    DAY_MS,
    Candidate,
    Configuration,
    LayerSpeed,
    Prediction,
    Rejection,
    StageMemory,
)
from maveriq_planner.arrays import Array, Indices
from maveriq_planner.columns import Columns
from maveriq_planner.errors import errors_of
from maveriq_planner.front import pareto, thinned
from maveriq_planner.mixing import Speeds, mixable
from maveriq_planner.queueing import settle
from maveriq_planner.replicas import percentile_of
from maveriq_planner.search import Judged, Outcome, goodput_per_ms
from maveriq_planner.workloads import share

MAX_LISTED = 64
_DECIMALS = 6  # of a ms: what differs by less differs by rounding, and is not on the front for that
_Z = 1.645  # nine cases of ten
_LAYER_SPEEDS = TypeAdapter(tuple[LayerSpeed, ...])


@dataclass(frozen=True, slots=True)
class Listing:
    candidates: tuple[Candidate, ...]
    """Best first, at most MAX_LISTED, and diverse: whatever fragments are left over should find one that fits."""
    rejected: tuple[Rejection, ...]
    """Nearest miss first, at most MAX_LISTED, and diverse."""
    front: tuple[Candidate, ...]
    """Of what meets the intent: latency, memory, price (GPUs where one is not priced), accuracy; fastest first."""


def listing(outcome: Outcome) -> Listing:
    judged = outcome.judged
    if judged is None:
        return Listing((), (), ())
    met, missed, front = _best(judged, outcome.met), _nearest(judged, outcome.missed), _front(judged, outcome.met)
    shown = np.unique(np.concatenate([met, missed, front]))
    known = dict(zip(shown.tolist(), predictions(judged, shown), strict=True))
    offered = np.union1d(met, front)
    mixed = mixable(judged, offered)
    candidates = {i: _candidate(judged, i, known[i], mixed.get(i, [])) for i in offered.tolist()}
    return Listing(
        tuple(candidates[i] for i in met.tolist()),
        tuple(_rejection(judged, i, known[i]) for i in missed.tolist()),
        tuple(candidates[i] for i in front.tolist()),
    )


def _best(judged: Judged, met: Indices) -> Indices:
    leanest = met[np.argsort(judged.columns.memory_bytes[met], kind="stable")]
    shapes, kinds = _shapes(judged), _kinds(judged)
    return _at_most(met, [*_first_of_each(met, shapes), *_first_of_each(leanest, shapes), *_first_of_each(met, kinds)])


def _nearest(judged: Judged, missed: Indices) -> Indices:
    return _at_most(missed, [*_first_of_each(missed, _shapes(judged)), *_first_of_each(missed, _kinds(judged))])


def _front(judged: Judged, met: Indices) -> Indices:
    if not len(met):
        return met
    costs = costs_of(judged)
    best = met[pareto(costs[met])]
    return best[thinned(costs[best], MAX_LISTED)]


def costs_of(judged: Judged) -> Array:
    """[C, 4], smaller is better. An accuracy that nobody measured is worse than any other."""
    price = judged.price_per_hour
    money = judged.num_gpus if np.isnan(price[judged.met]).any() else price
    accuracy = np.where(np.isnan(judged.columns.accuracy), -1.0, judged.columns.accuracy)
    e2e_ms = np.round(judged.latencies.e2e_ms, _DECIMALS)
    return np.stack([e2e_ms, judged.memory_bytes, money, -accuracy], axis=1)


def _candidate(judged: Judged, i: int, prediction: Prediction, mixed: Speeds) -> Candidate:
    return Candidate(
        configuration=_configuration(judged.columns, i), prediction=prediction, memory=stage_memory(judged, i),
        score=float(judged.score[i]), replicas=int(judged.replicas[i]),
        mixable=_LAYER_SPEEDS.validate_python([{"gpu_type": name, "decode_ms": ms} for name, ms in mixed]),
    )  # fmt: skip


def _rejection(judged: Judged, i: int, prediction: Prediction) -> Rejection:
    worst = max((miss for miss in judged.misses if miss.missed[i]), key=lambda miss: float(miss.excess[i]))
    predicted = float(worst.predicted[i])
    return Rejection(
        configuration=_configuration(judged.columns, i), prediction=prediction, constraint=worst.constraint,
        wanted=worst.wanted, predicted=None if np.isnan(predicted) else predicted,
    )  # fmt: skip


def configurations(judged: Judged, chosen: Indices) -> list[Configuration]:
    return [_configuration(judged.columns, int(i)) for i in chosen]


def _configuration(c: Columns, i: int) -> Configuration:
    kind = c.kind(i)
    return Configuration(
        engine=kind.engine, gpu_type=kind.gpu_type, tp=int(c.tp[i]), pp=int(c.pp[i]), precision=kind.precision,
        kv_precision=kind.kv_precision, max_batch=int(c.slots[i]), context_tokens=c.context_tokens,
        variant=str(kind.variant.label),
    )  # fmt: skip


def stage_memory(judged: Judged, i: int) -> StageMemory:
    c = judged.columns
    return StageMemory(
        layer_bytes=int(c.layer_bytes[i]),
        first_bytes=int(c.first_bytes[i]),
        last_bytes=int(c.last_bytes[i]),
        tied_saving_bytes=int(c.tied_saving_bytes[i]),
        runtime_bytes=int(np.ceil(c.runtime_bytes[i])),
    )


def predictions(judged: Judged, chosen: Indices) -> list[Prediction]:
    """Of one replica, with intervals: the same load met by a replica as slow, or as fast, as the errors let be.

    A queue amplifies what a replica is slower: the intervals hold that too. A day is as long as without end.
    """
    intent, c, running = judged.intent, judged.columns.take(chosen), judged.running[chosen]
    prefill_error, step_error = errors_of(judged.columns, chosen, intent.workload)
    slow, fast = (c.replicas.slower(np.exp(z * prefill_error), np.exp(z * step_error)) for z in (_Z, -_Z))
    rate, in_flight = share(intent.workload, running)
    percentile = percentile_of(intent.slo)
    high, low = settle(slow, rate, in_flight, percentile), settle(fast, rate, in_flight, percentile)
    endless = np.where(high.sustained | ~judged.latencies.sustained[chosen], 0.0, DAY_MS)
    served = np.where(judged.met[chosen], rate, np.nan)  # met at that rate, whatever lies below
    tokens_per_s = intent.workload.output_tokens * 1e3
    found = {
        "ttft_ms": judged.latencies.ttft_ms[chosen],
        "tpot_ms": judged.latencies.tpot_ms[chosen],
        "e2e_ms": judged.latencies.e2e_ms[chosen],
        "throughput_tokens_per_s": c.replicas.full_per_ms * tokens_per_s,
        "memory_bytes": np.ceil(c.memory_bytes),
        "gpu_s": judged.latencies.e2e_ms[chosen] / 1e3 * c.num_gpus,
        "accuracy": c.accuracy,
        "ttft_percentile_ms": judged.latencies.ttft_percentile_ms[chosen],
        "tpot_percentile_ms": judged.latencies.tpot_percentile_ms[chosen],
        "e2e_percentile_ms": judged.latencies.e2e_percentile_ms[chosen],
        "goodput_tokens_per_s": np.fmax(goodput_per_ms(intent, c, running), served) * tokens_per_s,
        "price_per_hour": c.price_per_hour,
        "price_per_million_tokens": c.price_per_hour / 3600 / (c.replicas.full_per_ms * tokens_per_s) * 1e6,
    }
    ranges = {
        "ttft_interval_ms": (low.ttft_ms, np.maximum(high.ttft_ms, endless)),
        "tpot_interval_ms": (low.tpot_ms, high.tpot_ms),
        "e2e_interval_ms": (low.e2e_ms, np.maximum(high.e2e_ms, endless)),
        "throughput_interval_tokens_per_s": (
            slow.full_per_ms * tokens_per_s,
            fast.full_per_ms * tokens_per_s,
        ),
        "memory_interval_bytes": (np.floor(c.memory_low_bytes), np.ceil(c.memory_high_bytes)),
    }
    columns: dict[str, Sequence[object]] = {name: _floats(values) for name, values in found.items()}
    columns["memory_bytes"] = [int(value) for value in found["memory_bytes"]]
    for name, (least, most) in ranges.items():
        columns[name] = [{"low": a, "high": b} for a, b in zip(least.tolist(), most.tolist(), strict=True)]
    columns["basis"] = [c.estimator(i).basis for i in range(len(c))]
    columns["percentile"] = [percentile] * len(c)
    names = tuple(columns)
    rows = zip(*columns.values(), strict=True)
    return [Prediction.model_validate(dict(zip(names, row, strict=True))) for row in rows]


def _floats(values: Array) -> list[float | None]:
    """None where not known."""
    numbers: list[float] = values.tolist()
    return [None if number != number else number for number in numbers]


def _shapes(judged: Judged) -> Indices:
    """One number for each GPU type, TP and PP."""
    c = judged.columns
    types = {name: i for i, name in enumerate(dict.fromkeys(e.kind.gpu_type for e in c.estimators))}
    of_type = np.array([types[e.kind.gpu_type] for e in c.estimators], dtype=np.intp)[c.which]
    numbers: Indices = (of_type * (c.tp.max() + 1) + c.tp) * (c.pp.max() + 1) + c.pp
    return numbers


def _kinds(judged: Judged) -> Indices:
    """One number for each estimator, which is a GPU type and variant, TP and PP."""
    return judged.columns.replicas.row


def _first_of_each(ranked: Indices, keys: Indices) -> Indices:
    """Of `ranked`, those with a key not seen before, in its order."""
    if not len(ranked):
        return ranked
    seen = keys[ranked]
    first = np.full(seen.max() + 1, -1)
    first[seen[::-1]] = np.arange(len(ranked))[::-1]  # the last that is written stays
    chosen: Indices = ranked[np.sort(first[first >= 0])]
    return chosen


def _at_most(ranked: Indices, firsts: Iterable[np.intp]) -> Indices:
    """MAX_LISTED of `ranked`, in its order: its first, then `firsts` as listed, then the rest as ranked."""
    kept: dict[int, None] = {}
    for i in (*ranked[:1], *firsts, *ranked[:MAX_LISTED]):
        if len(kept) == MAX_LISTED:
            break
        kept.setdefault(int(i))
    return ranked[np.isin(ranked, list(kept))]
