"""A calibration's runs fit the device and tell the law's constants apart."""

import json

import numpy as np
import pytest

from maveriq import law
from maveriq.contracts import FULL_PRECISIONS, ModelFacts, Precision
from maveriq_profiler.formats import Format
from maveriq_profiler.programme import Item, programme

_GIB = 2**30


def cpu(*precisions: Precision, free_bytes: int = 8 * _GIB, budget_s: float = 1e9, max_pp: int = 8) -> tuple[Item, ...]:
    quantised = [precision for precision in precisions if precision not in FULL_PRECISIONS]
    return programme(
        engine="torch", on_cpu=True, free_bytes=free_bytes, max_pp=max_pp, budget_s=budget_s, quantised=quantised,
        precisions=[each for each in precisions if each not in quantised] or (Precision.FP32,),
    )  # fmt: skip


def gpus(num_gpus: int, free_bytes: int = 80 * _GIB) -> tuple[Item, ...]:
    return programme(
        engine="trtllm", on_cpu=False, free_bytes=free_bytes, precisions=(Precision.BF16,), max_pp=8, budget_s=1e9,
        num_gpus=num_gpus,
    )  # fmt: skip


def facts_of(item: Item) -> ModelFacts:
    """As `facts.facts_of` counts them, without building the model."""
    config = json.loads(item.config_json)
    hidden, heads, kv_heads = config["hidden_size"], config["num_attention_heads"], config["num_key_value_heads"]
    head_dim, ffn, vocab = hidden // heads, config["intermediate_size"], config["vocab_size"]
    return ModelFacts(
        architecture="LlamaForCausalLM",
        shape_key=item.key,
        num_layers=config["num_hidden_layers"],
        hidden_size=hidden,
        intermediate_size=ffn,
        vocab_size=vocab,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        max_context_tokens=8192,
        layer_params=2 * hidden**2 + 2 * hidden * kv_heads * head_dim + 3 * hidden * ffn + 2 * hidden,
        embedding_params=vocab * hidden,
        lm_head_params=vocab * hidden + hidden,
        tied_embeddings=False,
    )


def decode_rows(items: tuple[Item, ...]) -> list[dict[str, float]]:
    knots = tuple(sorted({point.batch for item in items for point in item.points}))
    rig = law.Rig("torch", items[0].precision, items[0].format.kv_precision, 1, knots)
    return [
        law.decode_terms(
            facts_of(item),
            rig,
            batch=point.batch,
            context_tokens=point.input_tokens + item.output_tokens / 2,
            num_layers=sum(split),
            num_stages=len(split),
            fullest=max(split),
        ).through(sum(split))
        for item in items
        for split in item.splits
        for point in item.points_of(split)
    ]


def told_apart(rows: list[dict[str, float]], names: list[str]) -> bool:
    matrix = np.array([[row.get(name, 0.0) for name in names] for row in rows])
    matrix /= np.array([[sum(row.values())] for row in rows])  # relative errors count
    return bool(np.linalg.matrix_rank(matrix / np.linalg.norm(matrix, axis=0), tol=1e-3) == len(names))


def test_the_same_limits_give_the_same_items_and_no_key_twice() -> None:
    items = cpu(Precision.FP32, Precision.BF16)
    assert items == cpu(Precision.FP32, Precision.BF16)
    assert len({item.key for item in items}) == len(items)


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.BF16])
def test_the_first_two_models_tell_layers_weights_host_head_and_hops_apart(precision: Precision) -> None:
    rows = decode_rows(cpu(precision)[:2])
    assert told_apart(rows, ["layer[full]", "weights", "step", "head", "hop.tp1"])


def test_the_whole_programme_tells_every_constant_of_a_decode_step_apart() -> None:
    rows = decode_rows(cpu())
    twins = {name for row in rows for name in row if name.endswith("[fp32]")}  # of the common constants
    names = sorted({name for row in rows for name, value in row.items() if value} - twins)
    assert {"cache", "requests", "hop.tp1", "rows@8"} <= set(names)
    assert told_apart(rows, names)


def test_two_models_of_each_precision_come_before_a_third_of_any() -> None:
    items = cpu(Precision.FP32, Precision.BF16)
    assert [item.precision for item in items[:4]] == [Precision.FP32] * 2 + [Precision.BF16] * 2
    assert len({json.loads(item.config_json)["hidden_size"] for item in items[:2]}) == 2


def test_quantised_precisions_add_few_models_without_stages_after_the_first_full_ones() -> None:
    full, mixed = cpu(), cpu(Precision.FP32, Precision.INT8, Precision.INT4)
    added = [item for item in mixed if item not in full]
    assert mixed[:2] == full[:2] and list(mixed[2:8]) == added
    assert [item.format for item in added] == [
        Format(precision, Precision.FP32) for precision in (Precision.INT8, Precision.INT4) for _ in range(3)
    ]
    assert all(len(item.splits) == 1 and len(item.splits[0]) == 1 for item in added)
    rows = decode_rows(tuple(added[:3]))
    assert told_apart(rows, ["layer[quantised]", "weights[int8]"])


def test_no_pass_fits_a_processors_cache() -> None:
    for item in cpu(Precision.BF16):
        facts = facts_of(item)
        for split in item.splits:
            assert 2 * (sum(split) * facts.layer_params + facts.lm_head_params) >= 80 * 2**20


def test_what_does_not_fit_is_not_planned_and_where_no_large_model_does_small_ones_are() -> None:
    assert all(item.bytes_needed <= _GIB for item in cpu(free_bytes=_GIB))
    assert cpu(free_bytes=2**20) == ()
    large, small = gpus(1), gpus(1, free_bytes=6 * _GIB)
    assert small and max(item.bytes_needed for item in small) <= 6 * _GIB
    assert not {item.key for item in large} & {item.key for item in small}


def test_the_budget_is_kept_but_for_the_two_models_without_which_there_is_no_calibration() -> None:
    assert len(cpu(budget_s=1)) == 2
    assert sum(item.expected_s for item in cpu(budget_s=200)) <= 200


def test_an_engine_that_runs_one_stage_is_asked_for_no_more() -> None:
    assert all(len(split) == 1 for item in cpu(max_pp=1) for split in item.splits)


def test_tensorrt_llm_has_a_gpu_for_each_rank_and_divides_the_kv_heads() -> None:
    assert {item.num_gpus for item in gpus(1)} == {1}
    of_four = gpus(4)
    assert {(item.tp, max(len(split) for split in item.splits)) for item in of_four} == {
        (1, 1), (2, 1), (1, 2), (4, 1), (2, 2)
    }  # fmt: skip
    assert all(json.loads(item.config_json)["num_key_value_heads"] % item.tp == 0 for item in of_four)
