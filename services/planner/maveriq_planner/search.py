"""Which configurations meet an intent, best first. Pure: intent and measured space in, ranked candidates out."""

from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from maveriq.contracts import (
    FULL_PRECISIONS,
    Candidate,
    Configuration,
    Fingerprint,
    Intent,
    Model,
    ModelFacts,
    Objective,
    Rejection,
    Workload,
)
from maveriq_planner.constraints import Miss, misses
from maveriq_planner.estimate import Estimate, Estimator, Fit

MAX_LISTED = 64
GIB = 2**30
_CONTEXT_STEP = 64  # tokens of a block of TensorRT-LLM's KV cache

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Space:
    """Everything that the measured model could run as."""

    model: Model
    facts: ModelFacts
    fitted: tuple[tuple[Fingerprint, Estimator], ...]
    max_pp: int

    def accuracy_of(self, configuration: Configuration) -> float | None:
        """The variant's. None too where the cache alone is quantised: that was not what was measured."""
        c = configuration
        if c.kv_precision not in FULL_PRECISIONS and c.kv_precision is not c.precision:
            return None
        return next((v.accuracy for v in self.model.variants if v.precision is c.precision), None)


@dataclass(frozen=True, slots=True)
class Judged:
    configuration: Configuration
    estimate: Estimate
    score: float
    misses: tuple[Miss, ...]
    """Worst first."""


@dataclass(frozen=True, slots=True)
class Outcome:
    met: tuple[Judged, ...]
    """Best first."""
    missed: tuple[Judged, ...]
    """Nearest miss first, by the worst of each configuration's misses."""

    @property
    def num_considered(self) -> int:
        return len(self.met) + len(self.missed)

    def candidates(self) -> tuple[Candidate, ...]:
        """Best first, at most MAX_LISTED, and diverse: whatever fragments are left over should find one that fits."""
        leanest = sorted(self.met, key=lambda j: j.estimate.prediction.memory_bytes)
        firsts = [*_first_of_each(self.met, _shape), *_first_of_each(leanest, _shape), *_first_of_each(self.met, _kind)]
        return tuple(
            Candidate(
                configuration=j.configuration,
                prediction=j.estimate.prediction,
                memory=j.estimate.memory,
                score=j.score,
            )
            for j in _at_most(self.met, firsts)
        )

    def rejections(self) -> tuple[Rejection, ...]:
        """Nearest miss first, at most MAX_LISTED, and diverse."""
        firsts = [*_first_of_each(self.missed, _shape), *_first_of_each(self.missed, _kind)]
        return tuple(
            Rejection(
                configuration=j.configuration,
                prediction=j.estimate.prediction,
                constraint=j.misses[0].constraint,
                wanted=j.misses[0].wanted,
                predicted=j.misses[0].predicted,
            )
            for j in _at_most(self.missed, firsts)
        )


def measured_space(
    model: Model, facts: ModelFacts, fingerprints: Iterable[Fingerprint], *, max_pp: int, fit: Fit
) -> Space:
    return Space(model, facts, tuple((f, fit(facts, f)) for f in fingerprints), max_pp)


def search(intent: Intent, space: Space) -> Outcome:
    """Every configuration judged. Both lists are empty where the workload exceeds the model's context."""
    judged = list(judge_all(intent, space))
    met = sorted((j for j in judged if not j.misses), key=_rank)
    missed = sorted((j for j in judged if j.misses), key=lambda j: (j.misses[0].excess, _rank(j)))
    return Outcome(tuple(met), tuple(missed))


def judge_all(intent: Intent, space: Space) -> Iterator[Judged]:
    share = replica_share(intent)
    for configuration, estimator in configurations(intent.workload, space):
        yield judge(intent, share, configuration, estimator, space)


def judge(intent: Intent, share: Workload, configuration: Configuration, estimator: Estimator, space: Space) -> Judged:
    estimate = estimator.estimate(configuration, share, space.accuracy_of(configuration))
    score = score_of(intent.objective, configuration, estimate)
    return Judged(configuration, estimate, score, misses(intent, configuration, estimate))


def replica_share(intent: Intent) -> Workload:
    """What one replica gets of the workload: requests go to whichever has a free slot."""
    rate_per_s = intent.workload.request_rate_per_s / (intent.replicas or 1)
    return intent.workload.model_copy(update={"request_rate_per_s": rate_per_s})


def configurations(workload: Workload, space: Space) -> Iterator[tuple[Configuration, Estimator]]:
    """TP x PP x max batch of each fingerprint, which is one engine, GPU type and pair of precisions."""
    tokens = context_tokens(workload, space.facts)
    if tokens is None:
        return
    for fingerprint, estimator in space.fitted:
        most_pp = min(fingerprint.max_pp, space.max_pp, space.facts.num_layers)
        for tp in _tp_degrees(fingerprint, space.facts):
            for pp in range(1, most_pp + 1):
                for max_batch in _batches(estimator.max_batch):
                    yield (
                        Configuration(
                            engine=fingerprint.engine,
                            gpu_type=fingerprint.gpu_type,
                            tp=tp,
                            pp=pp,
                            precision=fingerprint.precision,
                            kv_precision=fingerprint.kv_precision,
                            max_batch=max_batch,
                            context_tokens=tokens,
                        ),
                        estimator,
                    )


def context_tokens(workload: Workload, facts: ModelFacts) -> int | None:
    """Of one slot: as asked, else twice the mean, rounded up, at most the model's own. None: the model has fewer."""
    mean = workload.input_tokens + workload.output_tokens
    if (workload.context_tokens or mean) > facts.max_context_tokens:
        return None
    rounded = -(-2 * mean // _CONTEXT_STEP) * _CONTEXT_STEP
    return workload.context_tokens or min(rounded, facts.max_context_tokens)


def score_of(objective: Objective, configuration: Configuration, estimate: Estimate) -> float:
    """ms, GiB x s, GiB or GPU x s; lower is better (MaverIQ, section 4)."""
    e2e_ms = estimate.prediction.e2e_ms
    memory_gib = estimate.prediction.memory_bytes / GIB
    match objective:
        case Objective.MIN_LATENCY:
            return e2e_ms
        case Objective.MIN_COST:
            return e2e_ms / 1e3 * memory_gib
        case Objective.MIN_MEMORY:
            return memory_gib
        case Objective.MIN_GPU_COST:
            return e2e_ms / 1e3 * configuration.num_gpus
        case Objective.MIN_PRICE:
            return float(configuration.num_gpus)
        case Objective.MAX_THROUGHPUT:
            return -estimate.prediction.throughput_tokens_per_s


def _tp_degrees(fingerprint: Fingerprint, facts: ModelFacts) -> list[int]:
    heads = (facts.num_heads, facts.num_kv_heads)
    return [tp for tp in sorted(set(fingerprint.tp_degrees)) if all(number % tp == 0 for number in heads)]


def _batches(most: int) -> list[int]:
    """Powers of two up to the largest measured batch, and that."""
    return [2**i for i in range(most.bit_length()) if 2**i < most] + [most]


def _rank(judged: Judged) -> tuple[float | str, ...]:
    """Equal scores: fewer bytes, GPUs, slots; the names only make the order total."""
    c, predicted = judged.configuration, judged.estimate.prediction
    return (
        judged.score, predicted.memory_bytes, c.num_gpus, predicted.e2e_ms, c.max_batch, c.pp,
        c.gpu_type, c.engine, c.precision, c.kv_precision,
    )  # fmt: skip


def _shape(judged: Judged) -> Hashable:
    c = judged.configuration
    return (c.gpu_type, c.tp, c.pp)


def _kind(judged: Judged) -> Hashable:
    return (_shape(judged), judged.configuration.precision, judged.configuration.kv_precision)


def _first_of_each(ranked: Iterable[T], key: Callable[[T], Hashable]) -> list[T]:
    firsts: dict[Hashable, T] = {}
    for item in ranked:
        firsts.setdefault(key(item), item)
    return list(firsts.values())


def _at_most(ranked: tuple[Judged, ...], firsts: list[Judged]) -> list[Judged]:
    """MAX_LISTED of `ranked`, in its order: its first, then `firsts` as listed, then the rest as ranked."""
    kept: set[int] = set()
    for judged in (*ranked[:1], *firsts, *ranked):
        if len(kept) == MAX_LISTED:
            break
        kept.add(id(judged))
    return [judged for judged in ranked if id(judged) in kept]
