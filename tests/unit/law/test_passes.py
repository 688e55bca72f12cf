"""What a pass takes, whatever the constants: they are only known not to be negative."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maveriq import law
from maveriq.contracts import Precision
from tests.unit.law.shapes import CONSTANTS, Run, facts, mixture, ms, rig

MODELS = {"dense": facts(), "grouped": facts(num_kv_heads=2), "mixture": mixture()}
NAMES = sorted({
    name
    for precision in (Precision.FP16, Precision.INT8)
    for model in MODELS.values()
    for run in (Run(model, (4, 4), rig(precision, tp=tp, cache=Precision.INT8)) for tp in (1, 2, 4, 8))
    for name in (*run.decode(8, 900), *run.prefill(8, 900))
})  # fmt: skip
SLOPES = [name for name in NAMES if not name.startswith(("idle", "prompt_idle", "prompt_weights", "prompt_layer"))]
"""All but what pipelining saves and what arithmetic hides: those are never more than they are a share of."""
ANY_CONSTANTS = st.lists(st.floats(0, 50), min_size=len(SLOPES), max_size=len(SLOPES)).map(
    lambda values: dict(zip(SLOPES, values, strict=True))
)


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
@given(constants=ANY_CONSTANTS, batch=st.integers(1, 63), context=st.integers(1, 4000), more=st.integers(1, 64))
@settings(max_examples=40, deadline=None)
def test_a_step_never_takes_less_with_more_requests_or_more_context(model, constants, batch, context, more):
    run = Run(model, (4, 4), rig())
    least = ms(run.decode(batch, context), constants)
    assert ms(run.decode(batch + more, context), constants) >= least - 1e-9 * least
    assert ms(run.decode(batch, context + more), constants) >= least - 1e-9 * least


@given(tokens=st.integers(1, 2000), more=st.integers(1, 500), batch=st.integers(1, 8))
@settings(max_examples=60, deadline=None)
def test_a_longer_prompt_never_takes_less(tokens, more, batch):
    run = Run(facts(), (8,), rig())
    assert ms(run.prefill(batch, tokens + more)) > ms(run.prefill(batch, tokens))


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("tp", [1, 2, 4, 8])
def test_arrays_give_what_their_elements_give(model, tp):
    run = Run(model, (4, 4), rig(tp=tp, cache=Precision.INT8))
    batches = np.array([1.0, 2.0, 3.0, 8.0, 40.0])
    for at in (run.decode, run.prefill):
        together = at(batches, 700.0)
        for i, batch in enumerate(batches):
            alone = at(float(batch), 700.0)
            assert set(alone) == set(together)
            for name, value in alone.items():
                assert np.broadcast_to(together[name], batches.shape)[i] == pytest.approx(value, rel=1e-12), name


def test_more_rows_than_were_measured_cost_as_the_last_slope_says():
    run = Run(facts(), (8,), rig())
    only = {"rows@8": 1.0}
    steps = [ms(run.decode(batch, 10), only) for batch in (1, 4, 6, 8, 16)]
    assert steps[:2] == [0, 0]
    assert steps[3] == pytest.approx(2 * steps[2])
    assert steps[4] == pytest.approx(3 * steps[3])


def test_a_precision_that_was_not_measured_in_a_batch_costs_what_all_have_in_common():
    fp16, int8 = (Run(facts(), (8,), rig(precision)) for precision in (Precision.FP16, Precision.INT8))
    constants = {"rows@4": 5.0, "rows@4[fp16]": 1.0}
    assert ms(fp16.decode(4, 10), constants) == pytest.approx(1.2 * ms(int8.decode(4, 10), constants))


def test_ranks_share_weights_cache_and_lm_head_and_add_all_reduces():
    one, two = (Run(facts(), (8,), rig(tp=tp)).decode(1, 500) for tp in (1, 2))
    for name in ("weights", "cache", "head", "attend"):
        assert two[name] == one[name] / 2
    assert not any(name.startswith("reduce") for name in one)
    assert two["reduce.one_shot.tp2"] > 0


def test_attention_beside_the_mlp_needs_one_all_reduce_instead_of_two():
    apart, parallel = (facts(parallel_attention=flag) for flag in (False, True))
    sent = [Run(model, (8,), rig(tp=2)).decode(1, 10)["reduce.one_shot.tp2"] for model in (apart, parallel)]
    assert sent[0] == 2 * sent[1]


def test_an_uneven_pipeline_saves_less_than_an_even_one():
    even, uneven = (Run(facts(), layers, rig()) for layers in ((4, 4), (7, 1)))
    assert ms(uneven.decode(1, 100)) == pytest.approx(ms(even.decode(1, 100)) + 3 * CONSTANTS["idle.tp1"])


def test_a_mixture_reads_the_experts_that_a_batch_chose_and_computes_those_of_each_token():
    model = mixture()
    alone, many = (float(law.decode_terms(
        model, rig(), batch=batch, context_tokens=1, num_layers=1, num_stages=1, fullest=1
    ).layer["weights"]) for batch in (1, 256))  # fmt: skip
    rest = model.layer_params - 8 * model.expert_params
    assert alone == pytest.approx((rest + 2 * model.expert_params) * 2 / 1e9)
    assert many == pytest.approx(model.layer_params * 2 / 1e9)
    reading = Run(model, (1,), rig()).prefill(1, 1000)["compute"]
    attention = 2 * 1000 * 1000 * model.num_heads * model.head_dim
    assert reading == pytest.approx((2 * 1000 * (rest + 2 * model.expert_params) + attention) / 1e12)


def test_more_rows_cost_the_lm_head_by_constants_of_its_own():
    wide, narrow = (Run(facts(vocab_size=size), (8,), rig()) for size in (128_000, 32_000))
    for at in ("decode", "prefill"):
        cost = [ms(getattr(run, at)(8, 64), {"rows@8[head]": 1.0}) for run in (wide, narrow)]
        assert cost[0] == pytest.approx(4 * cost[1], rel=0.01) and cost[1] > 0
        assert ms(getattr(wide, at)(1, 64), {"rows@8[head]": 1.0}) == 0


def test_only_torch_pays_for_attention_beyond_its_arithmetic():
    run = Run(facts(), (8,), rig())
    assert "compute[attention]" not in run.prefill(1, 64)
    torch = Run(facts(), (8,), replace(rig(), engine="torch"))
    assert torch.prefill(1, 64)["compute[attention]"] > 0
