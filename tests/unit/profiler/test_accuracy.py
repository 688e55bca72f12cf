"""Figures of a variant beside full precision, from what both say of a text's tokens."""

from math import inf, log, nan

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maveriq.contracts import Model, Precision, Variant
from maveriq_profiler.accuracy import WINDOW_TOKENS, Score, compared, needed_bytes, windows
from maveriq_profiler.variants import computed_in, obstacle, own_source, shape_difference
from tests.unit.profiler.rigs import FACTS


@given(num_tokens=st.integers(2, 9000), context=st.integers(2, 4096))
def test_every_token_but_the_first_is_scored_once_within_the_context(num_tokens: int, context: int) -> None:
    scored: list[int] = []
    for part in windows(num_tokens, context):
        assert 0 <= part.begin < part.end <= num_tokens
        assert part.end - part.begin <= min(context, WINDOW_TOKENS)
        scored += range(part.end - part.num_scored, part.end)
        assert part.end - part.num_scored > part.begin or part.begin == 0
    assert scored == list(range(1, num_tokens))


def test_tokens_after_the_first_window_have_half_a_window_before_them() -> None:
    for part in windows(5000, 4096)[1:]:
        assert part.end - part.num_scored - part.begin >= WINDOW_TOKENS // 2


def test_perplexity_agreement_and_the_share_that_is_kept_are_those_of_the_definition() -> None:
    full, variant = Score(), Score()
    full.add(2 * log(4.0), [1, 2])
    full.add(2 * log(4.0), [3, 4])
    variant.add(4 * log(5.0), [1, 2, 3, 9])
    found = compared("bf16", variant, full)
    assert found.perplexity == pytest.approx(5.0)
    assert found.agreement == 0.75
    assert found.relative == pytest.approx(4 / 5)
    same = compared("fp32", full, full)
    assert (same.relative, same.agreement) == (1.0, 1.0)


@pytest.mark.parametrize("nll", [nan, inf, 1e6])
def test_what_overflowed_is_said_and_not_counted(nll: float) -> None:
    full, variant = Score(), Score()
    full.add(log(4.0), [1])
    variant.add(nll, [1])
    found = compared("fp16", variant, full)
    assert (found.perplexity, found.relative) == (None, None)
    assert found.problem.startswith("fp16: ")


def test_a_model_needs_its_weights_and_room_for_its_logits() -> None:
    weights = FACTS.num_layers * FACTS.layer_params + FACTS.embedding_params + FACTS.lm_head_params
    assert needed_bytes(FACTS, Precision.FP32) > 4 * weights + 4 * WINDOW_TOKENS * FACTS.vocab_size
    assert needed_bytes(FACTS, Precision.BF16) == pytest.approx(needed_bytes(FACTS, Precision.FP32) / 2, abs=2)


MODEL = Model(name="tiny", source="/models/tiny")


@pytest.mark.parametrize(
    ("variant", "words"),
    [
        (Variant(precision=Precision.BF16), ""),
        (Variant(precision=Precision.FP16, kv_precision=Precision.FP16), ""),
        (Variant(precision=Precision.INT8, source="/models/q8"), ""),
        (Variant(name="p", precision=Precision.BF16, source="/models/p"), ""),
        (Variant(precision=Precision.INT8), ""),
        (Variant(precision=Precision.INT4, source="/models/tiny", kv_precision=Precision.FP32), ""),
        (Variant(precision=Precision.FP8), "register a checkpoint of it (fp8@SOURCE)"),
        (Variant(precision=Precision.INT4_CHANNEL, source="/models/tiny"), "register a checkpoint of it"),
        (Variant(precision=Precision.BF16, kv_precision=Precision.INT8), ""),
        (Variant(precision=Precision.INT8, kv_precision=Precision.INT8, source="/models/q8"), ""),
        (Variant(precision=Precision.BF16, kv_precision=Precision.FP8), "KV cache in fp8"),
        (Variant(precision=Precision.BF16, kv_precision=Precision.FP16), "KV cache in fp16"),
        (Variant(precision=Precision.INT8, kv_precision=Precision.FP8, source="/models/q8"), "KV cache in fp8"),
    ],
)
def test_what_only_an_engine_does_is_not_guessed(variant: Variant, words: str) -> None:
    problem = obstacle(MODEL, variant)
    assert words in problem
    assert bool(words) == bool(problem)


def test_quantised_weights_are_computed_with_in_the_format_of_their_cache() -> None:
    assert computed_in(Variant(precision=Precision.INT4, kv_precision=Precision.FP16, source="/q")) is Precision.FP16
    assert computed_in(Variant(precision=Precision.INT4, source="/q")) is Precision.BF16
    assert computed_in(Variant(precision=Precision.INT4, kv_precision=Precision.INT8)) is Precision.BF16
    assert computed_in(Variant(precision=Precision.FP32, kv_precision=Precision.INT8)) is Precision.FP32


def test_a_source_that_is_the_models_is_no_checkpoint_of_its_own() -> None:
    assert own_source(MODEL, Variant(precision=Precision.BF16, source="/models/tiny")) is None
    assert own_source(MODEL, Variant(precision=Precision.BF16, source="/models/p")) == "/models/p"


def test_a_checkpoint_of_another_shape_is_no_variant_and_the_remedy_is_told() -> None:
    narrow = FACTS.model_copy(update={"intermediate_size": 96})
    problem = shape_difference(FACTS, narrow, "pruned")
    assert problem == (
        "pruned: its checkpoint has intermediate_size 96 where the model has 128; register it as a model of its own"
    )
    assert shape_difference(FACTS, FACTS, "pruned") == ""
