"""Small plans and nodes for the allocator's tests. Sizes are bytes that can be added in the head."""

from collections.abc import Callable, Sequence
from itertools import chain, repeat
from typing import Any
from uuid import UUID

from maveriq.contracts import (
    Admission,
    Candidate,
    Configuration,
    Gpu,
    Intent,
    Model,
    ModelFacts,
    NodeReported,
    Plan,
    PlanComputed,
    PlannedStage,
    Precision,
    Prediction,
    StageMemory,
)
from maveriq_allocator.choosing import Node
from maveriq_allocator.packing import Fragment

DEPLOYMENT = UUID("6f1f0a4e-7f6b-4d51-9a0c-0d2b6f0b7a10")
MODEL = Model(name="small", source="small")


def memory(layer: int = 10, first: int = 0, last: int = 0, tied: int = 0, runtime: int = 0) -> StageMemory:
    return StageMemory(
        layer_bytes=layer, first_bytes=first, last_bytes=last, tied_saving_bytes=tied, runtime_bytes=runtime
    )


def candidate(
    pp: int = 1, tp: int = 1, gpu_type: str = "A6000", engine: str = "torch", stage: StageMemory | None = None
) -> Candidate:
    return Candidate(
        configuration=Configuration(
            engine=engine, gpu_type=gpu_type, tp=tp, pp=pp, precision=Precision.FP16, kv_precision=Precision.FP16,
            max_batch=4, context_tokens=512,
        ),
        prediction=Prediction(
            ttft_ms=50, tpot_ms=10, e2e_ms=1000, throughput_tokens_per_s=100, memory_bytes=100, gpu_s=1, accuracy=1
        ),
        memory=stage or memory(),
        score=1,
    )  # fmt: skip


def plan(*candidates: Candidate, num_layers: int = 8) -> Plan:
    facts = ModelFacts(
        architecture="LlamaForCausalLM", shape_key="small", num_layers=num_layers, hidden_size=64,
        intermediate_size=128, vocab_size=256, num_heads=4, num_kv_heads=4, head_dim=16, max_context_tokens=512,
        layer_params=1000, embedding_params=1000, lm_head_params=1000, tied_embeddings=False,
    )  # fmt: skip
    return Plan(facts=facts, candidates=candidates or (candidate(),), num_considered=max(1, len(candidates)))


def computed(
    *candidates: Candidate, replicas: int = 1, num_layers: int = 8, deployment_id: UUID = DEPLOYMENT, **intent: Any
) -> PlanComputed:
    """The planner says on each candidate how many replicas it needs; the allocator obeys that, not the intent."""
    each = [chosen.model_copy(update={"replicas": replicas}) for chosen in candidates or (candidate(),)]
    return PlanComputed(
        deployment_id=deployment_id,
        admission=Admission(intent=Intent(model="small", replicas=replicas, **intent), model=MODEL),
        plan=plan(*each, num_layers=num_layers),
    )


def fragments(*free_bytes: int, gpu_type: str = "A6000", node: str = "n") -> tuple[Fragment, ...]:
    return tuple(Fragment(f"{node}/{number}", gpu_type, free) for number, free in enumerate(free_bytes))


def node(name: str, *free_bytes: int, gpu_type: str = "A6000", engine: str = "torch") -> Node:
    return Node(name, engine, fragments(*free_bytes, gpu_type=gpu_type, node=name))


def reported(
    name: str, *total_bytes: int, foreign: Sequence[int] = (), gpu_type: str = "A6000", engine: str = "torch"
) -> NodeReported:
    taken = [*foreign, *[0] * len(total_bytes)]
    gpus = tuple(
        Gpu(id=f"{name}/{number}", gpu_type=gpu_type, total_bytes=total, foreign_bytes=taken[number])
        for number, total in enumerate(total_bytes)
    )
    return NodeReported(node=name, engine=engine, gpus=gpus)


def planned(*stages: tuple[int, int] | tuple[int, int, str], engine: str = "torch") -> Candidate:
    """A pipeline that the planner has split.

    Args:
        stages: bytes and layers of each, and its GPU type where that is another than the candidate's.
    """
    found = tuple(
        PlannedStage(
            gpu_type=stage[2] if len(stage) > 2 else "A6000", reserved_bytes=stage[0],
            precisions=(Precision.INT8,) * (stage[1] - 1) + (Precision.FP16,),
        )
        for stage in stages
    )  # fmt: skip
    whole = candidate(pp=len(stages), gpu_type=found[0].gpu_type, engine=engine)
    mixed = whole.configuration.model_copy(update={"variant": "mixed"})
    return whole.model_copy(update={"configuration": mixed, "stages": found})


def late_at_once() -> Callable[[], float]:
    """A clock by which a decision has no time, and all the patience there is."""
    return chain([0.0], repeat(1.0)).__next__
