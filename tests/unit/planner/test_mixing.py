"""A replica may be mixed of GPU types on which the same configuration keeps the intent and takes no more memory."""

from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maveriq.contracts import Calibration, Candidate, Constant, Intent, Objective, Precision, Slo
from maveriq_planner.estimators.published import by_published
from maveriq_planner.listing import listing
from maveriq_planner.search import search
from maveriq_planner.space import Space
from tests.unit.planner.measurements import (
    BIG,
    BIG_MODEL,
    FACTS,
    MODEL,
    Truth,
    calibration,
    fingerprint,
    intent,
    space_of,
)


def typed(gpu_type: str, *, slower: float = 1.0, runtime_gib: float = 0.6) -> Calibration:
    memory = (
        Constant(name="runtime.tp1.pp1", value=runtime_gib, standard_error=0.01),
        Constant(name="activation.hidden", value=4.0, standard_error=0.01),
    )
    return calibration(gpu_type=gpu_type, slower=slower, memory=memory)


FAST, SLOW = typed("fast", runtime_gib=0.7), typed("slow", slower=3.0)
PRICES = {"fast": 3.0, "slow": 1.0}


def space(*calibrations: Calibration) -> Space:
    return space_of((), calibrations or (FAST, SLOW), model=BIG_MODEL, facts=BIG, max_pp=4, prices=PRICES)


def candidates(wanted: Intent, where: Space) -> tuple[Candidate, ...]:
    found = listing(search(wanted, where))
    return (*found.candidates, *found.front)


def types(found: Iterable[Candidate]) -> dict[str, set[tuple[str, ...]]]:
    """By a candidate's own type, the types that it may be mixed of."""
    seen: dict[str, set[tuple[str, ...]]] = {}
    for one in found:
        if one.configuration.pp > 1:
            seen.setdefault(one.configuration.gpu_type, set()).add(tuple(s.gpu_type for s in one.mixable))
    return seen


def test_the_type_that_takes_more_memory_is_mixed_with_the_one_that_takes_less_and_not_the_other_way() -> None:
    assert types(candidates(intent(rate=0.1), space())) == {"fast": {("fast", "slow")}, "slow": {()}}


def test_types_that_take_the_same_are_mixed_either_way_each_its_own_first() -> None:
    found = candidates(intent(rate=0.1), space(FAST, typed("slow", slower=3.0, runtime_gib=0.7)))
    assert types(found) == {"fast": {("fast", "slow")}, "slow": {("slow", "fast")}}


def test_a_single_stage_is_not_mixed_nor_is_what_has_one_type_only() -> None:
    assert all(one.mixable == () for one in candidates(intent(rate=0.1), space()) if one.configuration.pp == 1)
    assert all(one.mixable == () for one in candidates(intent(rate=0.1), space(FAST)))
    assert all(one.mixable == () for one in candidates(intent(rate=0.1, gpu_types=("fast",)), space()))


def test_a_type_that_misses_the_slo_or_the_budget_with_as_many_replicas_is_left_out() -> None:
    tight = intent(rate=0.1, slo=Slo(tpot_ms=20), precisions=(Precision.FP16,))
    assert types(candidates(tight, space()))["fast"] == {()}
    dear = space(typed("fast"), typed("slow", slower=3.0, runtime_gib=0.7))
    wanted = intent(rate=0.1, replicas=1, max_price_per_hour=5.0)
    mixed = [one for one in candidates(wanted, dear) if one.configuration.gpu_type == "slow"]
    for one in mixed:
        most = one.configuration.num_gpus * PRICES["fast"]
        assert (len(one.mixable) > 1) == (one.configuration.pp > 1 and most <= 5.0)


def test_speeds_are_of_one_layer_at_the_candidates_batch() -> None:
    """Three times as slow constants take three times as long; of more slots a layer has more at a time."""
    by_slots: dict[tuple[object, ...], list[tuple[int, float]]] = {}
    for one in candidates(intent(rate=0.1), space()):
        if one.mixable:
            fast, slow = (speed.decode_ms for speed in one.mixable)
            assert slow == pytest.approx(3 * fast)
            c = one.configuration
            by_slots.setdefault((c.variant, c.tp, c.pp), []).append((c.max_batch, fast))
    for known in by_slots.values():
        assert [ms for _, ms in sorted(known)] == sorted(ms for _, ms in known)


def test_fingerprints_know_their_layers_and_the_published_method_none() -> None:
    prints = (fingerprint(Truth(layer=1.5)), fingerprint(Truth(layer=3.0), gpu_type="old"))
    found = candidates(intent(rate=0.01), space_of(prints, max_pp=2))
    assert types(found) == {"cpu-1t": {("cpu-1t", "old")}, "old": {("old", "cpu-1t")}}
    estimators, _ = by_published(MODEL, FACTS, prints, ())
    assert all(one.mixable == () for one in candidates(intent(rate=0.01), Space(MODEL, FACTS, estimators, 2)))


@settings(max_examples=15, deadline=None)
@given(
    st.sampled_from([o for o in Objective if o is not Objective.MAX_THROUGHPUT]), st.sampled_from([None, 8.0, 20.0]),
    st.sampled_from([None, 95.0]), st.floats(0.05, 40), st.sampled_from([None, 6]), st.sampled_from([None, 12.0]),
)  # fmt: skip
def test_on_every_type_of_a_mix_alone_the_candidate_would_keep_the_intent(
    objective: Objective, tpot_ms: float | None, percentile: float | None, rate: float,
    concurrency: int | None, budget: float | None,
) -> None:  # fmt: skip
    slo = Slo(tpot_ms=tpot_ms, percentile=percentile)
    wanted = intent(objective=objective, slo=slo, rate=rate, concurrency=concurrency, max_price_per_hour=budget)
    for one in candidates(wanted, space())[:24]:
        for speed in one.mixable:
            alone = wanted.model_copy(update={"gpu_types": (speed.gpu_type,), "replicas": one.replicas})
            outcome = search(alone, space())
            assert outcome.judged is not None
            c = outcome.judged.columns
            same = [
                i for i in outcome.met.tolist()
                if (c.tp[i], c.pp[i], c.slots[i], c.kind(i).variant.label)
                == (one.configuration.tp, one.configuration.pp, one.configuration.max_batch, one.configuration.variant)
            ]  # fmt: skip
            assert len(same) == 1
            assert c.layer_bytes[same[0]] <= one.memory.layer_bytes
            assert c.runtime_bytes[same[0]] <= one.memory.runtime_bytes
