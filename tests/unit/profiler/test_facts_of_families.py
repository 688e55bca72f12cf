"""Facts of every family in docs/models.md: against published sizes, and against what small ones do when they run."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from maveriq import law
from maveriq.contracts import Precision
from maveriq.law.weights import TORCH_QUANTISED
from maveriq.torch_layers import quantise, weight_bytes
from maveriq_profiler.cutting import Unreadable, layers_of
from maveriq_profiler.facts import facts_of
from tests.unit.profiler.families import FAMILIES
from tests.unit.profiler.test_facts import DECODERS

LATENT = DECODERS["LlamaForCausalLM"] | {
    "model_type": "minicpm3", "kv_lora_rank": 16, "q_lora_rank": 16, "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4, "v_head_dim": 10, "num_key_value_heads": 4,
}  # fmt: skip
CONFIGS: Any = AutoConfig
MODELS: Any = AutoModelForCausalLM
DOCS = Path(__file__).parents[3] / "docs" / "models.md"

SMALL: dict[str, dict[str, Any]] = {
    **DECODERS,
    "Phi3ForCausalLM": DECODERS["LlamaForCausalLM"] | {"model_type": "phi3", "pad_token_id": 0},
    "CohereForCausalLM": DECODERS["LlamaForCausalLM"] | {"model_type": "cohere", "tie_word_embeddings": True},
    "StableLmForCausalLM": DECODERS["LlamaForCausalLM"] | {"model_type": "stablelm"},
    "StableLM, parallel": DECODERS["LlamaForCausalLM"] | {"model_type": "stablelm", "use_parallel_residual": True},
    "GPTNeoXForCausalLM": DECODERS["PhiForCausalLM"] | {"model_type": "gpt_neox", "use_parallel_residual": True},
    "GPT-NeoX, one after the other": DECODERS["PhiForCausalLM"]
    | {"model_type": "gpt_neox", "use_parallel_residual": False},
    "Falcon, new architecture": DECODERS["FalconForCausalLM"] | {"new_decoder_architecture": True, "num_kv_heads": 2},
    "Falcon RW": DECODERS["FalconForCausalLM"] | {"multi_query": False, "parallel_attn": False, "alibi": True},
    "Gemma3ForCausalLM": DECODERS["Gemma2ForCausalLM"] | {"model_type": "gemma3_text", "sliding_window": 8},
    "Qwen3MoeForCausalLM": DECODERS["Qwen3ForCausalLM"]
    | {"model_type": "qwen3_moe", "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
}
PLAIN = ("Phi", "GPTJ", "GPT2", "GPTNeoX", "GPT-NeoX", "Falcon", "OPT")


@pytest.mark.parametrize("name", FAMILIES)
def test_a_published_model_is_counted_as_its_weights_are(name: str) -> None:
    family = FAMILIES[name]
    config = CONFIGS.for_model(**family.config)
    with torch.device("meta"):
        model = MODELS.from_config(config)
    facts = facts_of(config)
    parts = facts.num_layers * facts.layer_params + facts.embedding_params + facts.lm_head_params
    shared = model.get_output_embeddings().weight.numel() if facts.tied_embeddings else 0
    assert parts - shared == family.num_params == model.num_parameters()
    assert (facts.num_kv_heads, facts.head_dim) == family.kv
    assert (facts.gated_mlp, facts.parallel_attention) == (family.gated, family.parallel)
    num_experts, chosen, width = family.experts
    assert (facts.num_experts, facts.experts_per_token) == (num_experts, chosen)
    assert facts.expert_params == 3 * facts.hidden_size * width  # no expert of these has a bias
    if num_experts:
        assert facts.intermediate_size == width


class Reached(Exception):
    """The MLP was about to run."""


@pytest.mark.parametrize("name", SMALL)
def test_attention_is_parallel_exactly_where_the_mlp_does_not_read_what_it_wrote(name: str) -> None:
    config = CONFIGS.for_model(**SMALL[name])
    model = MODELS.from_config(config)
    layer = layers_of(model, 3)[0]
    attention = next(m for p, m in layer.named_modules() if p and type(m).__name__.endswith("Attention"))
    mlp = next(m for p, m in layer.named_modules() if p in ("mlp", "fc1", "block_sparse_moe", "feed_forward"))
    seen: dict[str, Any] = {}

    def wrote(_module: Any, _arguments: Any, output: Any) -> None:
        seen["wrote"] = (output[0] if isinstance(output, tuple) else output).grad_fn

    def reads(_module: Any, arguments: Any) -> None:
        seen["reads"] = arguments[0].grad_fn
        if "wrote" in seen:
            raise Reached

    attention.register_forward_hook(wrote)
    mlp.register_forward_pre_hook(reads)
    with pytest.raises(Reached), torch.enable_grad():
        model(input_ids=torch.ones((1, 4), dtype=torch.long), use_cache=False)
    assert facts_of(config).parallel_attention == (seen["wrote"] not in behind(seen["reads"]))


def behind(node: Any) -> set[Any]:
    """All that a value was computed from, as autograd has it."""
    found: set[Any] = set()
    todo = [node]
    while todo:
        one = todo.pop()
        if one is not None and one not in found:
            found.add(one)
            todo += [earlier for earlier, _ in one.next_functions]
    return found


@pytest.mark.parametrize("name", SMALL)
def test_the_cache_keeps_as_many_heads_of_that_size_and_the_mlp_is_what_it_is(name: str) -> None:
    config = CONFIGS.for_model(**SMALL[name])
    facts = facts_of(config)
    model = MODELS.from_config(config).eval()
    with torch.inference_mode():
        cache = model(input_ids=torch.ones((1, 4), dtype=torch.long), use_cache=True).past_key_values
    # transformers copies this one's few heads for all queries before it keeps them; other engines do not
    kept = facts.num_heads if name == "Falcon, new architecture" else facts.num_kv_heads
    assert {tuple(layer.keys.shape) for layer in cache.layers} == {(1, kept, 4, facts.head_dim)}
    assert len(cache.layers) == facts.num_layers
    gated = not name.startswith(PLAIN) or name.startswith("Phi3")
    assert facts.gated_mlp == gated


def test_layers_that_slide_are_counted_as_if_they_kept_everything() -> None:
    sliding = facts_of(CONFIGS.for_model(**SMALL["Gemma3ForCausalLM"]))
    whole = facts_of(CONFIGS.for_model(**SMALL["Gemma3ForCausalLM"] | {"layer_types": ["full_attention"] * 3}))
    assert sliding == whole


def test_a_mixture_with_dense_layers_among_its_own_is_refused_by_name() -> None:
    with pytest.raises(Unreadable, match=r"Qwen3MoeForCausalLM cannot be cut: its layers differ in size"):
        facts_of(CONFIGS.for_model(**SMALL["Qwen3MoeForCausalLM"] | {"mlp_only_layers": [0], "intermediate_size": 96}))


def test_what_decides_cost_decides_the_shape_key() -> None:
    def key(name: str, **changes: Any) -> str:
        return facts_of(CONFIGS.for_model(**SMALL[name] | changes)).shape_key

    assert key("Qwen3MoeForCausalLM") == key("Qwen3MoeForCausalLM", num_hidden_layers=2)
    assert key("Qwen3MoeForCausalLM") != key("Qwen3MoeForCausalLM", num_experts_per_tok=3)
    assert key("GPTNeoXForCausalLM") != key("GPT-NeoX, one after the other")


@pytest.mark.parametrize("precision", TORCH_QUANTISED)
@pytest.mark.parametrize("name", [*SMALL, "latent attention"])
def test_a_quantised_layer_takes_the_bytes_that_the_law_says(name: str, precision: Precision) -> None:
    config = CONFIGS.for_model(**SMALL.get(name, LATENT))
    layer = layers_of(MODELS.from_config(config), 3)[0]
    quantise(layer, precision)
    assert weight_bytes(layer) == law.layer_weight_bytes(facts_of(config), "torch", precision, 4.0)


def test_latent_attention_keeps_one_vector_for_all_heads() -> None:
    facts = facts_of(CONFIGS.for_model(**LATENT))
    assert 2 * facts.num_kv_heads * facts.head_dim == 16 + 4


def test_a_config_that_transformers_cannot_build_from_is_refused_in_a_line() -> None:
    with pytest.raises(Unreadable, match=r"cannot build it from its config \(KeyError: 'none-such'\); give") as refusal:
        facts_of(CONFIGS.for_model(**DECODERS["LlamaForCausalLM"] | {"hidden_act": "none-such"}))
    assert "\n" not in str(refusal.value)


def test_every_published_model_stands_in_the_documentation() -> None:
    told = DOCS.read_text()
    assert [name for name, family in FAMILIES.items() if f"`{family.config['model_type']}`" not in told] == []
