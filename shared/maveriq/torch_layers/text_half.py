"""Which of transformers' loaders reads a checkpoint, and the text half of a model that sees or hears too."""

# torch and transformers are typed in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

import copy
from typing import Any

import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM, AutoModelForImageTextToText

from maveriq.torch_layers.computed_buffers import materialise_buffers


def loader_of(config: Any) -> Any:
    """The class whose from_pretrained reads a checkpoint with this config."""
    return AutoModelForCausalLM if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING else AutoModelForImageTextToText


def text_half(loaded: Any, dtype: torch.dtype) -> Any:
    """The decoder with its head, on the loaded model's weights.

    Args:
        loaded: by `loader_of`; may be a decoder alone.
    """
    models: Any = AutoModelForCausalLM
    with torch.device("meta"):
        plain: Any = models.from_config(loaded.config.get_text_config(decoder=True), dtype=dtype)
    materialise_buffers(plain, plain, loaded.device)  # before it has weights, which this would draw anew
    if type(plain) is type(loaded):
        plain.load_state_dict(loaded.state_dict(), assign=True)
    else:
        plain.base_model.load_state_dict(loaded.get_decoder().state_dict(), assign=True)
        plain.set_output_embeddings(copy.deepcopy(loaded.get_output_embeddings()))  # tied as the text's config says
    plain.tie_weights()
    return plain
