"""A config.json -> ModelFacts. The model is built on the meta device, so the counts are the real modules'."""

import hashlib
import json
from typing import Any

import torch

from maveriq.contracts import ModelFacts
from maveriq.torch_layers import CannotRun, DecoderParts, check_runs, kv_head_dim, matrices_of, num_kv_heads
from maveriq_profiler.cutting import Unreadable, architecture, build, parts_of, read_config, with_layers
from maveriq_profiler.layer import mlp_of, parallel_attention
from maveriq_profiler.orders import Reading

_NOT_COST = (
    "architecture", "shape_key", "num_layers", "max_context_tokens", "tied_embeddings", "tied_params", "matrices",
)  # fmt: skip


def read(source: str) -> Reading:
    """Raises Unreadable."""
    config = read_config(source)
    facts, config_json = facts_of(config), config.to_json_string(use_diff=False)
    try:
        check_runs(config)
    except CannotRun as error:
        return Reading(facts=facts, config_json=config_json, cannot_run={"torch": str(error)})
    return Reading(facts=facts, config_json=config_json)


def facts_of(config: Any) -> ModelFacts:
    """Raises Unreadable: its layers cannot be counted, differ in size, or do not keep keys and values."""
    name = architecture(config)
    _check_decoder(config, name)
    model = build(config, "meta", torch.float32)
    name = type(model).__name__
    num_layers = _positive(config, name, "num_hidden_layers")
    parts = parts_of(model, num_layers)
    layers = parts.all_layers
    layer_params = _layer_params(layers, name)
    _check_cut(config, model, layer_params, num_layers)
    num_heads = _positive(config, name, "num_attention_heads")
    first, last = _ends(model, parts)
    head, table = model.get_output_embeddings().weight, model.get_input_embeddings().weight
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
        num_kv_heads=num_kv_heads(config),
        head_dim=kv_head_dim(config),
        max_context_tokens=_positive(config, name, "max_position_embeddings"),
        layer_params=layer_params,
        embedding_params=first,
        lm_head_params=last,
        tied_embeddings=head is table,
        tied_params=table.numel() if head is table else 0,
        gated_mlp=mlp.gated,
        parallel_attention=parallel_attention(config),
        num_experts=mlp.num_experts,
        experts_per_token=mlp.experts_per_token,
        expert_params=mlp.expert_params,
        matrices=matrices_of(layers[0]),
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


def _ends(model: Any, parts: DecoderParts) -> tuple[int, int]:
    """Parameters before the layers, and all else outside them; a tied head counts in full."""
    before = {id(each) for part in parts.modules(parts.before) for each in part.parameters()}
    head = model.get_output_embeddings()
    counted = before.union(id(each) for part in (parts.all_layers, head) for each in part.parameters())
    first = sum(each.numel() for each in model.parameters() if id(each) in before)
    after = sum(each.numel() for each in model.parameters() if id(each) not in counted)
    return first, after + _count(head)


def _count(module: Any) -> int:
    """Elements that a checkpoint holds, tied ones once: parameters, and the buffers that are stored."""
    return sum({id(each): each.numel() for each in module.state_dict(keep_vars=True).values()}.values())


def _positive(config: Any, name: str, field: str) -> int:
    value = getattr(config, field, None)
    if not isinstance(value, int) or value < 1:
        raise Unreadable(f"{name} cannot be cut: its config says {field}={value!r}; give a config.json with a number")
    return value


def _shape_key(facts: ModelFacts, config: Any) -> str:
    """Depth and the longest context change what is predicted, not what is measured, so they are no part of it."""
    costs = facts.model_dump(exclude=set(_NOT_COST)) | {
        "model_type": config.model_type,
        "sliding_window": getattr(config, "sliding_window", None),
    }
    return hashlib.sha256(json.dumps(costs, sort_keys=True).encode()).hexdigest()[:32]
