"""MaverIQ's published estimator, for comparison. Pure: readings of cut models in, latency and memory out.

UT-SysML/MaverIQ, tools/estimator (README: "fingerprint-guided extrapolation"): models cut to n1 and n2 layers, read at
two output lengths, give time to first token and time per token, a layer and all else apart:

    L(1,1) = TTFT + o TPOT          L(tp,pp) = L(1,1) / (tp pp^alpha) + (tp-1)^beta / pp^gamma A + (pp-1)^delta B
    A = L(2,1) - L(1,1) / 2         B = L(1,2) - L(1,1) / 2^alpha, in which L(1,2) is taken as L(1,1), as it is there
    M(tp,pp) = M(1,1) + (tp-1) (M(2,1) - M(1,1)) + tp (pp-1) (M(1,2) - M(1,1))
    batch b: what 1 takes, and (b-1) times what 2 take more

Negative parts count as 0. Exponents belong to a pair of number formats, fitted to whole models.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import product

import numpy as np

from maveriq.contracts import ModelFacts, Precision, RunSample
from maveriq_planner.arrays import Array

Kind = tuple[Precision, Precision]
"""Formats of weights and KV cache."""


@dataclass(frozen=True, slots=True)
class Exponents:
    alpha: float = 0.05
    beta: float = 0.75
    gamma: float = 0.5
    delta: float = 0.1


START = Exponents()
"""Where its fit begins."""
_F16, _I8, _I4, _I4C = Precision.FP16, Precision.INT8, Precision.INT4, Precision.INT4_CHANNEL
PUBLISHED: Mapping[Kind, Exponents] = {
    (_F16, _F16): Exponents(0.049085, 0.685841, 0.187651, 0.568637),
    (_F16, _I8): Exponents(0.056720, 0.476995, 0.647168, 0.308824),
    (_I8, _F16): Exponents(0.073400, 0.684791, 0.945650, 0.498235),
    (_I8, _I8): Exponents(0.000001, 0.388597, 0.551791, 0.702002),
    (_I4C, _F16): Exponents(0.155457, 0.813981, 0.506217, 0.321953),
    (_I4C, _I8): Exponents(0.074400, 0.438015, 0.804590, 0.430627),
    (_I4, _F16): Exponents(0.058379, 0.591211, 0.682221, 0.435619),
}
"""Released with it: RTX A6000, fitted to the six models that it reports."""


_FINE = 1e-3


class Unmeasured(ValueError):
    """The fingerprint lacks a reading that the method needs."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What the exponents act on."""

    alone: float
    tp_overhead: float

    def at(self, tp: int, pp: int, by: Exponents) -> float:
        pp_overhead = max(0.0, self.alone * (1 - 0.5**by.alpha))
        shared = self.alone / (tp * float(pp) ** by.alpha)
        ranks = float(tp - 1) ** by.beta / float(pp) ** by.gamma * self.tp_overhead
        return float(shared + ranks + float(pp - 1) ** by.delta * pp_overhead)


@dataclass(frozen=True, slots=True)
class MaveriqModel:
    """A model's fingerprint as the method reads it; of one prompt length."""

    facts: ModelFacts
    samples: tuple[RunSample, ...]

    def latency_ms(
        self, tp: int, pp: int, kind: Kind, *, output_tokens: int, batch: int = 1, by: Exponents | None = None
    ) -> float:
        """Of a whole request. Raises Unmeasured."""
        exponents = by or PUBLISHED.get(kind, START)
        one = self.parts(kind, 1, output_tokens).at(tp, pp, exponents)
        if batch == 1:
            return one
        two = self.parts(kind, 2, output_tokens).at(tp, pp, exponents)
        return one + (batch - 1) * max(0.0, two - one)

    def memory_gib(self, tp: int, pp: int, kind: Kind, *, batch: int = 1) -> float:
        """Over all GPUs. Raises Unmeasured."""
        one = self._memory(tp, pp, kind, 1)
        return one if batch == 1 else one + (batch - 1) * max(0.0, self._memory(tp, pp, kind, 2) - one)

    def parts(self, kind: Kind, batch: int, output_tokens: int) -> Parts:
        """Raises Unmeasured."""
        alone = max(0.0, self._extrapolated_ms(1, kind, batch, output_tokens))
        if not self._runs(2, 1, kind, batch):
            return Parts(alone, 0.0)  # as it does for a model that two GPUs cannot share
        return Parts(alone, max(0.0, self._extrapolated_ms(2, kind, batch, output_tokens) - alone / 2))

    def _extrapolated_ms(self, tp: int, kind: Kind, batch: int, output_tokens: int) -> float:
        times = {sum(run.layers): run for run in self._runs(tp, 1, kind, batch)}
        if len(times) < 2:
            raise Unmeasured(f"{_named(kind)} at TP {tp}, batch {batch}: two cuts are needed, {len(times)} is there")
        few, more = sorted(times)[:2]
        first, second = (self._request(n, tp, kind, batch) for n in (few, more))
        grown = (self.facts.num_layers - few) / (more - few)
        ttft, tpot = (a + (b - a) * grown for a, b in zip(first, second, strict=True))
        return ttft + output_tokens * tpot

    def _request(self, num_layers: int, tp: int, kind: Kind, batch: int) -> tuple[float, float]:
        """Time to first token and time per token, ms."""
        runs = [run for run in self._runs(tp, 1, kind, batch) if sum(run.layers) == num_layers]
        for run in runs:
            if run.prefill_ms is not None and run.decode_ms is not None:
                return run.prefill_ms - run.decode_ms, run.decode_ms
        whole = {run.output_tokens: run.e2e_ms for run in runs if run.e2e_ms is not None}
        if len(whole) < 2:
            raise Unmeasured(f"{_named(kind)} at TP {tp}, batch {batch}, {num_layers} layers: one output length only")
        short, long = sorted(whole)[:2]
        tpot = (whole[long] - whole[short]) / (long - short)
        return whole[short] - short * tpot, tpot

    def _memory(self, tp: int, pp: int, kind: Kind, batch: int) -> float:
        alone = self._extrapolated_gib(1, 1, kind, batch)
        rank, stage = (
            max(0.0, self._extrapolated_gib(*degrees, kind, batch) - alone)
            if self._runs(*degrees, kind, batch)
            else 0.0
            for degrees in ((2, 1), (1, 2))
        )
        return max(0.0, alone) + (tp - 1) * rank + tp * (pp - 1) * stage

    def _extrapolated_gib(self, tp: int, pp: int, kind: Kind, batch: int) -> float:
        runs = sorted(self._runs(tp, pp, kind, batch), key=lambda run: -run.output_tokens)
        sizes = {sum(run.layers): run.memory_bytes / 2**30 for run in runs if run.memory_bytes is not None}
        if len(sizes) < 2:
            raise Unmeasured(f"{_named(kind)} at TP {tp}, PP {pp}, batch {batch}: memory of two cuts is needed")
        few, more = sorted(sizes)[:2]
        return sizes[few] + (sizes[more] - sizes[few]) * (self.facts.num_layers - few) / (more - few)

    def _runs(self, tp: int, pp: int, kind: Kind, batch: int) -> list[RunSample]:
        return [
            run
            for run in self.samples
            if (run.tp, len(run.layers), (run.precision, run.kv_precision), run.batch) == (tp, pp, kind, batch)
        ]


def fit_maveriq(facts: ModelFacts, samples: Sequence[RunSample]) -> MaveriqModel:
    """
    Args:
        samples: of this model cut to few layers, with one prompt length.
    """
    return MaveriqModel(facts, tuple(samples))


def fit_exponents(known: Sequence[tuple[MaveriqModel, RunSample]]) -> Exponents:
    """Least mean relative error over whole models' runs, all of one kind; exponents stay positive, as there.

    Args:
        known: a run with one request, and the fingerprint of its model.
    """
    points = list(_points(known))
    if not points:
        return START
    alone = np.array([parts.alone for parts, _ in points])
    overhead = np.array([parts.tp_overhead for parts, _ in points])
    tp = np.array([float(run.tp) for _, run in points])
    pp = np.array([float(len(run.layers)) for _, run in points])
    measured = np.array([run.e2e_ms or 0.0 for _, run in points])

    def missed(at: Array) -> float:
        alpha, beta, gamma, delta = (float(exponent) for exponent in at)
        stages = np.where(pp > 1, np.power(pp - 1, delta), 0.0) * np.maximum(0.0, alone * (1 - 0.5**alpha))
        ranks = np.where(tp > 1, np.power(tp - 1, beta), 0.0) / np.power(pp, gamma) * overhead
        said: Array = alone / (tp * np.power(pp, alpha)) + ranks + stages
        return float(np.abs(said / measured - 1).mean())

    found = _descended(missed, np.array([START.alpha, START.beta, START.gamma, START.delta]))
    return Exponents(float(found[0]), float(found[1]), float(found[2]), float(found[3]))


def _points(known: Sequence[tuple[MaveriqModel, RunSample]]) -> Iterator[tuple[Parts, RunSample]]:
    """Without runs of which the fingerprint lacks a reading."""
    for model, run in known:
        if run.e2e_ms:
            with suppress(Unmeasured):
                yield model.parts((run.precision, run.kv_precision), 1, run.output_tokens), run


def _descended(missed: Callable[[Array], float], at: Array) -> Array:
    """Along the axes and all diagonals, by a step that is halved where no direction is better.

    A mean of absolute errors has creases: along the axes alone a descent stops in one.
    """
    directions = [np.array(way) for way in product((-1.0, 0.0, 1.0), repeat=len(at)) if any(way)]
    best, step = missed(at), 0.25
    while step > _FINE:
        tried = [np.maximum(1e-6, at + step * way) for way in directions]
        losses = [missed(there) for there in tried]
        nearest = int(np.argmin(losses))
        if losses[nearest] < best - 1e-9:
            at, best = tried[nearest], losses[nearest]
        else:
            step /= 2
    return at


def _named(kind: Kind) -> str:
    return f"{kind[0]} weights, {kind[1]} cache"
