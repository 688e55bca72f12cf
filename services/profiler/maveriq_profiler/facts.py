"""A config.json -> ModelFacts. The model is built on the meta device, so the counts are the real modules'."""

import hashlib
import json
from typing import Any

import torch

from maveriq.contracts import ModelFacts
from maveriq_profiler.cutting import Unreadable, architecture, build, find_layers, read_config, with_layers
from maveriq_profiler.layer import mlp_of, parallel_attention
from maveriq_profiler.orders import Reading

_NOT_COST = ("architecture", "shape_key", "num_layers", "max_context_tokens", "tied_embeddings")


def read(source: str) -> Reading:
    """Raises Unreadable."""
    config = read_config(source)
    return Reading(facts=facts_of(config), config_json=config.to_json_string(use_diff=False))


def facts_of(config: Any) -> ModelFacts:
    """Raises Unreadable: its layers cannot be counted, differ in size, or do not keep keys and values."""
    name = architecture(config)
    _check_decoder(config, name)
    model = build(config, "meta", torch.float32)
    name = type(model).__name__
    num_layers = _positive(config, name, "num_hidden_layers")
    layers = find_layers(model, num_layers).all
    layer_params = _layer_params(layers, name)
    _check_cut(config, model, layer_params, num_layers)
    num_heads = _positive(config, name, "num_attention_heads")
    first, last, tied = _ends(model, layers, name)
    hidden_size = _positive(config, name, "hidden_size")
    mlp = mlp_of(config, layers[0], name)
    facts = ModelFacts(
        architecture=name,
        shape_key="-",
        num_layers=num_layers,
        hidden_size=hidden_size,
        intermediate_size=mlp.width,
        vocab_size=_positive(config, name, "vocab_size"),
        num_heads=num_heads,
        num_kv_heads=_num_kv_heads(config, num_heads),
        head_dim=_head_dim(config, hidden_size // num_heads),
        max_context_tokens=_positive(config, name, "max_position_embeddings"),
        layer_params=layer_params,
        embedding_params=first,
        lm_head_params=last,
        tied_embeddings=tied,
        gated_mlp=mlp.gated,
        parallel_attention=parallel_attention(config),
        num_experts=mlp.num_experts,
        experts_per_token=mlp.experts_per_token,
        expert_params=mlp.expert_params,
    )
    return facts.model_copy(update={"shape_key": _shape_key(facts, config)})


def _layer_params(layers: Any, name: str) -> int:
    counts = {_count(layer) for layer in layers}
    if len(counts) > 1:
        raise Unreadable(
            f"{name} cannot be cut: its layers differ in size ({min(counts)} to {max(counts)} parameters), "
            "so a few of them do not tell what all of them cost; give a model with equal layers"
        )
    return counts.pop()


def _check_decoder(config: Any, name: str) -> None:
    if not isinstance(getattr(config, "num_hidden_layers", None), int):
        raise Unreadable(f"{name} cannot be cut: its config has no num_hidden_layers; give a decoder-only model")
    if not isinstance(getattr(config, "num_attention_heads", None), int):
        raise Unreadable(f"{name} cannot be cut: its config has no num_attention_heads, so its cache is unknown")
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    encoder = config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    if encoder and not name.endswith(("ForCausalLM", "LMHeadModel")):
        raise Unreadable(f"{name} cannot be cut: it is an encoder, it writes no text; give a decoder-only model")
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    if kinds:
        raise Unreadable(
            f"{name} cannot be cut: its layers are of kind {', '.join(sorted(kinds))}, not attention alone"
        )


def _check_cut(config: Any, model: Any, layer_params: int, num_layers: int) -> None:
    """The law of the planner is ends + layers x layer: a cut model must be exactly that."""
    cut = build(with_layers(config, 1), "meta", torch.float32)
    if _count(model) - _count(cut) != (num_layers - 1) * layer_params:
        raise Unreadable(
            f"{type(model).__name__} cannot be cut: with 1 layer it has {_count(cut)} parameters, "
            f"where its {num_layers} layers let expect {_count(model) - (num_layers - 1) * layer_params}"
        )


def _ends(model: Any, layers: Any, name: str) -> tuple[int, int, bool]:
    """Parameters before and after the layers, and whether one matrix serves both.

    Embeddings come first; all else outside the layers is after them.
    """
    head = model.get_output_embeddings()
    table = model.get_input_embeddings()
    if head is None or table is None:
        raise Unreadable(f"{name} cannot be cut: it names no embedding or no lm_head; give a decoder-only model")
    of_layers = {id(parameter) for parameter in layers.parameters()}
    of_head = {id(parameter) for parameter in head.parameters()}
    first = after = 0
    for path, parameter in model.named_parameters():
        if id(parameter) in of_layers:
            continue
        if "emb" in path or "project_in" in path or path.rsplit(".", 2)[-2] in ("wte", "wpe"):
            first += parameter.numel()
        elif id(parameter) not in of_head:
            after += parameter.numel()
    return first, after + _count(head), head.weight is table.weight


def _count(module: Any) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _positive(config: Any, name: str, field: str) -> int:
    value = getattr(config, field, None)
    if not isinstance(value, int) or value < 1:
        raise Unreadable(f"{name} cannot be cut: its config says {field}={value!r}; give a config.json with a number")
    return value


def _num_kv_heads(config: Any, num_heads: int) -> int:
    if getattr(config, "multi_query", False) and not getattr(config, "new_decoder_architecture", False):
        return 1  # Falcon, GPT-BigCode
    for field in ("num_key_value_heads", "num_kv_heads"):
        value = getattr(config, field, None)
        if isinstance(value, int) and value > 0:
            return value
    return num_heads


def _head_dim(config: Any, otherwise: int) -> int:
    """Elements of a head's key or value; where the two differ (latent attention), their mean, rounded up."""
    if getattr(config, "kv_lora_rank", None) and getattr(config, "v_head_dim", None):
        key = int(config.qk_nope_head_dim) + int(config.qk_rope_head_dim)
        return (key + int(config.v_head_dim) + 1) // 2
    return int(getattr(config, "head_dim", None) or otherwise)


def _shape_key(facts: ModelFacts, config: Any) -> str:
    """Depth and the longest context change what is predicted, not what is measured, so they are no part of it."""
    costs = facts.model_dump(exclude=set(_NOT_COST)) | {
        "model_type": config.model_type,
        "sliding_window": getattr(config, "sliding_window", None),
    }
    return hashlib.sha256(json.dumps(costs, sort_keys=True).encode()).hexdigest()[:32]
