"""One stage's part of a model: exact for every family that can be cut, refused by name where it cannot."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from maveriq.contracts import ModelFacts, Precision
from maveriq_planner.memory import counted
from maveriq_profiler.facts import read
from maveriq_worker import torch_pipeline
from maveriq_worker.out_of_memory import is_out_of_memory
from maveriq_worker.stage_link import Link, pair
from maveriq_worker.torch_stage import CheckpointCannotRun, StageCannotRun, TorchStage
from maveriq_worker.torch_steps import Move, Pick, StageRefused, StageSpec, Step
from tests.unit.worker.tiny_families import FAMILIES, REFUSED
from tests.unit.worker.tiny_models import NUM_LAYERS, greedy, save_model, spec

PROMPTS = [[5, 9, 11, 3, 8, 21, 7, 64, 90], [4, 80], [33, 1, 2, 77, 5]]
NUM_TOKENS = 8


@pytest.mark.parametrize("family", FAMILIES)
def test_any_split_gives_the_tokens_of_generate_in_the_bytes_that_are_planned(family: str, tmp_path: Path) -> None:
    model = save_model(family, tmp_path, **FAMILIES[family])
    expected = [
        model.generate(
            torch.tensor([prompt]), max_new_tokens=NUM_TOKENS, do_sample=False, eos_token_id=None, pad_token_id=0
        )[0, len(prompt) :].tolist()
        for prompt in PROMPTS
    ]
    reading = read(str(tmp_path))
    assert not reading.cannot_run
    for split in ((NUM_LAYERS,), (1, 2, 1)):
        stages = [TorchStage(spec(tmp_path, split, rank)) for rank in range(len(split))]
        assert greedy(stages, PROMPTS, NUM_TOKENS) == expected
        assert [stage.weight_bytes + stage.kv_cache_bytes for stage in stages] == planned(reading.facts, split)


def planned(facts: ModelFacts, split: tuple[int, ...]) -> list[int]:
    """Weights and cache of each stage, as the planner counts them."""
    fp32, slots = Precision.FP32, np.array([3.0])  # as in `spec`
    each = counted(facts, "torch", fp32, fp32, 1, slots, 64)
    found = [int(each.layer_bytes[0]) * layers for layers in split]
    found[0] += int(each.first_bytes)
    found[-1] += int(each.last_bytes)
    return [found[0] - int(each.tied_saving_bytes)] if len(split) == 1 else found


@pytest.mark.parametrize("family", REFUSED)
def test_what_cannot_run_is_refused_by_name_when_it_is_read_and_in_the_same_words_by_a_stage(
    family: str, tmp_path: Path
) -> None:
    changes, reason = REFUSED[family]
    model = save_model(family, tmp_path, **changes)
    why = read(str(tmp_path)).cannot_run["torch"]
    assert why.startswith(f"the torch engine cannot run {type(model).__name__}: ") and reason in why
    with pytest.raises(CheckpointCannotRun, match=f"^{re.escape(why)}$"):
        TorchStage(spec(tmp_path, (NUM_LAYERS,), 0))


def test_layers_without_attention_are_refused_by_a_stage_too(tmp_path: Path) -> None:
    save_model("Mamba", tmp_path)
    with pytest.raises(CheckpointCannotRun, match=r"MambaForCausalLM: .*linear_attention"):
        TorchStage(spec(tmp_path, (2, 2), 1))


def test_a_stage_holds_its_own_weights_and_no_others(tmp_path: Path) -> None:
    model = save_model("Llama", tmp_path)
    weights = {name: weight.nbytes for name, weight in model.named_parameters()}
    layer = sum(size for name, size in weights.items() if "layers.0." in name)
    first, middle, last = (TorchStage(spec(tmp_path, (1, 2, 1), rank)) for rank in range(3))
    assert first.weight_bytes == layer + weights["model.embed_tokens.weight"]
    assert middle.weight_bytes == 2 * layer
    assert last.weight_bytes == layer + weights["lm_head.weight"] + weights["model.norm.weight"]


def test_a_tied_head_is_on_both_ends_and_counted_once_where_they_are_one(tmp_path: Path) -> None:
    model = save_model("Llama", tmp_path, tie_word_embeddings=True)
    total = sum(weight.nbytes for weight in model.parameters())
    assert TorchStage(spec(tmp_path, (4,), 0)).weight_bytes == total
    ends = [TorchStage(spec(tmp_path, (2, 2), rank)).weight_bytes for rank in range(2)]
    assert sum(ends) == total + model.lm_head.weight.nbytes


def test_the_kv_cache_has_a_row_of_context_for_each_slot(tmp_path: Path) -> None:
    save_model("Llama", tmp_path)
    stage = TorchStage(spec(tmp_path, (3, 1), 0, max_batch=5, context_tokens=40))
    assert stage.kv_cache_bytes == 3 * 2 * 5 * 2 * 40 * 8 * 4  # layers, keys + values, slots, heads, tokens, size, fp32


@pytest.mark.parametrize("spare_bytes", [0, -1])
def test_a_stage_keeps_within_its_reservation_or_says_what_it_needs(tmp_path: Path, spare_bytes: int) -> None:
    save_model("Llama", tmp_path)
    free = TorchStage(spec(tmp_path, (1, 3), 1))
    reserved = free.weight_bytes + free.kv_cache_bytes + spare_bytes
    if spare_bytes >= 0:
        assert TorchStage(spec(tmp_path, (1, 3), 1, reserved_bytes=reserved)).weight_bytes == free.weight_bytes
    else:
        with pytest.raises(StageCannotRun, match=rf"stage 1 .*needs {reserved + 1} bytes.*{reserved} bytes are"):
            TorchStage(spec(tmp_path, (1, 3), 1, reserved_bytes=reserved))


def test_a_placement_with_another_number_of_layers_is_refused(tmp_path: Path) -> None:
    save_model("Llama", tmp_path)
    with pytest.raises(CheckpointCannotRun, match="5 layers, the model has 4"):
        TorchStage(spec(tmp_path, (2, 3), 0))


def test_weights_that_are_not_those_of_the_config_are_refused_for_every_placement(tmp_path: Path) -> None:
    save_model("Llama", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for changed, words in (({"intermediate_size": 7}, "the model has"), ({"attention_bias": True}, "lacks 4 tensors")):
        (tmp_path / "config.json").write_text(json.dumps(config | changed))
        with pytest.raises(CheckpointCannotRun, match=f"{words}.*; give the checkpoint that belongs to its config"):
            TorchStage(spec(tmp_path, (NUM_LAYERS,), 0))


def test_half_precision_halves_the_bytes(tmp_path: Path) -> None:
    save_model("Qwen3", tmp_path)
    full = TorchStage(spec(tmp_path, (4,), 0))
    half = TorchStage(spec(tmp_path, (4,), 0, precision=Precision.BF16))
    assert (half.weight_bytes * 2, half.kv_cache_bytes * 2) == (full.weight_bytes, full.kv_cache_bytes)
    assert greedy([half], PROMPTS, 3)


def test_prompts_of_unequal_length_prefilled_together_do_not_disturb_one_another(tmp_path: Path) -> None:
    save_model("Gemma3Text", tmp_path, sliding_window=6)
    stage = TorchStage(spec(tmp_path, (4,), 0))
    alone = greedy([stage], PROMPTS, 1)
    width = max(map(len, PROMPTS))
    padded = tuple(tuple(prompt) + (0,) * (width - len(prompt)) for prompt in PROMPTS)
    picks = tuple(Pick(row, row, len(prompt) - 1) for row, prompt in enumerate(PROMPTS))
    together = stage.forward(Step(0, 0, padded, (0, 0, 0), picks), None)
    assert [[int(token)] for token in together.argmax(-1)] == alone


def test_a_moved_row_goes_on_where_it_was(tmp_path: Path) -> None:
    save_model("Llama", tmp_path)
    stage = TorchStage(spec(tmp_path, (4,), 0))
    (expected,) = greedy([stage], PROMPTS[:1], 3)
    prompt = tuple(PROMPTS[0])
    stage.forward(Step(0, 2, (prompt,), (0,), (Pick(0, 0, len(prompt) - 1),)), None)
    stage.forward(Step(0, 2, ((expected[0],),), (len(prompt),), (Pick(0, 0, 0),)), None)
    moved = Step(0, 0, ((expected[1],),), (len(prompt) + 1,), (Pick(0, 0, 0),), (Move(2, 0, len(prompt) + 1),))
    assert int(stage.forward(moved, None).argmax()) == expected[2]


def test_memory_that_runs_out_while_a_stage_loads_is_told_in_one_line_that_is_known_for_what_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loading(asked: StageSpec) -> TorchStage:
        raise RuntimeError("unable to mmap 538090408 bytes: Cannot allocate memory (12)\nframe #0: its own source")

    monkeypatch.setattr(torch_pipeline, "TorchStage", loading)
    ours, theirs = (Link(end) for end in pair())
    ours.send(spec(tmp_path, (1, 3), 1))
    torch_pipeline.run(theirs, None)
    told: StageRefused = ours.receive()
    assert told.reason.startswith("stage 1 (3 layers on cpu, ") and told.reason.endswith("Cannot allocate memory (12)")
    assert is_out_of_memory(told.reason)
