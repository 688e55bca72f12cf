"""What a replica takes beyond weights and cache, whatever the constants."""

import pytest

from maveriq import law
from maveriq.contracts import Precision
from tests.unit.law.shapes import facts, rig


def test_known_bytes_are_weights_cache_an_embedding_on_each_rank_and_one_lm_head():
    model = facts(num_kv_heads=4)
    found = law.known_bytes(model, rig(Precision.INT8, tp=2), num_layers=8, cached_tokens=100)
    cache = 8 * 100 * 2 * 4 * model.head_dim * 2
    assert found == 8 * model.layer_params + cache + (2 * model.embedding_params + model.lm_head_params) * 2


def test_activations_grow_with_tokens_and_stages_and_only_hidden_states_with_ranks():
    one = law.activation_terms(facts(), rig(), num_stages=1, tokens=100)
    more = law.activation_terms(facts(), rig(tp=2), num_stages=3, tokens=200)
    assert more["activation.wide"] == pytest.approx(6 * one["activation.wide"])
    assert more["activation.hidden"] == pytest.approx(12 * one["activation.hidden"])


def test_activations_are_as_wide_as_what_is_computed_in_whatever_the_weights_are():
    def of(precision: Precision, cache: Precision) -> float:
        return law.activation_terms(facts(), rig(precision, cache=cache), num_stages=1, tokens=100)["activation.wide"]

    half = of(Precision.BF16, Precision.BF16)
    assert of(Precision.FP32, Precision.FP32) == of(Precision.INT8, Precision.FP32) == 2 * half
    assert of(Precision.INT4, Precision.BF16) == of(Precision.FP16, Precision.INT8) == half


def test_a_gate_widens_the_activations():
    plain, gated = (
        law.activation_terms(facts(gated_mlp=gate), rig(), num_stages=1, tokens=100)["activation.wide"]
        for gate in (False, True)
    )
    assert gated > plain


def test_the_runtime_is_known_by_its_degrees():
    terms = law.memory_terms(facts(), rig(tp=4), num_layers=8, num_stages=2, tokens=10)
    assert terms["runtime.tp4.pp2"] == 1.0
