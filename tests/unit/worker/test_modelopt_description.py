"""Checkpoints of Model Optimizer: what is described is read again, and what is not as planned is told."""

import pytest

from maveriq.contracts import Precision
from maveriq_worker.modelopt_description import Undescribed, describe, described, difference, told

BF16, FP8, INT8, INT4 = Precision.BF16, Precision.FP8, Precision.INT8, Precision.INT4
LAYERS = (INT4, INT4, INT8, BF16, FP8)


def test_a_description_is_model_optimizers() -> None:
    said = describe((INT4, BF16, INT8), FP8, matrices=("mlp.up_proj",))
    assert said["quantization"] == {
        "quant_algo": "MIXED_PRECISION",
        "kv_cache_quant_algo": "FP8",
        "quantized_layers": {
            "model.layers.0.mlp.up_proj": {"quant_algo": "W4A16_AWQ", "group_size": 128},
            "model.layers.2.mlp.up_proj": {"quant_algo": "W8A16"},
        },
        "exclude_modules": ["lm_head"],
    }


def test_what_is_described_is_read_again() -> None:
    found = described(describe(LAYERS, BF16))
    assert (found.layers, found.kv_algorithm, found.is_mixed) == ({0: INT4, 1: INT4, 2: INT8, 4: FP8}, None, True)
    assert difference(found, LAYERS, BF16) is None
    assert difference(found, LAYERS, FP8) is None  # the cache's format is asked for beside the checkpoint


def test_the_second_file_counts_where_both_say_something() -> None:
    first = {"quantization": {"quant_algo": "MIXED_PRECISION", "kv_cache_quant_algo": None}}
    second = {"quant_algo": "MIXED_PRECISION", "quantized_layers": {"model.layers.1.mlp": {"quant_algo": "FP8"}}}
    assert described(first, second).layers == {1: FP8}


def test_one_precision_for_all_is_not_mixed() -> None:
    found = described({"quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8"}})
    assert (found.layers, found.kv_algorithm, found.is_mixed) == ({}, "FP8", False)


@pytest.mark.parametrize(
    ("asked", "kv", "words"),
    [
        ((INT4, INT8, INT8, BF16, FP8), BF16, "layer 1 is int4 there and int8 in the placement"),
        ((INT4, INT4, INT8, INT8, FP8), BF16, "layer 3 is whole there and int8"),
        ((INT4, INT4, BF16, BF16, FP8), BF16, "layer 2 is int8 there and bf16"),
        (LAYERS[:4], BF16, "describes layer 4, and the placement has 4 layers"),
    ],
)
def test_what_differs_is_named(asked: tuple[Precision, ...], kv: Precision, words: str) -> None:
    assert words in (difference(described(describe(LAYERS, BF16)), asked, kv) or "")


def test_a_cache_of_another_format_is_named() -> None:
    found = described(describe(LAYERS, FP8))
    assert "its KV cache is FP8 and the placement's bf16" in (difference(found, LAYERS, BF16) or "")


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ({"model.layers.0.mlp": {"quant_algo": "NVFP4"}}, "NVFP4; FP8, W8A16, W4A16_AWQ can be planned with"),
        ({"lm_head": {"quant_algo": "FP8"}}, "lm_head is quantised and belongs to no layer"),
        ({"layers.3.a": {"quant_algo": "FP8"}, "layers.3.b": {"quant_algo": "W8A16"}}, "layer 3 holds fp8 and int8"),
    ],
)
def test_what_is_not_one_precision_a_layer_is_refused(layers: dict[str, dict[str, str]], words: str) -> None:
    with pytest.raises(Undescribed, match=words):
        described({"quantization": {"quant_algo": "MIXED_PRECISION", "quantized_layers": layers}})


def test_weights_that_tensorrt_llm_does_not_mix_are_refused() -> None:
    with pytest.raises(Undescribed, match="not int4_channel"):
        describe((Precision.INT4_CHANNEL,), BF16)


def test_runs_of_layers_are_told_shortly() -> None:
    assert told(LAYERS) == "layers 0-1 int4, 2 int8, 3 bf16, 4 fp8"
