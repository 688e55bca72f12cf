"""Bytes of a replica, however it is split: weights, cache and what is held once."""

import numpy as np
import pytest

from maveriq import law
from maveriq.contracts import Precision, StageMemory
from maveriq_planner.columns import replica_bytes
from maveriq_planner.memory import Counted, counted, fit_activations
from tests.unit.planner.measurements import FACTS, fingerprint

WEIGHT_BYTES = 4 * (30 * FACTS.layer_params + FACTS.embedding_params + 576)  # tied: the matrix once
KV_BYTES = 30 * 4 * 256 * 2 * 3 * 64 * 4


def of(
    tp: int = 1, precision: Precision = Precision.FP32, slots: int = 4, engine: str = "trtllm", **changes: int
) -> Counted:
    facts = FACTS.model_copy(update=changes)
    return counted(facts, engine, precision, Precision.FP32, tp, np.array([float(slots)]), 256)


def stage(count: Counted, runtime: int = 0) -> StageMemory:
    return StageMemory(
        layer_bytes=int(count.layer_bytes[0]), first_bytes=int(count.first_bytes), last_bytes=int(count.last_bytes),
        tied_saving_bytes=int(count.tied_saving_bytes), runtime_bytes=runtime,
    )  # fmt: skip


def test_one_stage_takes_its_weights_once_and_its_cache() -> None:
    assert stage(of()).of_stage(30, first=True, last=True) == WEIGHT_BYTES + KV_BYTES


def test_a_tied_matrix_is_held_twice_once_its_ends_part() -> None:
    memory = stage(of())
    two = memory.of_stage(22, first=True, last=False) + memory.of_stage(8, first=False, last=True)
    assert two == WEIGHT_BYTES + KV_BYTES + 4 * FACTS.embedding_params


@pytest.mark.parametrize("pp", [1, 2, 7])
@pytest.mark.parametrize("tp", [1, 3])
def test_a_replica_takes_the_sum_of_its_stages_however_split(pp: int, tp: int) -> None:
    count = of(tp)
    memory = stage(count, runtime=1000)
    uneven = [30 - (pp - 1)] + [1] * (pp - 1)
    stages = (memory.of_stage(n, first=i == 0, last=i == pp - 1) for i, n in enumerate(uneven))
    whole = replica_bytes(
        30, np.array([tp]), np.array([pp]), count.layer_bytes, np.array([1000.0]),
        np.array([count.first_bytes + count.last_bytes]), np.array([count.tied_saving_bytes]),
    )  # fmt: skip
    assert whole[0] == tp * sum(stages)


def test_activations_grow_with_the_longest_prompt_and_cover_every_sample() -> None:
    law = fit_activations(fingerprint())
    none = np.zeros(1)
    assert law.at(512, none)[0] == pytest.approx(100_000 + 20_000 * 512, rel=1e-3)
    alone = [s for s in fingerprint().samples if s.batch == 1]
    assert all(law.at(s.input_tokens, none)[0] >= s.activation_bytes for s in alone)


def test_quantised_weights_leave_the_ends_and_the_norms_in_the_format_computed_in() -> None:
    memory = stage(of(precision=Precision.INT8))
    assert memory.first_bytes == 4 * FACTS.embedding_params
    kv_bytes = KV_BYTES // 30
    assert FACTS.layer_params + 2 * 576 * 3 < memory.layer_bytes - kv_bytes < 1.02 * FACTS.layer_params


def test_two_ranks_hold_at_least_the_layer_together() -> None:
    whole, half = (stage(of(tp, num_heads=8, num_kv_heads=4)) for tp in (1, 2))
    assert whole.layer_bytes <= 2 * half.layer_bytes <= 1.01 * whole.layer_bytes


def test_the_torch_engines_quantised_layers_are_counted_to_the_byte() -> None:
    memory = stage(of(precision=Precision.INT8, engine="torch"))
    expected = law.layer_weight_bytes(FACTS, "torch", Precision.INT8, 4.0)
    assert memory.layer_bytes == expected + KV_BYTES // 30 < FACTS.layer_params * 1.01 + KV_BYTES // 30
