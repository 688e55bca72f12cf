"""Whether the torch engine runs a decoder: asked when a model is planned for, and again by each stage that starts.

No weight is read and none takes memory: the model stands on the meta device, and only what is around its layers runs.
"""

# torch and transformers are typed in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

import copy
import inspect
from functools import partial
from typing import Any, cast

import torch
from transformers import AutoModelForCausalLM

from maveriq.torch_layers.attention_masks import AttentionMasks
from maveriq.torch_layers.computed_buffers import materialise_buffers
from maveriq.torch_layers.decoder_parts import (
    FORWARD_ERRORS,
    DecoderParts,
    Reached,
    Uncuttable,
    find_parts,
    in_a_line,
    reach,
)
from maveriq.torch_layers.kv_heads import kv_copies, kv_head_dim, num_kv_heads

MASKS = ("full_attention", "sliding_attention")
_MODELS: Any = AutoModelForCausalLM
_META, _CPU = torch.device("meta"), torch.device("cpu")


class CannotRun(Exception):
    """The torch engine cannot run this model; says why and what to do."""


def on_meta(config: Any, dtype: torch.dtype) -> Any:
    """The whole model without weights: cheap, and each layer knows its number."""
    # The sdpa of transformers refuses capped attention scores (Gemma 2).
    attention = "eager" if getattr(config, "attn_logit_softcapping", None) else None
    own = copy.deepcopy(config)  # transformers writes into it, and so does a cut
    with _META:
        return _MODELS.from_config(own, dtype=dtype, attn_implementation=attention).eval()


def check_runs(config: Any) -> None:
    """
    Args:
        config: of a decoder that transformers builds.

    Raises:
        CannotRun
    """
    model = on_meta(config, torch.float32)
    try:
        _check(model)
    except Uncuttable as error:
        raise CannotRun(
            f"the torch engine cannot run {type(model).__name__}: {error}; register another model or engine"
        ) from error


def _check(model: Any) -> None:
    config = model.config
    before, later = (AttentionMasks(config, torch.float32, device) for device in (_META, _CPU))
    kinds = (*before.kinds, *getattr(config, "attention_layers", ()))  # GPT-Neo's window is not counted from the token
    if unknown := sorted(set(kinds) - set(MASKS)):
        raise Uncuttable(f"its layers of kind {', '.join(unknown)} keep no plain KV cache")
    if getattr(config, "alibi", False):
        raise Uncuttable("its attention adds positions (ALiBi) that it counts from a mask of one row at a time")
    parts = find_parts(model, config.num_hidden_layers)
    _check_weights(model, parts)
    if "logits_to_keep" not in inspect.signature(type(model).forward).parameters:
        raise Uncuttable("its forward cannot be asked for single positions (logits_to_keep)")
    _check_cache(config, parts, before)
    _check_passes_through(model, parts, later)


def _check_weights(model: Any, parts: DecoderParts) -> None:
    around = parts.modules((*parts.before, *parts.after))
    held = {id(each) for part in (parts.all_layers, *around) for each in part.parameters()}
    held |= {id(each) for each in model.get_output_embeddings().parameters()}
    others = [name for name, each in model.named_parameters() if id(each) not in held]
    if others:
        raise Uncuttable(f"it has weights beside embedding, layers, norm and head: {', '.join(others[:3])}")


class _FirstKept:
    """Stands in for the cache until the first layer writes to it."""

    def __init__(self) -> None:
        self.shapes: tuple[torch.Size, ...] = ()

    def update(self, keys: torch.Tensor, values: torch.Tensor, *_: object, **__: object) -> None:
        self.shapes = (keys.shape, values.shape)  # [rows, KV heads, tokens, head size]
        raise Reached

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0


@torch.inference_mode()
def _check_cache(config: Any, parts: DecoderParts, masks: AttentionMasks) -> None:
    """What a first stage does with rows that are at different positions, up to what its first layer keeps of them."""
    kept, positions = _FirstKept(), torch.tensor([[1], [5]], device=_META)
    ids = torch.zeros(2, 1, dtype=torch.long, device=_META)
    try:
        reach(partial(parts.owner, input_ids=ids, **_inputs(masks, positions, 6, kept)))
    except Uncuttable as error:
        raise Uncuttable(
            f"its layers do not take masks, positions and cache as the engine gives them: {error}"
        ) from error
    elements = sum(shape[1] * shape[3] for shape in kept.shapes) // kv_copies(config)
    heads, of_head = num_kv_heads(config), kv_head_dim(config)
    if not 0 <= 2 * heads * of_head - elements <= heads:  # a mean of two sizes is rounded up
        raise Uncuttable(
            f"its cache keeps {elements} elements of a token in a layer, its config tells of {2 * heads * of_head}"
        )


@torch.inference_mode()
def _check_passes_through(model: Any, parts: DecoderParts, masks: AttentionMasks) -> None:
    """A stage in the middle without its layers must hand on what it gets: else the forward adds something."""
    parts.cut(0, 0, is_first=False, is_last=False)
    materialise_buffers(model, parts.owner, _CPU)
    given = torch.linspace(-2, 3, model.config.hidden_size).view(1, 1, -1)
    inputs = _inputs(masks, torch.full((1, 1), 5), 6, _FirstKept())
    try:
        got = cast("torch.Tensor", parts.owner(inputs_embeds=given, **inputs).last_hidden_state)
    except FORWARD_ERRORS as error:
        raise Uncuttable(f"its forward cannot begin behind the embedding ({in_a_line(error)})") from error
    if not torch.equal(given, got):
        raise Uncuttable("its forward changes the activations it is given, so it cannot be cut into stages")


def _inputs(masks: AttentionMasks, positions: torch.Tensor, end: int, cache: object) -> dict[str, Any]:
    return {
        "attention_mask": masks.of(positions, end),
        "position_ids": positions,
        "past_key_values": cache,
        "use_cache": True,
    }
