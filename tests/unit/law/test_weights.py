"""Bytes of layers and cached tokens: the torch engine's exact, TensorRT-LLM's by their elements."""

import pytest

from maveriq import law
from maveriq.contracts import BYTES_PER_ELEMENT, Precision
from maveriq.law.weights import expert_weight_bytes, int4_group, kept_in, layer_matrices, matrix_bytes
from tests.unit.law.shapes import facts, mixture

SMOLLM2 = {"hidden_size": 576, "intermediate_size": 1536, "num_heads": 9, "num_kv_heads": 3, "layer_params": 3_540_096}


def test_smollm2s_layers_are_counted_to_the_byte() -> None:
    model = facts(**SMOLLM2)
    matrices = 2 * 576 * 576 + 2 * 192 * 576 + 3 * 576 * 1536
    outputs = 2 * 576 + 2 * 192 + 2 * 1536 + 576
    assert sum(rows * columns for rows, columns in layer_matrices(model)) == matrices
    norms = 2 * 576
    assert law.layer_weight_bytes(model, "torch", Precision.INT8, 4.0) == matrices + 2 * outputs + 4 * norms
    groups = (matrices - 576 * 1536) // 64 + 576 * 1536 // 128
    assert law.layer_weight_bytes(model, "torch", Precision.INT4, 2.0) == matrices // 2 + 4 * groups + 2 * norms
    assert law.layer_weight_bytes(model, "torch", Precision.FP32, 4.0) == 4 * model.layer_params


@pytest.mark.parametrize(("inputs", "group"), [(4096, 128), (576, 64), (96, 32), (80, 0)])
def test_a_group_is_the_largest_that_divides_the_inputs(inputs: int, group: int) -> None:
    assert int4_group(inputs) == group


@pytest.mark.parametrize("shape", [(16, 80), (24, 128)])
def test_what_the_int4_kernel_does_not_take_is_kept_in_int8(shape: tuple[int, int]) -> None:
    assert kept_in(*shape, Precision.INT4) is Precision.INT8
    assert matrix_bytes(*shape, Precision.INT4) == matrix_bytes(*shape, Precision.INT8) == shape[0] * (shape[1] + 2)


def test_other_engines_count_by_their_elements() -> None:
    model = facts()
    for precision in Precision:
        told = law.layer_weight_bytes(model, "trtllm", precision, 2.0)
        assert told == model.layer_params * BYTES_PER_ELEMENT[precision]


def test_an_int8_cache_of_the_torch_engine_has_a_scale_for_each_token_and_head() -> None:
    model = facts(num_kv_heads=4)
    head = model.head_dim
    assert law.cached_token_bytes(model, "torch", Precision.FP32) == 2 * 4 * head * 4
    assert law.cached_token_bytes(model, "torch", Precision.INT8) == 2 * 4 * (head + 2)
    assert law.cached_token_bytes(model, "trtllm", Precision.INT8) == 2 * 4 * head
    assert law.cached_token_bytes(model, "trtllm", Precision.FP8, tp=8) == 2 * head


def test_experts_stay_whole_in_the_torch_engine() -> None:
    model = mixture()
    rest = model.layer_params - sum(rows * columns for rows, columns in layer_matrices(model))
    assert rest == 8 * model.expert_params
    assert expert_weight_bytes(model, "torch", Precision.INT4, 2.0) == 2 * model.expert_params
    assert law.layer_weight_bytes(model, "torch", Precision.INT4, 2.0) > 2 * rest
    assert expert_weight_bytes(model, "trtllm", Precision.INT8, 2.0) == model.expert_params
