"""Stages of quantised layers and caches: exact however they are split, of the bytes that the law says, never whole."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from maveriq import law
from maveriq.contracts import Precision
from maveriq.torch_layers import quantise, weight_bytes
from maveriq_worker import torch_stage
from maveriq_worker.torch_stage import StageCannotRun, TorchStage
from maveriq_worker.torch_steps import Move, Pick, Step
from tests.unit.torch_layers.shapes import facts_of
from tests.unit.worker.tiny_models import NUM_LAYERS, greedy, save_model, spec

FP32, INT8, INT4 = Precision.FP32, Precision.INT8, Precision.INT4
MIXED = (INT4, INT8, FP32, INT8)
PROMPTS = [[5, 9, 11, 3, 8, 21, 7, 64, 90], [4, 80], [33, 1, 2, 77, 5]]
NUM_TOKENS = 8


def stages(folder: Path, split: tuple[int, ...], precisions: tuple[Precision, ...], **changes: Any) -> list[TorchStage]:
    starts = [sum(split[:rank]) for rank in range(len(split))]
    return [
        TorchStage(spec(folder, split, rank, precisions=precisions[start : start + split[rank]], **changes))
        for rank, start in enumerate(starts)
    ]


@pytest.mark.parametrize(
    ("family", "precisions"),
    [("Llama", (INT8,) * 4), ("Llama", (INT4,) * 4), ("Qwen3", MIXED), ("Phi3", MIXED), ("Gemma3Text", MIXED)],
    ids=["Llama int8", "Llama int4", "Qwen3", "Phi3", "Gemma3Text"],
)
def test_tokens_are_those_of_transformers_with_the_same_quantised_layers(
    family: str, precisions: tuple[Precision, ...], tmp_path: Path
) -> None:
    model = save_model(family, tmp_path)
    for layer, precision in zip(model.base_model.layers, precisions, strict=True):
        quantise(layer, precision)
    expected = [
        model.generate(
            torch.tensor([prompt]), max_new_tokens=NUM_TOKENS, do_sample=False, eos_token_id=None, pad_token_id=0
        )[0, len(prompt) :].tolist()
        for prompt in PROMPTS
    ]
    assert greedy(stages(tmp_path, (4,), precisions), PROMPTS, NUM_TOKENS) == expected


@pytest.mark.parametrize("kv_int8", [False, True], ids=["kv full", "kv int8"])
@pytest.mark.parametrize("split", [(3, 1), (1, 2, 1)], ids=str)
def test_an_uneven_mixed_pipeline_computes_exactly_what_one_stage_does(
    split: tuple[int, ...], kv_int8: bool, tmp_path: Path
) -> None:
    save_model("Llama", tmp_path, tie_word_embeddings=True)
    step = Step(0, 0, tuple((5, 9, prompt[0]) for prompt in PROMPTS), (0, 0, 0), (Pick(0, 0, 2), Pick(1, 2, 2)))

    def logits(split: tuple[int, ...]) -> torch.Tensor:
        hidden: torch.Tensor | None = None
        for stage in stages(tmp_path, split, MIXED, kv_int8=kv_int8):
            hidden = stage.forward(step, hidden)
        assert hidden is not None
        return hidden

    assert torch.equal(logits(split), logits((4,)))


@pytest.mark.parametrize("kv_int8", [False, True], ids=["kv full", "kv int8"])
@pytest.mark.parametrize(
    "precisions", [(FP32,) * 4, (INT8,) * 4, (INT4,) * 4, MIXED], ids=["fp32", "int8", "int4", "mixed"]
)
def test_weights_and_cache_take_exactly_the_bytes_that_the_law_says(
    precisions: tuple[Precision, ...], kv_int8: bool, tmp_path: Path
) -> None:
    model = save_model("Llama", tmp_path)
    facts = facts_of(model.config, model.base_model.layers[0])
    ends = {"first": weight_bytes(model.get_input_embeddings()), "last": 4 * (260 * 32 + 32)}
    cached = 3 * 64 * law.cached_token_bytes(facts, "torch", INT8 if kv_int8 else FP32)
    first, last = stages(tmp_path, (1, 3), precisions, kv_int8=kv_int8)
    of_layer = [law.layer_weight_bytes(facts, "torch", precision, 4.0) for precision in precisions]
    assert (first.weight_bytes, first.kv_cache_bytes) == (of_layer[0] + ends["first"], cached)
    assert (last.weight_bytes, last.kv_cache_bytes) == (sum(of_layer[1:]) + ends["last"], 3 * cached)


@pytest.mark.parametrize("spare_bytes", [0, -1])
def test_a_quantised_stage_fits_what_was_reserved_for_it_and_not_a_byte_less(tmp_path: Path, spare_bytes: int) -> None:
    save_model("Llama", tmp_path)
    (free,) = stages(tmp_path, (4,), MIXED, kv_int8=True)
    reserved = free.weight_bytes + free.kv_cache_bytes + spare_bytes
    if spare_bytes >= 0:
        assert stages(tmp_path, (4,), MIXED, kv_int8=True, reserved_bytes=reserved)
    else:
        with pytest.raises(StageCannotRun, match=rf"needs {reserved + 1} bytes"):
            stages(tmp_path, (4,), MIXED, kv_int8=True, reserved_bytes=reserved)


def test_never_more_than_one_layer_is_whole_while_a_stage_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = save_model("Llama", tmp_path)
    of_layer = weight_bytes(model.base_model.layers[0])
    held: list[int] = []
    load = torch_stage.load_weights

    def watched(model: nn.Module, *others: Any) -> None:
        load(model, *others)
        held.append(sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()) if not tensor.is_meta))

    monkeypatch.setattr(torch_stage, "load_weights", watched)
    (stage,) = stages(tmp_path, (4,), (INT8,) * NUM_LAYERS)
    assert max(held) <= stage.weight_bytes + of_layer
    assert len(held) == 1 + NUM_LAYERS  # the ends, then a layer at a time


def test_a_prompt_in_pieces_gives_the_same_next_token_with_an_int8_cache(tmp_path: Path) -> None:
    save_model("Llama", tmp_path)
    (stage,) = stages(tmp_path, (4,), MIXED, kv_int8=True)
    prompt = (*PROMPTS[0], *PROMPTS[2])
    whole = stage.forward(Step(0, 0, (prompt,), (0,), (Pick(0, 0, len(prompt) - 1),)), None)
    stage.forward(Step(0, 1, (prompt[:6],), (0,), ()), None)
    pieces = stage.forward(Step(0, 1, (prompt[6:],), (6,), (Pick(0, 0, len(prompt) - 7),)), None)
    torch.testing.assert_close(pieces, whole, rtol=0.02, atol=0.02)


def test_a_moved_row_of_an_int8_cache_goes_on_where_it_was(tmp_path: Path) -> None:
    save_model("Llama", tmp_path)
    (stage,) = stages(tmp_path, (4,), MIXED, kv_int8=True)
    (expected,) = greedy([stage], PROMPTS[:1], 3)
    prompt = tuple(PROMPTS[0])
    stage.forward(Step(0, 2, (prompt,), (0,), (Pick(0, 0, len(prompt) - 1),)), None)
    stage.forward(Step(0, 2, ((expected[0],),), (len(prompt),), (Pick(0, 0, 0),)), None)
    moved = Step(0, 0, ((expected[1],),), (len(prompt) + 1,), (Pick(0, 0, 0),), (Move(2, 0, len(prompt) + 1),))
    assert int(stage.forward(moved, None).argmax()) == expected[2]


def test_an_int8_cache_hardly_changes_what_is_computed(tmp_path: Path) -> None:
    save_model("Llama", tmp_path)
    step = Step(0, 0, tuple(tuple(prompt[:2]) for prompt in PROMPTS), (0, 0, 0), (Pick(0, 1, 1),))
    full, kept = (TorchStage(spec(tmp_path, (4,), 0, kv_int8=int8)).forward(step, None) for int8 in (False, True))
    assert 0 < float((full - kept).norm() / full.norm()) < 0.02
