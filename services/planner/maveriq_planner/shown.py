"""What is shown of configurations, as rows that contracts are made of. Pure: judged configurations in, rows out."""

from collections.abc import Iterator, Sequence

import numpy as np

from maveriq.contracts import DAY_MS
from maveriq_planner.arrays import Array, Indices
from maveriq_planner.errors import errors_of
from maveriq_planner.estimate import Estimator
from maveriq_planner.queueing import settle
from maveriq_planner.replicas import percentile_of
from maveriq_planner.search import Judged, goodput_per_ms
from maveriq_planner.workloads import share

Row = dict[str, object]
"""Fields of a contract's class, by name. A list of them is validated at once, which is faster than one by one."""

_Z = 1.645  # nine cases of ten


def configurations(judged: Judged, chosen: Indices) -> list[Row]:
    c = judged.columns
    kinds: list[Row] = [
        {
            "engine": kind.engine, "gpu_type": kind.gpu_type, "precision": kind.precision,
            "kv_precision": kind.kv_precision, "variant": str(kind.variant.label), "context_tokens": c.context_tokens,
        }
        for kind in (estimator.kind for estimator in c.estimators)
    ]  # fmt: skip
    parts = (part[chosen].tolist() for part in (c.which, c.tp, c.pp, c.slots))
    return [{**kinds[i], "tp": tp, "pp": pp, "max_batch": slots} for i, tp, pp, slots in zip(*parts, strict=True)]


def memories(judged: Judged, chosen: Indices) -> list[Row]:
    """Of each stage; see contracts.StageMemory."""
    c = judged.columns
    return _rows(
        layer_bytes=_whole(np.ceil(c.layer_bytes[chosen])), first_bytes=_whole(c.first_bytes[chosen]),
        last_bytes=_whole(c.last_bytes[chosen]), tied_saving_bytes=_whole(c.tied_saving_bytes[chosen]),
        runtime_bytes=_whole(np.ceil(c.runtime_bytes[chosen])),
    )  # fmt: skip


def stages_of(judged: Judged, chosen: Indices) -> list[list[Row]]:
    """As contracts.PlannedStage; none where the allocator splits."""
    c = judged.columns
    found: list[list[Row]] = []
    for i in chosen.tolist():
        estimator = c.estimator(i)
        slots = c.slots[i : i + 1].astype(float)
        found.append(list(_stages(estimator, slots, c.context_tokens)) if estimator.kind.segments else [])
    return found


def _stages(estimator: Estimator, slots: Array, context_tokens: int) -> Iterator[Row]:
    segments = estimator.kind.segments
    taken = estimator.footprint(1, np.array([float(len(segments))]), slots, context_tokens).stage_bytes
    assert taken is not None, "what is split says what each stage takes"
    for segment, num_bytes in zip(segments, _whole(np.ceil(taken[0])), strict=True):
        yield {"gpu_type": segment.gpu_type, "precisions": segment.precisions, "reserved_bytes": num_bytes}


def predictions(judged: Judged, chosen: Indices) -> list[Row]:
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
    return _rows(
        **{name: _floats(values) for name, values in found.items()},
        **{name: _rows(low=least.tolist(), high=most.tolist()) for name, (least, most) in ranges.items()},
        memory_bytes=_whole(np.ceil(c.memory_bytes)),
        basis=[c.estimators[int(i)].basis for i in c.which],
        others=[c.estimators[int(i)].others for i in c.which],
        percentile=[percentile] * len(c),
    )


def _rows(**columns: Sequence[object]) -> list[Row]:
    names = tuple(columns)
    return [dict(zip(names, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _whole(values: Array) -> list[int]:
    numbers: list[int] = values.astype(np.int64).tolist()
    return numbers


def _floats(values: Array) -> list[float | None]:
    """None where not known."""
    numbers: list[float] = values.tolist()
    return [None if number != number else number for number in numbers]
