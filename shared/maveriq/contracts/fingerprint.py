"""What a model is, and what it costs on a GPU type, as measured."""

from typing import ClassVar
from uuid import UUID

from pydantic import Field

from maveriq.contracts.gpu import NODE_PATTERN
from maveriq.contracts.intent import Admission
from maveriq.contracts.message import Message, Value
from maveriq.contracts.model import Precision


class ModelFacts(Value):
    """A decoder's shape, read from its config.json. Parameter counts are those of the real modules."""

    architecture: str = Field(description="Class name, e.g. LlamaForCausalLM.")
    shape_key: str = Field(description="Hash of the facts that decide cost: equal keys cost the same.")
    num_layers: int = Field(gt=0)
    hidden_size: int = Field(gt=0)
    intermediate_size: int = Field(gt=0)
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


class Sample(Value):
    """One raw reading of a cut model: medians of its repeats."""

    num_layers: int = Field(gt=0)
    batch: int = Field(gt=0)
    input_tokens: int = Field(gt=0)
    output_tokens: int = Field(gt=0)
    prefill_ms: float = Field(gt=0, description="All `batch` prompts of `input_tokens`, to the first token.")
    decode_ms: float = Field(gt=0, description="One decode step of the whole batch.")
    activation_bytes: int = Field(ge=0, description="Peak above weights and KV cache.")
    runtime_bytes: int = Field(ge=0, description="What the process takes of the GPU before any tensor.")


class Fingerprint(Value):
    """A model's cost on one GPU type with one engine at one precision, TP 1."""

    engine: str
    engine_version: str
    gpu_type: str
    precision: Precision
    kv_precision: Precision
    tp_degrees: tuple[int, ...] = Field(min_length=1, description="TP degrees that the engine can run here.")
    max_pp: int = Field(gt=0, description="Most pipeline stages that the engine can run here.")
    hop_ms: float = Field(ge=0, description="Handing one token's activations to the next stage, measured.")
    samples: tuple[Sample, ...] = Field(min_length=2)
    cost_s: float = Field(ge=0, description="GPU-seconds that measuring took.")


class MeasurementRequested(Message):
    """One profiler has measured; this GPU type of the cluster has not yet. Goes on until all have."""

    topic: ClassVar[str] = "measurement.requested.v1"
    routed_by: ClassVar[str | None] = "node"

    deployment_id: UUID
    admission: Admission
    node: str = Field(pattern=NODE_PATTERN, description="Rig that is to measure: its engine and GPU type in a word.")
    asked: tuple[str, ...] = Field(description="Rigs that were asked before: none is asked twice.")


class FingerprintMeasured(Message):
    """Carries the admission along, so that the planner needs nothing but this message."""

    topic: ClassVar[str] = "fingerprint.measured.v1"

    deployment_id: UUID
    admission: Admission
    facts: ModelFacts
    fingerprints: tuple[Fingerprint, ...] = Field(min_length=1)
