"""Whether two checkpoints on this machine have one shape: reads their config.json, where both have one."""

import json
from pathlib import Path
from typing import Any, cast

# One line an architecture family: what its config.json calls depth, width, MLP, heads and vocabulary.
_FIELDS = (
    "num_hidden_layers", "n_layer", "num_layers", "hidden_size", "n_embd", "intermediate_size", "ffn_dim", "n_inner",
    "num_attention_heads", "n_head", "num_key_value_heads", "head_dim", "vocab_size",
)  # fmt: skip


def difference(model: str, variant: str, label: str) -> str:
    """Why a variant's checkpoint is none of the model's; '' where it is one, or where that cannot be seen from here."""
    ours, theirs = _config(model), _config(variant)
    if ours is None or theirs is None:
        return ""
    for field in _FIELDS:
        if field in ours and field in theirs and ours[field] != theirs[field]:
            return (
                f"{label}: {variant} has {field} {theirs[field]} where the model has {ours[field]}; "
                f"register it as a model of its own: maveriq register NAME {variant}"
            )
    return ""


def _config(source: str) -> dict[str, Any] | None:
    try:
        config: Any = json.loads((Path(source) / "config.json").read_text())
    except (OSError, ValueError):
        return None
    if not isinstance(config, dict):
        return None
    whole = cast("dict[str, Any]", config)
    return whole.get("text_config") or whole
