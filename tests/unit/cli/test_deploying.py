"""`maveriq deploy` while engines fail: each failure and what is tried next is told, and the end is the deployment's."""

from collections.abc import Callable, Sequence

from maveriq.contracts import Deployment, Placement, ReplicaFailed, State
from tests.unit.cli.conftest import Called, Events, ScriptedIngress
from tests.unit.cli.records import FIRST, deployment, listed, placement

Call = Callable[..., Called]

TRACEBACK = "Traceback (most recent call last):\n  File ...\nRuntimeError: stage 0 ran out of memory while it loaded"


def failed(token: str, detail: str = TRACEBACK) -> ReplicaFailed:
    return ReplicaFailed(deployment_id=FIRST, replica=0, token=token, node="here", detail=detail)


def at(state: State, token: str, layers: Sequence[int], lost: ReplicaFailed | None = None) -> Deployment:
    return deployment(state).model_copy(update={"placements": (placed(token, layers),), "replica_failed": lost})


def placed(token: str, layers: Sequence[int]) -> Placement:
    stages = tuple(
        stage.model_copy(update={"num_layers": count}) for stage, count in zip(placement().stages, layers, strict=True)
    )
    return placement().model_copy(update={"token": token, "stages": stages})


def submits(ingress: ScriptedIngress, *found: Deployment) -> None:
    ingress.answer("POST /v1/intents", deployment(State.ACCEPTED).model_dump(mode="json"), 202)
    ingress.answer(f"GET /v1/deployments/{FIRST}/events", Events(each.model_dump(mode="json") for each in found))


def test_each_engine_that_failed_and_where_its_replica_goes_next_is_told(ingress: ScriptedIngress, call: Call) -> None:
    first, second = failed("t0"), failed("t1", "this node has no GPU here/cpu:9")
    submits(
        ingress, at(State.RESERVED, "t0", (22, 8)), at(State.RESERVED, "t0", (22, 8), first),
        at(State.RESERVED, "t1", (15, 15), first), at(State.RESERVED, "t1", (15, 15), second),
        at(State.RESERVED, "t2", (8, 22), second), at(State.READY, "t2", (8, 22), second),
    )  # fmt: skip
    called = call("deploy", "tiny")
    assert called.code == 0
    told = " ".join(called.out.split())
    in_order = (
        "layers 22 on cpu:0, 8 on cpu:1",
        "engine of replica 0 on here: RuntimeError: stage 0 ran out of memory while it loaded",
        "layers 15 on cpu:0, 15 on cpu:1", "engine of replica 0 on here: this node has no GPU here/cpu:9",
        "layers 8 on cpu:0, 22 on cpu:1", "1 of 1 replicas serve",
    )  # fmt: skip
    assert [told.count(words) for words in in_order] == [1] * 6
    assert sorted(in_order, key=told.index) == list(in_order)


def test_where_every_candidate_failed_deploy_ends_with_the_reason(ingress: ScriptedIngress, call: Call) -> None:
    drains = at(State.DRAINING, "t0", (22, 8), failed("t0"))
    submits(ingress, at(State.RESERVED, "t0", (22, 8)), drains, deployment(State.FAILED))
    called = call("deploy", "tiny")
    assert called.code == 1
    assert "no configuration is fast enough" in called.out and "draining" not in called.out
    assert called.err.startswith("maveriq: tiny is not deployed")


def test_ps_says_what_failed_while_another_seat_is_tried_and_no_longer(ingress: ScriptedIngress, call: Call) -> None:
    words = "11111111 engine of replica 0 on here: RuntimeError: stage 0 ran out of memory while it loaded"
    ingress.answer("GET /v1/deployments", listed(at(State.RESERVED, "t1", (15, 15), failed("t0"))))
    assert words in " ".join(call("ps").out.split())
    ingress.answer("GET /v1/deployments", listed(at(State.READY, "t1", (15, 15), failed("t0"))))
    assert words not in " ".join(call("ps").out.split())
