"""Finds a decoder's layers and builds the model with fewer of them. Reads config.json; never a weight."""

import copy
import json
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoModelForCausalLM

from maveriq.torch_layers import DecoderParts, Uncuttable, find_layers, find_parts

_CONFIGS: Any = AutoConfig  # transformers' types are partly unknown
_MODELS: Any = AutoModelForCausalLM


class Unreadable(Exception):
    """A source has no config that can be read, or its architecture cannot be cut; says what to give instead."""


def read_config(source: str) -> Any:
    """The decoder's config.

    Args:
        source: as `Model.source`. Of a Hugging Face id, config.json alone is fetched.

    Raises:
        Unreadable.
    """
    path = Path(source).expanduser()
    try:
        if source.endswith(".gguf"):
            if not path.is_file():
                raise Unreadable(f"{source}: there is no such file; give the path of a .gguf as this machine sees it")
            config = _CONFIGS.from_pretrained(str(path.parent), gguf_file=path.name)
        elif path.is_dir():
            if not (path / "config.json").is_file():
                raise Unreadable(f"{source}: has no config.json; give a folder that holds the model's config.json")
            config = _CONFIGS.from_pretrained(str(path))
        elif source.count("/") > 1 or source.startswith(("/", ".", "~")):
            raise Unreadable(
                f"{source}: there is no such folder; give a folder with config.json, a .gguf file or a Hugging Face id"
            )
        else:
            config = _CONFIGS.from_pretrained(source)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, StrictDataclassError) as error:
        raise Unreadable(
            f"{source}: its config.json cannot be read ({_in_a_line(error)}); give a local folder with config.json, "
            "a .gguf file, or the id of a Hugging Face model that this machine can reach"
        ) from error
    if getattr(config, "is_encoder_decoder", False):
        raise Unreadable(f"{architecture(config)} cannot be cut: it is an encoder-decoder; give a decoder-only model")
    return config.get_text_config(decoder=True)


def config_from(config_json: str) -> Any:
    """The config that `config.to_json_string` wrote."""
    fields = json.loads(config_json)
    return _CONFIGS.for_model(**fields)


def architecture(config: Any) -> str:
    """Class name of the model, as its config gives it."""
    named = getattr(config, "architectures", None)
    return str(named[0]) if named else type(config).__name__.removesuffix("Config")


def with_layers(config: Any, num_layers: int) -> Any:
    """The config with fewer layers; lists with one entry a layer are cut along."""
    full = config.num_hidden_layers
    cut = copy.deepcopy(config)
    fields = cast("dict[str, Any]", config.__dict__)
    for name, value in fields.items():
        if isinstance(value, list | tuple) and len(cast("list[Any]", value)) == full and full > 1:
            setattr(cut, name, value[:num_layers])
    cut.num_hidden_layers = num_layers
    return cut


def build(config: Any, device: str, dtype: torch.dtype) -> Any:
    """The model with random weights, in evaluation mode.

    Raises:
        Unreadable: transformers knows no causal language model for this config, or cannot build it from what it says.
    """
    try:
        with torch.device(device):
            model = _MODELS.from_config(config, dtype=dtype, attn_implementation=_attention(config))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        unknown = "Unrecognized configuration class" in str(error)
        raise Unreadable(
            f"{architecture(config)} cannot be cut: transformers knows no AutoModelForCausalLM for it; "
            "give a decoder-only language model"
            if unknown
            else f"{architecture(config)} cannot be cut: transformers cannot build it from its config "
            f"({_in_a_line(error)}); give the config.json that came with the model"
        ) from error
    return model.eval()


def layers_of(model: Any, num_layers: int) -> Any:
    """Its nn.ModuleList of layers. Raises Unreadable."""
    try:
        return getattr(*find_layers(model, num_layers))
    except Uncuttable as error:
        raise Unreadable(f"{type(model).__name__} cannot be cut: {error}") from error


def parts_of(model: Any, num_layers: int) -> DecoderParts:
    """Raises Unreadable."""
    try:
        return find_parts(model, num_layers)
    except Uncuttable as error:
        raise Unreadable(f"{type(model).__name__} cannot be cut: {error}") from error


def _in_a_line(error: Exception) -> str:
    """Its first line; with the second where the first only announces, as huggingface_hub's checks do."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    told = " ".join(lines[: 2 if lines[0].endswith(":") else 1])
    bare = isinstance(error, KeyError | TypeError | AttributeError) or not told
    return f"{type(error).__name__}: {told}".rstrip(": ") if bare else told


def _attention(config: Any) -> str | None:
    """What the config asks for, else what transformers chooses (sdpa where the model has it)."""
    asked = getattr(config, "_attn_implementation_internal", None)
    return asked if isinstance(asked, str) else None
