"""What a plan lists of an outcome: candidates, rejections, the front. Pure: outcome in, contract values out."""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import TypeAdapter

from maveriq.contracts import Candidate, Rejection
from maveriq_planner.arrays import Array, Indices
from maveriq_planner.front import pareto, thinned
from maveriq_planner.mixing import mixable
from maveriq_planner.search import Judged, Outcome
from maveriq_planner.shown import Row, configurations, memories, predictions, stages_of

MAX_LISTED = 64
_DECIMALS = 6  # of a ms: what differs by less differs by rounding, and is not on the front for that
_CANDIDATES = TypeAdapter(tuple[Candidate, ...])
_REJECTIONS = TypeAdapter(tuple[Rejection, ...])


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
    candidates = _candidates(judged, np.union1d(met, front), known)
    return Listing(
        tuple(candidates[i] for i in met.tolist()),
        _rejections(judged, missed, known),
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


def candidates_of(judged: Judged, chosen: Indices) -> tuple[Candidate, ...]:
    """Of configurations whether they meet the intent or not."""
    known = dict(zip(chosen.tolist(), predictions(judged, chosen), strict=True))
    found = _candidates(judged, chosen, known)
    return tuple(found[i] for i in chosen.tolist())


def _candidates(judged: Judged, chosen: Indices, known: Mapping[int, Row]) -> dict[int, Candidate]:
    mixed = mixable(judged, chosen)
    numbers = chosen.tolist()
    parts = (
        configurations(judged, chosen), memories(judged, chosen), judged.score[chosen].tolist(),
        stages_of(judged, chosen),
    )  # fmt: skip
    rows = [
        {
            "configuration": configuration, "memory": memory, "score": score, "prediction": known[i],
            "replicas": replicas, "stages": stages,
            "mixable": [{"gpu_type": name, "decode_ms": ms} for name, ms in mixed.get(i, ())],
        }
        for i, configuration, memory, score, stages, replicas in zip(
            numbers, *parts, judged.replicas[chosen].astype(np.intp).tolist(), strict=True
        )
    ]  # fmt: skip
    return dict(zip(numbers, _CANDIDATES.validate_python(rows), strict=True))


def _rejections(judged: Judged, chosen: Indices, known: Mapping[int, Row]) -> tuple[Rejection, ...]:
    """By the worst that each misses."""
    excess = np.array([np.where(miss.missed[chosen], miss.excess[chosen], -1.0) for miss in judged.misses])
    worst = [judged.misses[int(i)] for i in excess.argmax(axis=0)]
    rows = [
        {
            "configuration": configuration, "prediction": known[i], "constraint": miss.constraint,
            "wanted": miss.wanted, "predicted": None if np.isnan(miss.predicted[i]) else float(miss.predicted[i]),
            "replicas": int(judged.replicas[i]),
        }
        for i, configuration, miss in zip(chosen.tolist(), configurations(judged, chosen), worst, strict=True)
    ]  # fmt: skip
    return _REJECTIONS.validate_python(rows)


def _shapes(judged: Judged) -> Indices:
    """One number for each GPU type, TP and PP, those of mixed precisions apart."""
    kinds = [estimator.kind for estimator in judged.columns.estimators]
    return _numbered(judged, [(kind.gpu_types, bool(kind.segments)) for kind in kinds])


def _kinds(judged: Judged) -> Indices:
    """One number for each GPU type and variant, TP and PP; that all mixed splits are `mixed` leaves others room."""
    kinds = [estimator.kind for estimator in judged.columns.estimators]
    return _numbered(judged, [(k.gpu_types, k.engine, k.variant.label, k.kv_precision) for k in kinds])


def _numbered(judged: Judged, names: Sequence[Hashable]) -> Indices:
    """One number for each name, TP and PP. `names`: of estimators."""
    c = judged.columns
    places = {name: i for i, name in enumerate(dict.fromkeys(names))}
    named = np.array([places[name] for name in names], dtype=np.intp)[c.which]
    numbers: Indices = (named * (c.tp.max() + 1) + c.tp) * (c.pp.max() + 1) + c.pp
    return numbers


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
