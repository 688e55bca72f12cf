"""Deployments as ingress would show them."""

from datetime import UTC, datetime
from uuid import UUID

from maveriq.contracts import (
    Candidate,
    Configuration,
    Counteroffer,
    Deployment,
    Failure,
    FailureReason,
    Intent,
    Model,
    ModelFacts,
    Placement,
    Plan,
    Precision,
    Prediction,
    Rejection,
    Slo,
    Stage,
    StageMemory,
    State,
)

MIB = 2**20
NOW = datetime(2026, 1, 1, tzinfo=UTC)
FIRST = UUID("11111111-1111-4111-8111-111111111111")
SECOND = UUID("12222222-2222-4222-8222-222222222222")


def configuration(precision: Precision = Precision.BF16, pp: int = 2) -> Configuration:
    return Configuration(
        engine="torch", gpu_type="cpu-1t", tp=1, pp=pp, precision=precision, kv_precision=precision,
        max_batch=4, context_tokens=512,
    )  # fmt: skip


def prediction(ttft_ms: float = 120.0) -> Prediction:
    return Prediction(
        ttft_ms=ttft_ms, tpot_ms=40, e2e_ms=4_000, throughput_tokens_per_s=80, memory_bytes=300 * MIB,
        gpu_s=8, accuracy=1.0,
    )  # fmt: skip


def candidate() -> Candidate:
    memory = StageMemory(
        layer_bytes=7 * MIB, first_bytes=56 * MIB, last_bytes=56 * MIB, tied_saving_bytes=56 * MIB, runtime_bytes=MIB
    )
    return Candidate(configuration=configuration(), prediction=prediction(), memory=memory, score=1234)


def plan() -> Plan:
    facts = ModelFacts(
        architecture="LlamaForCausalLM", shape_key="k", num_layers=30, hidden_size=576, intermediate_size=1536,
        vocab_size=49152, num_heads=9, num_kv_heads=3, head_dim=64, max_context_tokens=2048, layer_params=3_540_000,
        embedding_params=28_311_552, lm_head_params=28_312_128, tied_embeddings=True,
    )  # fmt: skip
    lost = Rejection(
        configuration=configuration(Precision.FP32, pp=1),
        prediction=prediction(900),
        constraint="slo.ttft_ms",
        wanted=300,
        predicted=900,
    )
    return Plan(facts=facts, candidates=(candidate(),), rejected=(lost,), num_considered=2)


def placement() -> Placement:
    stages = (
        Stage(gpus=("here/cpu:0",), num_layers=22, reserved_bytes=200 * MIB),
        Stage(gpus=("here/cpu:1",), num_layers=8, reserved_bytes=100 * MIB),
    )
    model = Model(name="tiny", source="somewhere")
    return Placement(replica=0, token="t", node="here", model=model, candidate=candidate(), stages=stages)


def deployment(
    state: State = State.READY, *, deployment_id: UUID = FIRST, model: str = "tiny", dry_run: bool = False
) -> Deployment:
    intent = Intent(model=model, slo=Slo(ttft_ms=300))
    eased = Intent(model=model, slo=Slo(ttft_ms=900))
    offer = Counteroffer(constraint="slo.ttft_ms", wanted=300, offered=900, intent=eased)
    failure = Failure(
        reason=FailureReason.NO_FEASIBLE_PLAN, detail="no configuration is fast enough", counteroffers=(offer,)
    )
    planned = state not in (State.ACCEPTED, State.MEASURED, State.FAILED)
    return Deployment(
        deployment_id=deployment_id,
        state=state,
        intent=intent,
        dry_run=dry_run,
        accepted_at=NOW,
        changed_at=NOW,
        plan=plan() if planned else None,
        placements=(placement(),) if planned and state is not State.PLANNED else (),
        ready_replicas=(0,) if state is State.READY else (),
        failure=failure if state is State.FAILED else None,
    )


def listed(*deployments: Deployment) -> dict[str, object]:
    return {"object": "list", "data": [each.model_dump(mode="json") for each in deployments]}
