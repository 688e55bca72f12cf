"""A model's source becomes a local folder of safetensors, once."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma3Config

from maveriq.contracts import Precision
from maveriq_worker.checkpoints import CheckpointFailed, convert, eos_ids, is_stored_otherwise, prepare
from maveriq_worker.torch_stage import TorchStage
from tests.unit.worker.tiny_models import SHAPE, greedy, save_model, save_tokenizer, spec


async def test_a_folder_of_safetensors_is_used_as_it_is(tmp_path: Path) -> None:
    save_model("Llama", tmp_path / "model")
    cache = tmp_path / "cache"
    assert await prepare(str(tmp_path / "model"), Precision.BF16, cache) == tmp_path / "model"
    assert not cache.exists()


async def test_other_weights_are_converted_once_even_for_two_who_want_them_at_the_same_time(tmp_path: Path) -> None:
    source, cache = tmp_path / "model", tmp_path / "cache"
    model = save_model("Llama", source, tie_word_embeddings=True)
    save_tokenizer(source)
    (source / "model.safetensors").unlink()
    torch.save(model.state_dict(), source / "pytorch_model.bin")
    first, second = await asyncio.gather(*(prepare(str(source), Precision.FP32, cache) for _ in range(2)))
    assert first == second and (first / "tokenizer.json").exists() and (first / "chat_template.jinja").exists()
    written = (first / "model.safetensors").stat().st_mtime_ns
    assert await prepare(str(source), Precision.FP32, cache) == first
    assert (first / "model.safetensors").stat().st_mtime_ns == written
    assert [path.name for path in first.parent.iterdir() if path.is_dir()] == [first.name]
    expected = model.generate(torch.tensor([[4, 9, 2]]), max_new_tokens=5, do_sample=False, eos_token_id=None)
    assert greedy([TorchStage(spec(first, (4,), 0))], [[4, 9, 2]], 5) == [expected[0, 3:].tolist()]


@pytest.mark.parametrize("source", ["/nowhere/model.gguf", "/nowhere/model", "./nowhere"])
async def test_a_source_that_is_not_on_this_node_is_named(tmp_path: Path, source: str) -> None:
    with pytest.raises(CheckpointFailed, match=f"{source} does not exist on this node"):
        await prepare(source, Precision.FP32, tmp_path)


async def test_a_folder_that_is_no_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointFailed, match=r"no config\.json"):
        await prepare(str(tmp_path), Precision.FP32, tmp_path / "cache")


async def test_a_broken_file_fails_with_what_the_reader_said_and_leaves_nothing(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF, or so it says")
    with pytest.raises(CheckpointFailed, match=r"broken\.gguf could not be converted"):
        await prepare(str(broken), Precision.FP32, tmp_path / "cache")
    assert not [path for path in (tmp_path / "cache" / "checkpoints").iterdir() if path.is_dir()]


async def test_a_precision_that_torch_does_not_serve_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointFailed, match="not int4"):
        await prepare("any/model", Precision.INT4, tmp_path)


def test_eos_is_the_generation_configs_or_else_the_models(tmp_path: Path) -> None:
    save_model("Llama", tmp_path)
    (tmp_path / "generation_config.json").unlink(missing_ok=True)
    assert eos_ids(tmp_path) == (258,)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [258, 3]}')
    assert eos_ids(tmp_path) == (258, 3)


@pytest.mark.parametrize("where", ["config.json", "hf_quant_config.json"])
async def test_a_checkpoint_that_is_quantised_already_is_refused_with_what_to_do(tmp_path: Path, where: str) -> None:
    save_model("Llama", tmp_path)
    said = json.loads((tmp_path / where).read_text()) if where == "config.json" else {}
    (tmp_path / where).write_text(json.dumps({**said, "quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(CheckpointFailed, match="register the variant without a source"):
        await prepare(str(tmp_path), Precision.BF16, tmp_path / "cache")


async def test_a_mixture_whose_experts_are_stored_one_by_one_is_converted_and_answers_alike(tmp_path: Path) -> None:
    source = tmp_path / "model"
    model = save_model("Mixtral", source, as_published=True, num_local_experts=4, num_experts_per_tok=2)
    save_tokenizer(source)
    converted = await prepare(str(source), Precision.FP32, tmp_path / "cache")
    assert converted != source
    _answers_as(model, converted)


@pytest.mark.parametrize(
    ("family", "changes"),
    [("GPTNeoX", {"num_key_value_heads": 4}), ("GraniteMoe", {"num_local_experts": 4, "num_experts_per_tok": 2})],
    ids=["GPT-NeoX's head", "Granite's experts"],
)
def test_weights_of_other_names_are_converted_and_answer_alike(
    family: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    _converts(save_model(family, tmp_path / "model", as_published=True, **changes), tmp_path)


def test_of_a_model_that_sees_too_the_text_half_is_served(tmp_path: Path) -> None:
    seen = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
            "image_size": 28, "patch_size": 14}  # fmt: skip
    torch.manual_seed(0)
    models: Any = AutoModelForCausalLM
    config = Gemma3Config(text_config={**SHAPE, "sliding_window": 6}, vision_config=seen, mm_tokens_per_image=4)
    model = models.from_config(config).float().eval()
    model.save_pretrained(tmp_path / "model")
    _converts(model, tmp_path)


def _converts(model: Any, folder: Path) -> None:
    save_tokenizer(folder / "model")
    assert is_stored_otherwise(folder / "model")
    convert(folder / "model", Precision.FP32, folder / "converted")
    assert not is_stored_otherwise(folder / "converted")
    _answers_as(model, folder / "converted")


def _answers_as(model: Any, converted: Path) -> None:
    expected = model.generate(
        torch.tensor([[4, 9, 2]]), max_new_tokens=5, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    assert greedy([TorchStage(spec(converted, (4,), 0))], [[4, 9, 2]], 5) == [expected[0, 3:].tolist()]
