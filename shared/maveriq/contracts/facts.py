"""What a model is: its shape, read from its config.json."""

from pydantic import Field

from maveriq.contracts.message import Value


class ModelFacts(Value):
    """A decoder's shape, read from its config.json. Parameter counts are those of the real modules."""

    architecture: str = Field(description="Class name, e.g. LlamaForCausalLM.")
    shape_key: str = Field(description="Hash of the facts that decide cost: equal keys cost the same.")
    num_layers: int = Field(gt=0)
    hidden_size: int = Field(gt=0)
    intermediate_size: int = Field(gt=0, description="Width of the MLP; of a mixture: of one expert.")
    vocab_size: int = Field(gt=0)
    num_heads: int = Field(gt=0)
    num_kv_heads: int = Field(gt=0)
    head_dim: int = Field(gt=0)
    max_context_tokens: int = Field(gt=0)
    layer_params: int = Field(gt=0, description="Parameters of one decoder layer.")
    embedding_params: int = Field(gt=0, description="Token (and position) embeddings: on the first stage.")
    lm_head_params: int = Field(
        gt=0, description="Output projection and final norm, on the last stage; a tied head counts in full."
    )
    tied_embeddings: bool = Field(description="One matrix serves both ends where they share a stage.")
    tied_params: int = Field(default=0, ge=0, description="Of that matrix; 0: vocab_size x hidden_size.")
    gated_mlp: bool = Field(default=True, description="The MLP has a gate beside its up projection.")
    parallel_attention: bool = Field(default=False, description="Attention and MLP run side by side.")
    num_experts: int = Field(default=0, ge=0, description="Of each layer's mixture; 0: one dense MLP.")
    experts_per_token: int = Field(default=0, ge=0)
    expert_params: int = Field(default=0, ge=0, description="Of one expert; `layer_params` counts all of them.")
    matrices: tuple[tuple[int, int], ...] = Field(
        default=(),
        description="Output and input features of one layer's linear modules; empty: as the others let expect.",
    )
