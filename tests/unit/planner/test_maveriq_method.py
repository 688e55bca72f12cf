"""The published method on readings that obey it exactly."""

import pytest

from maveriq.contracts import Precision, RunSample
from maveriq_planner.maveriq_method import Exponents, Unmeasured, fit_exponents, fit_maveriq
from tests.unit.law.shapes import facts

KIND = (Precision.FP16, Precision.FP16)
MODEL = facts(num_layers=10)
GIB = 2**30


def run(layers: tuple[int, ...], output_tokens: int, *, tp: int = 1, batch: int = 1, e2e_ms: float | None = None):
    n = sum(layers)
    ttft, tpot = 5 + 2 * n, (1 + 0.5 * n) / (1 if tp == 1 else 1.5)
    size = 1 + 0.5 * n + (0.4 if tp == 2 else 0) + (0.7 if len(layers) == 2 else 0) + 0.1 * (batch - 1)
    return RunSample(
        facts=MODEL, precision=KIND[0], kv_precision=KIND[1], tp=tp, layers=layers, batch=batch, input_tokens=100,
        output_tokens=output_tokens, memory_bytes=round(size * GIB),
        e2e_ms=e2e_ms or ttft + output_tokens * tpot * (1 + 0.1 * (batch - 1)),
    )  # fmt: skip


CUTS = [
    run(layers, o, tp=tp, batch=batch)
    for tp, cuts in ((1, ((1,), (2,), (1, 1), (2, 1))), (2, ((1,), (2,))))
    for layers in cuts
    for o in (10, 20)
    for batch in (1, 2)
]
FINGERPRINT = fit_maveriq(MODEL, CUTS)


def test_one_gpu_is_the_line_through_two_cuts_and_two_output_lengths():
    assert FINGERPRINT.latency_ms(1, 1, KIND, output_tokens=100) == pytest.approx(25 + 100 * 6)


def test_the_exponents_share_it_out_and_add_what_ranks_and_stages_cost():
    by = Exponents(0.1, 0.7, 0.4, 0.3)
    alone, two = 25 + 100 * 6, 25 + 100 * 4
    expected = alone / (2 * 3**0.1) + (two - alone / 2) / 3**0.4 + 2**0.3 * (alone - alone / 2**0.1)
    assert FINGERPRINT.latency_ms(2, 3, KIND, output_tokens=100, by=by) == pytest.approx(expected)


def test_each_more_request_costs_what_the_second_did():
    one, two, nine = (FINGERPRINT.latency_ms(1, 1, KIND, output_tokens=100, batch=batch) for batch in (1, 2, 9))
    assert nine - one == pytest.approx(8 * (two - one))


def test_memory_grows_by_rank_by_stage_and_by_request():
    assert FINGERPRINT.memory_gib(1, 1, KIND) == pytest.approx(6)
    assert FINGERPRINT.memory_gib(2, 3, KIND) == pytest.approx(6 + 0.4 + 2 * 2 * 0.7)
    assert FINGERPRINT.memory_gib(1, 1, KIND, batch=5) == pytest.approx(6.4)


def test_times_measured_apart_give_the_same_line():
    apart = [
        sample.model_copy(update={"e2e_ms": None, "prefill_ms": 6 + 2.5 * n, "decode_ms": 1 + 0.5 * n})
        for sample in CUTS
        if sample.tp == 1 and len(sample.layers) == 1 and sample.output_tokens == 10
        for n in [sum(sample.layers)]
    ]
    assert fit_maveriq(MODEL, apart).latency_ms(1, 1, KIND, output_tokens=100) == pytest.approx(25 + 100 * 6)


def test_exponents_are_found_again_from_whole_models():
    truth = Exponents(0.2, 0.9, 0.5, 0.4)
    known = []
    for tp, pp in ((1, 1), (1, 2), (1, 4), (1, 8), (2, 1), (2, 2), (2, 4), (4, 1), (4, 2), (8, 1)):
        for o in (50, 200):
            latency_ms = FINGERPRINT.latency_ms(tp, pp, KIND, output_tokens=o, by=truth)
            known.append((FINGERPRINT, run((1,) * pp, o, tp=tp, e2e_ms=latency_ms)))
    found = fit_exponents(known)
    for _, whole in known:
        said = FINGERPRINT.latency_ms(whole.tp, len(whole.layers), KIND, output_tokens=whole.output_tokens, by=found)
        assert said == pytest.approx(whole.e2e_ms, rel=0.02)


def test_a_format_that_was_not_read_is_not_guessed():
    with pytest.raises(Unmeasured, match="int8"):
        FINGERPRINT.latency_ms(1, 1, (Precision.INT8, Precision.FP16), output_tokens=100)
