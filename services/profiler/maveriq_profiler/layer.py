"""What a decoder layer's MLP is: gated or plain, a mixture of experts or dense, beside the attention or after it.

Pure: a config and one layer of its real modules in, the answer out.
"""

from dataclasses import dataclass
from typing import Any

from maveriq_profiler.cutting import Unreadable

_ALWAYS_PARALLEL = ("codegen", "cohere", "cohere2", "cohere2_moe", "gptj", "phi")
"""model_type whose layers add attention and MLP of one input; all others that transformers knows are asked below."""
_NUM_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
_EXPERTS_PER_TOKEN = ("num_experts_per_tok", "num_experts_per_token", "moe_top_k", "moe_k", "top_k_experts")
_WIDTH = ("intermediate_size", "ffn_dim", "ffn_hidden_size", "n_inner")


@dataclass(frozen=True, slots=True)
class Mlp:
    """Of a mixture, `width`, `gated` and `expert_params` are of one expert."""

    width: int
    gated: bool
    num_experts: int
    experts_per_token: int
    expert_params: int


def mlp_of(config: Any, layer: Any, name: str) -> Mlp:
    """
    Args:
        layer: torch.nn.Module; its weights may be on the meta device.
        name: of the architecture, for the refusal.

    Raises:
        Unreadable: its experts cannot be counted.
    """
    hidden_size = int(config.hidden_size)
    num_experts = _first(config, _NUM_EXPERTS)
    experts = _expert_weights(layer, num_experts) if num_experts else {}
    if not experts:
        width = _first(config, _WIDTH) or 4 * hidden_size  # what GPT-J and Bloom do where their config says nothing
        return Mlp(width, _is_gated(_matrices_beside_attention(layer), hidden_size, width), 0, 0, 0)
    chosen = _first(config, _EXPERTS_PER_TOKEN)
    params = sum(experts.values())
    if not 0 < chosen <= num_experts or params % num_experts:
        raise Unreadable(
            f"{name} cannot be cut: its config says {num_experts} experts of which each token passes {chosen}, and its "
            f"layers hold {params} parameters of experts; give a config.json where these agree"
        )
    width = _first(config, ("moe_intermediate_size", *_WIDTH))
    one = params // num_experts
    return Mlp(width, _is_gated(one, hidden_size, width), num_experts, chosen, one)


def parallel_attention(config: Any) -> bool:
    """Whether attention and MLP read the same input, so that TP has one all-reduce a layer instead of two."""
    if config.model_type in _ALWAYS_PARALLEL:
        return True
    if config.model_type == "falcon":
        return bool(config.parallel_attn or config.new_decoder_architecture)
    return bool(getattr(config, "use_parallel_residual", False))  # GPT-NeoX, StableLM


def _is_gated(num_elements: int, hidden_size: int, width: int) -> bool:
    """Gate, up and down projection are three matrices of hidden_size x width; a plain MLP has two."""
    return num_elements > 2.5 * hidden_size * width


def _expert_weights(layer: Any, num_experts: int) -> dict[str, int]:
    """Elements of what belongs to experts: a module of that name, or one matrix for each of them in a tensor."""
    return {
        path: parameter.numel()
        for path, parameter in layer.named_parameters()
        if "experts" in path.split(".") or (parameter.dim() == 3 and parameter.shape[0] == num_experts)
    }


def _matrices_beside_attention(layer: Any) -> int:
    """Elements of all matrices of the layer outside its attention; what is left is the MLP."""
    within = [
        f"{path}."
        for path, module in layer.named_modules()
        if path and "Attention" in type(module).__name__ and "Norm" not in type(module).__name__
    ]
    return sum(
        parameter.numel()
        for path, parameter in layer.named_parameters()
        if parameter.dim() > 1 and not path.startswith(tuple(within))
    )


def _first(config: Any, fields: tuple[str, ...]) -> int:
    """The first of the fields that holds a number above 0; 0: none does."""
    for field in fields:
        value = getattr(config, field, None)
        if isinstance(value, int) and value > 0:
            return value
    return 0
