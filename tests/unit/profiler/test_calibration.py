"""Constants that are known come back from noisy samples; what was not seen is refused."""

import random
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from math import sqrt

import pytest

from maveriq import law
from maveriq.contracts import Calibration, ModelFacts, Precision, Residuals, RunSample
from maveriq_profiler import calibration
from maveriq_profiler.calibration import TooLittle
from maveriq_profiler.run_terms import terms_of
from tests.unit.law.shapes import CONSTANTS, Run, facts, mixture, ms, rig

SHAPES = (
    facts(1024, 4096, 32000, 4, 16, 4), facts(2048, 4096, 32000, 8, 16, 16), facts(1024, 2048, 128000, 8, 8, 2),
    facts(4096, 11008, 32000, 32, 32, 32), facts(2048, 8192, 64000, 16, 32, 8),
)  # fmt: skip
UNSEEN = facts(3072, 8192, 48000, 28, 24, 8)


def fit(samples: Sequence[RunSample], cost_s: float = 12.0) -> Calibration:
    return calibration.fit(
        samples, engine="engine", engine_version="1", gpu_type="card", max_pp=4, version=3,
        fitted_at=datetime(2026, 1, 1, tzinfo=UTC), cost_s=cost_s,
    )  # fmt: skip


def samples_of(models: Iterable[ModelFacts], noise: float, *, whole: bool = False, seed: int = 1) -> list[RunSample]:
    dice = random.Random(seed)
    found: list[RunSample] = []
    for model in models:
        n = model.num_layers
        for layers in ((n,), (1, n - 1), (n // 2, n - n // 2)):
            for batch in (1, 2, 4, 8):
                for tokens in (32, 300, 1200):
                    run = Run(model, layers, rig())
                    prefill_ms = ms(run.prefill(batch, tokens)) * dice.gauss(1, noise)
                    decode_ms = ms(run.decode(batch, tokens + 8)) * dice.gauss(1, noise)
                    times = {"e2e_ms": prefill_ms + 15 * decode_ms} if whole else {
                        "prefill_ms": prefill_ms, "decode_ms": decode_ms,
                    }  # fmt: skip
                    found.append(RunSample(
                        facts=model, precision=Precision.FP16, kv_precision=Precision.FP16, layers=layers,
                        batch=batch, input_tokens=tokens, output_tokens=16, **times,
                    ))  # fmt: skip
    return found


def constants(found: Calibration) -> dict[str, float]:
    return {constant.name: constant.value for constant in found.latency}


def worst_error(found: Calibration, model: ModelFacts) -> float:
    fitted = constants(found)
    worst = 0.0
    for batch in (1, 2, 3, 8):
        for tokens in (64, 700):
            run = Run(model, (model.num_layers,), rig())
            for terms in (run.prefill(batch, tokens), run.decode(batch, tokens)):
                worst = max(worst, abs(ms(terms, fitted) / ms(terms) - 1))
    return worst


def test_an_unseen_model_is_predicted_from_the_readings_of_others():
    assert worst_error(fit(samples_of(SHAPES, 0.0)), UNSEEN) < 0.005
    assert worst_error(fit(samples_of(SHAPES, 0.01)), UNSEEN) < 0.03


def test_whole_requests_teach_as_well_as_prefill_and_decode_apart():
    found = fit(samples_of(SHAPES, 0.003, whole=True))
    run = Run(UNSEEN, (UNSEEN.num_layers,), rig())
    terms = law.added(run.prefill(2, 300), law.scaled(run.decode(2, 308), 15))
    assert ms(terms, constants(found)) == pytest.approx(ms(terms), rel=0.02)


def test_the_constants_themselves_come_back():
    found = constants(fit(samples_of(SHAPES, 0.002)))
    for name in ("weights", "compute", "cache", "step", "layer[full]"):
        assert found[name] == pytest.approx(CONSTANTS[name], rel=0.15), name


def test_a_few_wild_readings_change_little():
    samples = samples_of(SHAPES, 0.003)
    for i in range(0, len(samples), 25):
        samples[i] = samples[i].model_copy(update={"decode_ms": (samples[i].decode_ms or 0) * 4})
    assert worst_error(fit(samples), UNSEEN) < 0.03


def test_standard_errors_cover_what_noise_did():
    inside = 0
    for seed in range(20):
        found = fit(samples_of(SHAPES[:4], 0.02, seed=seed))
        names = [constant.name for constant in found.latency]
        terms = Run(UNSEEN, (28,), rig()).decode(4, 400)
        x = [float(terms.get(name, 0.0)) for name in names]
        variance = sum(
            (1 if i == j else 2) * x[i] * x[j] * value
            for i, row in enumerate(found.covariance)
            for j, value in enumerate(row)
        )
        inside += abs(ms(terms, constants(found)) - ms(terms)) <= 2 * sqrt(variance)
    assert inside >= 14


def test_covariance_is_the_lower_triangle_of_the_constants():
    found = fit(samples_of(SHAPES, 0.01))
    assert [len(row) for row in found.covariance] == list(range(1, len(found.latency) + 1))
    for i, constant in enumerate(found.latency):
        assert constant.standard_error == pytest.approx(sqrt(found.covariance[i][i]))


def test_repeats_of_a_run_count_once():
    samples = samples_of(SHAPES, 0.01)
    assert constants(fit(samples * 3)) == pytest.approx(constants(fit(samples)))


def test_residuals_say_what_the_law_missed():
    assert fit(samples_of(SHAPES, 0.0)).latency_residuals.maximum < 0.01
    assert 0.002 < fit(samples_of(SHAPES, 0.01)).latency_residuals.median < 0.02


def test_memory_measured_whole_is_split_into_what_is_counted_and_the_rest():
    truth = {"runtime.tp1.pp1": 0.5, "runtime.tp1.pp2": 1.4, "activation.wide": 2.0, "buffers": 1.0}
    samples = [sample for sample in samples_of(SHAPES, 0.0) if sample.layers[0] != 1]
    weighed = [sample.model_copy(update={"memory_bytes": _memory(sample, truth)}) for sample in samples]
    found = {constant.name: constant.value for constant in fit(weighed).memory}
    for sample in weighed:
        assert _memory(sample, found) == pytest.approx(sample.memory_bytes, rel=0.01)


def _memory(sample: RunSample, known: dict[str, float]) -> int:
    cached = sample.batch * (sample.input_tokens + sample.output_tokens)
    counted = law.known_bytes(sample.facts, rig(), num_layers=sum(sample.layers), cached_tokens=cached)
    terms = law.memory_terms(
        sample.facts, rig(), num_layers=sum(sample.layers), num_stages=len(sample.layers),
        tokens=sample.batch * sample.input_tokens,
    )  # fmt: skip
    return int(counted + law.dot(known, terms) * 2**30)


def test_bytes_measured_apart_give_activations_runtime_and_the_margin():
    samples = samples_of(SHAPES, 0.0)
    for i, sample in enumerate(samples):
        terms = law.activation_terms(
            sample.facts, rig(), num_stages=len(sample.layers), tokens=sample.batch * sample.input_tokens
        )
        activation = int(law.dot({"activation.hidden": 3.0, "activation.wide": 1.5}, terms) * 2**30)
        samples[i] = sample.model_copy(update={"activation_bytes": activation, "runtime_bytes": 2**29})
    found = fit(samples)
    memory = {constant.name: constant.value for constant in found.memory}
    assert memory["runtime.tp1.pp1"] == pytest.approx(0.5, rel=0.01)
    assert memory["activation.wide"] == pytest.approx(1.5, rel=0.05)
    assert found.memory_margin < 0.02


def test_the_scope_is_what_was_seen():
    scope = fit(samples_of(SHAPES, 0.0)).scope
    assert (scope.num_models, scope.batches, scope.pp_degrees, scope.tp_degrees) == (5, (1, 2, 4, 8), (1, 2), (1,))
    assert scope.hidden_size == (1024, 4096)
    assert scope.max_input_tokens == 1200


def test_served_batches_add_few_knots():
    samples = samples_of(SHAPES, 0.0)
    served = [
        sample.model_copy(update={"batch": batch, "served": True}) for sample in samples[:3] for batch in range(1, 41)
    ]
    assert fit([*samples, *served]).scope.batches == (1, 2, 4, 8, 16, 32)


def test_one_model_is_fitted_and_not_trusted_for_another():
    found = fit(samples_of(SHAPES[:1], 0.001))
    assert "1 model" in law.uncovered(found, UNSEEN, Precision.FP16, Precision.FP16)


@pytest.mark.parametrize(
    ("model", "precision", "degrees", "reason"),
    [
        (UNSEEN, Precision.INT8, {}, "precision int8"),
        (UNSEEN, Precision.FP16, {"tp": 2}, "TP 2"),
        (UNSEEN, Precision.FP16, {"context_tokens": 30_000}, "30000 tokens"),
        (mixture(), Precision.FP16, {}, "mixture"),
        (facts(32768, 131072, 32000, 8, 64, 64), Precision.FP16, {}, "layer_params"),
        (facts(1024, 4096, 1_000_000), Precision.FP16, {}, "vocab_size"),
    ],
)
def test_what_was_not_seen_is_refused_with_the_reason(model, precision, degrees, reason):
    assert reason in law.uncovered(fit(samples_of(SHAPES, 0.0)), model, precision, Precision.FP16, **degrees)


def test_what_was_seen_is_covered():
    assert law.uncovered(fit(samples_of(SHAPES, 0.0)), UNSEEN, Precision.FP16, Precision.FP16, pp=3) == ""


@pytest.mark.parametrize(
    "samples", [[], [samples_of(SHAPES, 0.0)[0].model_copy(update={"prefill_ms": None, "decode_ms": None})]]
)
def test_without_a_time_there_is_no_fit(samples):
    with pytest.raises(TooLittle):
        fit(samples)


def test_a_fit_that_misses_its_own_samples_is_not_trusted() -> None:
    found = fit(samples_of(SHAPES, 0.0))
    poor = found.model_copy(update={"latency_residuals": Residuals(median=0.16, p90=0.45, maximum=0.9)})
    assert "16%" in law.uncovered(poor, UNSEEN, Precision.FP16, Precision.FP16)


def served(models: Iterable[ModelFacts], times: float) -> list[RunSample]:
    """Decode steps of whole models, which take so many times what they should."""
    return [
        sample.model_copy(update={"served": True, "prefill_ms": None, "decode_ms": times * (sample.decode_ms or 0.0)})
        for sample in samples_of(models, 0.0)
        if len(sample.layers) == 1 and sample.batch < 4
    ]


def step_error(found: Calibration, model: ModelFacts, times: float) -> float:
    run = Run(model, (model.num_layers,), rig())
    return abs(ms(run.decode(2, 308), constants(found)) / (times * ms(run.decode(2, 308))) - 1)


@pytest.mark.parametrize("times", [0.7, 1.4, 100.0])
def test_what_all_served_models_take_longer_is_what_the_gpu_type_takes_longer(times: float) -> None:
    found = fit([*samples_of(SHAPES, 0.002), *served(SHAPES[3:], times)])
    assert (found.prefill_drift, found.decode_drift) == (1.0, pytest.approx(times, rel=0.01))
    assert step_error(found, SHAPES[3], times) < 0.02
    assert step_error(found, UNSEEN, times) < 0.02  # and others are predicted as much slower


def test_one_served_model_that_is_off_where_another_is_not_is_no_drift() -> None:
    found = fit([*samples_of(SHAPES, 0.002), *served(SHAPES[3:4], 1.4), *served(SHAPES[4:], 1.0)])
    assert (found.prefill_drift, found.decode_drift) == (1.0, 1.0)
    assert step_error(found, UNSEEN, 1.0) < 0.03


def test_a_batch_that_was_never_measured_tells_no_drift() -> None:
    beyond = [sample.model_copy(update={"batch": 32}) for sample in served(SHAPES[3:], 3.0)]
    assert fit([*samples_of(SHAPES, 0.002), *beyond]).decode_drift == 1.0


def test_a_precision_is_known_from_two_models_on_and_as_it_was_computed() -> None:
    full = samples_of(SHAPES[:2], 0.0)

    def as_int8(samples: Iterable[RunSample]) -> list[RunSample]:
        return [sample.model_copy(update={"precision": Precision.INT8}) for sample in samples]

    one = calibration.scope_of([*full, *as_int8(samples_of(SHAPES[:1], 0.0))])
    two = calibration.scope_of([*full, *as_int8(full)])
    alone = calibration.scope_of(as_int8(samples_of(SHAPES[:1], 0.0)))
    assert one.precisions == (Precision.FP16,)
    assert two.precisions == (Precision.FP16, Precision.INT8)
    assert alone.precisions == (Precision.INT8,), "one model is refused for being one"
    assert two.computed_in == ((Precision.INT8, Precision.FP16),)


def disturbed(samples: Iterable[RunSample], times: float, others: float) -> list[RunSample]:
    """Others took that share of the device, and all took so many times as long."""
    found: list[RunSample] = []
    for one in samples:
        slower = {"prefill_ms": times * (one.prefill_ms or 0), "decode_ms": times * (one.decode_ms or 0)}
        found.append(one.model_copy(update={"others": others, **slower}))
    return found


def test_a_quiet_repeat_takes_the_place_of_a_disturbed_run() -> None:
    runs = samples_of(SHAPES, 0.002)
    found = fit([*disturbed(runs, 3.0, 0.7), *disturbed(runs, 1.0, 0.0)])
    assert (found.num_disturbed, found.others) == (0, 0.0)
    assert worst_error(found, UNSEEN) < 0.03


def test_disturbed_runs_count_little_beside_quiet_ones_and_are_told() -> None:
    rough, quiet = samples_of(SHAPES[:2], 0.002), samples_of(SHAPES[2:], 0.002)
    found = fit([*disturbed(rough, 3.0, 0.7), *quiet])
    assert (found.num_disturbed, found.others) == (len(rough), 0.0)
    assert worst_error(found, UNSEEN) < 0.1


def test_where_most_runs_were_disturbed_the_calibration_says_how_much() -> None:
    assert fit(disturbed(samples_of(SHAPES, 0.002), 3.0, 0.7)).others == 0.7


def test_what_served_layers_of_several_precisions_took_teaches_them() -> None:
    """Of int8 a calibration has measured the layers alone; a mix served more slowly moves its constants."""
    int8 = [s.model_copy(update={"precision": Precision.INT8}) for s in samples_of(SHAPES[:2], 0.002)]
    known = [*samples_of(SHAPES, 0.002), *int8]
    n = SHAPES[3].num_layers
    mix = ((Precision.FP16, n // 2), (Precision.INT8, n - n // 2))
    slower = [s.model_copy(update={"mix": mix}) for s in served(SHAPES[3:4], 1.3)]
    before, after = fit(known), fit([*known, *slower])
    assert after.scope.precisions == before.scope.precisions and after.decode_drift == 1.0
    run = slower[0]
    said = [ms(terms_of(run, "engine", one.scope.batches, "decode"), constants(one)) for one in (before, after)]
    assert said[0] < said[1], "nearer to what was served"
