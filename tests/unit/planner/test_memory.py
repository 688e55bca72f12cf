import pytest

from maveriq.contracts import Configuration, Precision
from maveriq_planner.memory import fit_activations, replica_bytes, stage_memory
from tests.unit.planner.measurements import FACTS, fingerprint


def configuration(**changes: object) -> Configuration:
    plain = Configuration(
        engine="torch", gpu_type="cpu-1t", tp=1, pp=1, precision=Precision.FP32, kv_precision=Precision.FP32,
        max_batch=4, context_tokens=256,
    )  # fmt: skip
    return plain.model_copy(update=changes)


WEIGHT_BYTES = 4 * (30 * FACTS.layer_params + FACTS.embedding_params + 576)  # tied: the matrix once
KV_BYTES = 30 * 4 * 256 * 2 * 3 * 64 * 4


def test_one_stage_takes_its_weights_once_and_its_cache() -> None:
    memory = stage_memory(FACTS, configuration(), fit_activations(fingerprint(samples=fingerprint().samples)), 0)
    assert memory.of_stage(30, first=True, last=True) - memory.runtime_bytes == WEIGHT_BYTES + KV_BYTES


def test_a_tied_matrix_is_held_twice_once_its_ends_part() -> None:
    memory = stage_memory(FACTS, configuration(pp=2), fit_activations(fingerprint()), 0)
    two = memory.of_stage(22, first=True, last=False) + memory.of_stage(8, first=False, last=True)
    assert two - 2 * memory.runtime_bytes == WEIGHT_BYTES + KV_BYTES + 4 * FACTS.embedding_params


@pytest.mark.parametrize("pp", [1, 2, 7])
@pytest.mark.parametrize("tp", [1, 3])
def test_a_replica_takes_the_sum_of_its_stages_however_split(pp: int, tp: int) -> None:
    c = configuration(pp=pp, tp=tp)
    memory = stage_memory(FACTS, c, fit_activations(fingerprint()), 1000)
    uneven = [30 - (pp - 1)] + [1] * (pp - 1)
    stages = (memory.of_stage(n, first=i == 0, last=i == pp - 1) for i, n in enumerate(uneven))
    assert replica_bytes(memory, c, 30) == tp * sum(stages)


def test_activations_grow_with_the_longest_prompt_and_cover_every_sample() -> None:
    law = fit_activations(fingerprint())
    assert law.at(512, 0) == pytest.approx(100_000 + 20_000 * 512, rel=1e-3)
    assert all(law.at(s.batch * s.input_tokens, 0) >= s.activation_bytes for s in fingerprint().samples if s.batch == 1)


def test_quantised_weights_leave_the_ends_and_the_norms_in_the_format_computed_in() -> None:
    c = configuration(precision=Precision.INT8)
    memory = stage_memory(FACTS, c, fit_activations(fingerprint()), 0)
    assert memory.first_bytes == 4 * FACTS.embedding_params
    kv_bytes = KV_BYTES // 30
    assert FACTS.layer_params + 2 * 576 * 3 < memory.layer_bytes - kv_bytes < 1.02 * FACTS.layer_params


def test_two_ranks_hold_at_least_the_layer_together() -> None:
    facts = FACTS.model_copy(update={"num_heads": 8, "num_kv_heads": 4})
    whole = stage_memory(facts, configuration(), fit_activations(fingerprint()), 0)
    half = stage_memory(facts, configuration(tp=2), fit_activations(fingerprint()), 0)
    assert whole.layer_bytes <= 2 * half.layer_bytes <= 1.01 * whole.layer_bytes
