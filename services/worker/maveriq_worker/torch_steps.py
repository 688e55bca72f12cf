"""What the stages of one replica and the worker say to one another: plain values, sent over private sockets."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from maveriq.contracts import FinishReason, Precision
from maveriq_worker.timings import Passed


@dataclass(frozen=True, slots=True)
class StageSpec:
    """All that one stage's process needs to load its part of the model."""

    rank: int
    num_stages: int
    first_layer: int
    num_layers: int
    total_layers: int
    """Of the whole placement; must be the model's."""
    checkpoint: Path
    precision: Precision
    """Of what is computed, of embedding, norms and lm_head, and of the layers unless they say otherwise."""
    device: str
    """As torch names it: cpu, cuda:0."""
    backend: Literal["gloo", "nccl"]
    rendezvous: Path
    """File through which the stages find one another."""
    max_batch: int
    context_tokens: int
    reserved_bytes: int
    threads: int
    eos_ids: tuple[int, ...]
    precisions: tuple[Precision, ...] = ()
    """Of its layers' weights, first to last. Empty: all as they are computed."""
    kv_int8: bool = False
    """The KV cache is kept in int8, not as it is computed."""

    @property
    def layer_precisions(self) -> tuple[Precision, ...]:
        return self.precisions or (self.precision,) * self.num_layers


@dataclass(frozen=True, slots=True)
class SamplerSpec:
    temperature: float
    top_p: float
    seed: int
    logprobs: int | None
    """Alternatives to report; None: report nothing."""


@dataclass(frozen=True, slots=True)
class Submit:
    """Worker to the first stage: a request with its prompt's tokens; prompt + max_tokens fit the context."""

    key: int
    token_ids: tuple[int, ...]
    max_tokens: int
    ignore_eos: bool
    sampler: SamplerSpec


@dataclass(frozen=True, slots=True)
class Cancel:
    key: int


@dataclass(frozen=True, slots=True)
class Move:
    """Copy a row's first `num_tokens` of the KV cache."""

    source: int
    target: int
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Pick:
    """Choose the token that follows token number `token` of the step's row number `row`."""

    key: int
    row: int
    token: int


@dataclass(frozen=True, slots=True)
class Step:
    """One pass of one micro-batch through all stages: every row is fed the same number of tokens."""

    group: int
    first_row: int
    """KV rows first_row, first_row + 1, ... belong to the rows of `token_ids`."""
    token_ids: tuple[tuple[int, ...], ...]
    """Padded at the end with 0; what padding writes is overwritten before it is ever attended to."""
    starts: tuple[int, ...]
    """Position of each row's first token."""
    picks: tuple[Pick, ...]
    """Empty where a prompt goes on in the next step."""
    moves: tuple[Move, ...] = ()
    """Done first, in this order."""
    opened: tuple[tuple[int, SamplerSpec], ...] = ()
    closed: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Sent:
    """A stage to the next: the activations of the step that came before are on their way."""

    core: int | None
    """Where all stages compute this step; None: each where it likes."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A chosen token; log probabilities are those of the model, before temperature and top_p."""

    key: int
    token_id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    """Token id and log probability, most likely first."""


@dataclass(frozen=True, slots=True)
class StepDone:
    group: int
    choices: tuple[Choice, ...]


@dataclass(frozen=True, slots=True)
class Emitted:
    choice: Choice
    finish_reason: FinishReason | None


@dataclass(frozen=True, slots=True)
class Stepped:
    """First stage to the worker: all that one step brought."""

    emitted: tuple[Emitted, ...]
    active: int
    waiting: int
    passed: Passed | None = None
    """What the step took, where it had the stages to itself."""


@dataclass(frozen=True, slots=True)
class StageReady:
    weight_bytes: int
    kv_cache_bytes: int


@dataclass(frozen=True, slots=True)
class StageRefused:
    """The stage cannot run as asked; its process ends."""

    reason: str
    unusable: bool = False
    """So is its checkpoint, whatever the split."""
