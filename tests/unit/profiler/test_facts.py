"""Facts of a config.json against transformers' own count of the real modules' parameters."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from maveriq_profiler.cutting import Unreadable, config_from, with_layers
from maveriq_profiler.facts import read

_WIDE = {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 3, "vocab_size": 256}
_GATED = _WIDE | {"intermediate_size": 96, "num_key_value_heads": 2, "max_position_embeddings": 128}

DECODERS: dict[str, dict[str, Any]] = {
    "LlamaForCausalLM": {"model_type": "llama", **_GATED},
    "Qwen2ForCausalLM": {"model_type": "qwen2", **_GATED, "tie_word_embeddings": True},
    "Qwen3ForCausalLM": {"model_type": "qwen3", **_GATED, "head_dim": 32},
    "MistralForCausalLM": {"model_type": "mistral", **_GATED},
    "GemmaForCausalLM": {"model_type": "gemma", **_GATED, "head_dim": 32},
    "Gemma2ForCausalLM": {"model_type": "gemma2", **_GATED, "head_dim": 32, "query_pre_attn_scalar": 32},
    "PhiForCausalLM": {"model_type": "phi", **_WIDE, "intermediate_size": 96, "max_position_embeddings": 128},
    "GPTJForCausalLM": {"model_type": "gptj", "n_embd": 64, "n_head": 4, "n_layer": 3, "vocab_size": 256,
                        "n_positions": 128, "rotary_dim": 8, "tie_word_embeddings": False},
    "GPT2LMHeadModel": {"model_type": "gpt2", "n_embd": 64, "n_head": 4, "n_layer": 3, "vocab_size": 256,
                        "n_positions": 128},
    "FalconForCausalLM": {"model_type": "falcon", **_WIDE, "multi_query": True, "new_decoder_architecture": False},
    "OPTForCausalLM": {"model_type": "opt", **_WIDE, "ffn_dim": 96, "word_embed_proj_dim": 64,
                       "max_position_embeddings": 128},
    "MixtralForCausalLM": {"model_type": "mixtral", **_GATED, "num_local_experts": 4, "num_experts_per_tok": 2},
}  # fmt: skip


def written(folder: Path, name: str, fields: dict[str, Any]) -> str:
    (folder / "config.json").write_text(json.dumps({"architectures": [name], **fields}))
    return str(folder)


@pytest.mark.parametrize("name", DECODERS)
def test_the_parts_of_a_decoder_sum_to_what_transformers_counts(name: str, tmp_path: Path) -> None:
    reading = read(written(tmp_path, name, DECODERS[name]))
    facts = reading.facts
    config: Any = AutoConfig.from_pretrained(str(tmp_path))
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config)
    parts = facts.num_layers * facts.layer_params + facts.embedding_params + facts.lm_head_params
    shared = facts.vocab_size * facts.hidden_size if facts.tied_embeddings else 0
    assert parts - shared == model.num_parameters()
    assert facts.architecture == name
    assert (facts.num_layers, facts.hidden_size, facts.vocab_size) == (3, 64, 256)
    assert facts.num_kv_heads == {"FalconForCausalLM": 1}.get(name, DECODERS[name].get("num_key_value_heads", 4))
    assert facts.intermediate_size == (96 if {"intermediate_size", "ffn_dim"} & set(DECODERS[name]) else 256)
    assert facts.tied_embeddings == bool(config.tie_word_embeddings)


def test_depth_is_no_part_of_the_shape_and_width_is(tmp_path: Path) -> None:
    fields = DECODERS["LlamaForCausalLM"]
    key = read(written(tmp_path, "LlamaForCausalLM", fields)).facts.shape_key
    assert read(written(tmp_path, "LlamaForCausalLM", fields | {"num_hidden_layers": 5})).facts.shape_key == key
    assert read(written(tmp_path, "LlamaForCausalLM", fields | {"intermediate_size": 128})).facts.shape_key != key


def test_a_cut_config_cuts_the_lists_of_one_entry_a_layer_too(tmp_path: Path) -> None:
    config = config_from(read(written(tmp_path, "Gemma2", DECODERS["Gemma2ForCausalLM"])).config_json)
    assert len(config.layer_types) == 3
    cut = with_layers(config, 2)
    assert cut.num_hidden_layers == 2
    assert len(cut.layer_types) == 2
    assert config.num_hidden_layers == 3


@pytest.mark.parametrize(
    ("name", "fields", "why"),
    [
        ("T5ForConditionalGeneration", {"model_type": "t5"}, "it is an encoder-decoder"),
        ("BertForMaskedLM", {"model_type": "bert", **_WIDE}, "it is an encoder"),
        ("MambaForCausalLM", {"model_type": "mamba", "num_hidden_layers": 2}, "no num_attention_heads"),
        ("ViTForImageClassification", {"model_type": "vit", **_WIDE}, "AutoModelForCausalLM"),
        ("DeepseekV3ForCausalLM", {"model_type": "deepseek_v3", **_GATED, "num_key_value_heads": 4,
         "moe_intermediate_size": 32, "n_routed_experts": 8, "first_k_dense_replace": 1}, "its layers differ in size"),
    ],
)  # fmt: skip
def test_an_architecture_that_cannot_be_cut_is_refused_by_its_name_and_why(
    name: str, fields: dict[str, Any], why: str, tmp_path: Path
) -> None:
    with pytest.raises(Unreadable, match=name) as refusal:
        read(written(tmp_path, name, fields))
    assert why in str(refusal.value)


def test_a_source_that_cannot_be_read_is_named_with_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(Unreadable, match=r"nowhere: there is no such folder; give"):
        read(str(tmp_path / "nowhere"))
    with pytest.raises(Unreadable, match=r"model\.gguf: there is no such file; give"):
        read(str(tmp_path / "model.gguf"))
    with pytest.raises(Unreadable, match=r"has no config\.json; give"):
        read(str(tmp_path))
    (tmp_path / "config.json").write_text("{not json")
    with pytest.raises(Unreadable, match=r"cannot be read .*; give"):
        read(str(tmp_path))
    with pytest.raises(Unreadable, match=r"num_hidden_layers=0"):
        read(written(tmp_path, "LlamaForCausalLM", DECODERS["LlamaForCausalLM"] | {"num_hidden_layers": 0}))
