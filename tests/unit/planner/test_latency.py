"""What the law of one fingerprint says of the whole model, in stages and in batches."""

from random import Random

import pytest

from maveriq.contracts import Sample
from maveriq_planner.latency import DecodeLaw, fit_decode, fit_prefill
from tests.unit.planner.measurements import FACTS, Truth, fingerprint, samples


def step_ms(law: DecodeLaw, layers: int, batch: float, context: float) -> float:
    return law.at_ends(batch) + layers * law.at_layer(batch, context)


@pytest.mark.parametrize("batch", [1, 2, 3, 6, 8])
@pytest.mark.parametrize("context", [16, 500])
def test_the_decode_law_that_wrote_the_samples_is_recovered_for_the_whole_model(batch: int, context: float) -> None:
    law = fit_decode(FACTS, fingerprint())
    assert step_ms(law, 30, batch, context) == pytest.approx(Truth().decode(30, batch, context), rel=1e-6)


@pytest.mark.parametrize("tokens", [16, 100, 1000])
def test_the_prefill_law_that_wrote_the_samples_is_recovered_for_the_whole_model(tokens: int) -> None:
    law = fit_prefill(FACTS, fingerprint())
    assert law.at_ends(tokens) + 30 * law.at_layer(tokens) == pytest.approx(Truth().prefill(30, 1, tokens), rel=1e-6)


def test_readings_that_vary_by_two_percent_still_predict_thirty_layers_within_ten() -> None:
    for seed in range(5):
        random = Random(seed)
        noisy = fingerprint(samples=samples(noise=lambda r=random: r.gauss(1, 0.02)))
        law = fit_decode(FACTS, noisy)
        assert step_ms(law, 30, 4, 128) == pytest.approx(Truth().decode(30, 4, 128), rel=0.10)


def test_a_larger_batch_is_never_predicted_faster() -> None:
    random = Random(7)
    law = fit_decode(FACTS, fingerprint(samples=samples(noise=lambda: random.uniform(0.7, 1.3))))
    times = [step_ms(law, 30, batch, 64) for batch in range(1, 9)]
    assert times == sorted(times)


def test_a_context_that_never_varied_costs_no_more_than_reading_its_bytes_as_weights() -> None:
    law = fit_decode(FACTS, fingerprint(samples=samples(shapes=((64, 16),))))
    assert step_ms(law, 30, 2, 72) == pytest.approx(Truth().decode(30, 2, 72), rel=1e-6)
    kv_share = 2 * 3 * 64 / FACTS.layer_params  # bytes of a token's keys and values, over those of a layer
    grown = step_ms(law, 30, 2, 1072) - step_ms(law, 30, 2, 72)
    assert grown == pytest.approx(30 * 2 * 1000 * kv_share * law.layer_ms[0])


def test_a_single_cut_lays_all_time_on_its_layers_which_is_too_much_rather_than_too_little() -> None:
    law = fit_decode(FACTS, fingerprint(samples=samples(layers=(2,))))
    assert step_ms(law, 30, 1, 40) > Truth().decode(30, 1, 40)


def test_two_samples_are_enough_to_fit() -> None:
    two: tuple[Sample, ...] = samples(batches=(1,), shapes=((32, 16),))
    law = fit_decode(FACTS, fingerprint(samples=two))
    assert step_ms(law, 30, 1, 40) == pytest.approx(Truth().decode(30, 1, 40), rel=1e-6)
