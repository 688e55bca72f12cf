"""Moves as a user sees them: the table, the GPUs before and after, and why something cannot be done."""

import json
from collections.abc import Callable
from uuid import UUID

from maveriq.cli.defragging import after
from maveriq.contracts import DefragmentationProgressed, Gpu, GpuState, Holding, InventoryChanged, ReplicaMove, Stage
from tests.unit.cli.conftest import Called, ScriptedIngress
from tests.unit.cli.records import FIRST, MIB, SECOND, deployment, listed

Call = Callable[..., Called]
ID = UUID("00000000-0000-4000-8000-0000000000d1")
GET, POST = f"GET /v1/defrag/{ID}", "POST /v1/defrag"


def node(name: str, *holdings: Holding) -> InventoryChanged:
    gpu = Gpu(id=f"{name}/cpu:0", gpu_type="cpu-1t", total_bytes=400 * MIB, foreign_bytes=0)
    return InventoryChanged(node=name, engine="torch", gpus=(GpuState(gpu=gpu, holdings=holdings),))


def move() -> ReplicaMove:
    def stages(gpu: str) -> tuple[Stage, ...]:
        return (Stage(gpus=(gpu,), num_layers=30, reserved_bytes=100 * MIB),)

    return ReplicaMove(
        deployment_id=FIRST, replica=0, token="t", node="a", stages=stages("a/cpu:0"), to_node="b",
        to_stages=stages("b/cpu:0"),
    )  # fmt: skip


def told(**changes: object) -> DefragmentationProgressed:
    plan = DefragmentationProgressed(
        defragmentation_id=ID, apply=False, goal="make room for big 12222222", waiter=SECOND, moves=(move(),),
        is_fewest=True, finished=True,
    )  # fmt: skip
    return plan.model_copy(update=changes)


HELD = Holding(deployment_id=FIRST, replica=0, bytes=100 * MIB)
NODES = [node("a", HELD), node("b")]


def answers(ingress: ScriptedIngress, progress: DefragmentationProgressed) -> None:
    ingress.answer("GET /v1/gpus", {"data": [each.model_dump(mode="json") for each in NODES]})
    ingress.answer("GET /v1/deployments", listed(deployment()))
    ingress.answer(POST, {"defragmentation_id": str(ID)}, 202)
    ingress.answer(GET, progress.model_dump(mode="json"))


def test_a_move_takes_its_holdings_along() -> None:
    first, second = after(NODES, [move()])
    assert first.gpus[0].holdings == ()
    assert second.gpus[0].holdings == (HELD,)


def test_the_plan_is_shown_with_the_gpus_before_and_after_and_how_to_do_it(
    ingress: ScriptedIngress, call: Call
) -> None:
    answers(ingress, told())
    called = call("defrag")
    assert called.code == 0
    assert (POST, {"apply": False}) in ingress.asked
    assert "to make room for big 12222222: 1 move(s), the fewest that do" in called.out
    assert "tiny 11111111" in called.out and "a: cpu:0" in called.out and "b: cpu:0" in called.out
    assert called.out.index("before") < called.out.index("after")
    assert "do it with --apply" in called.out


def test_applied_moves_are_followed_to_their_end(ingress: ScriptedIngress, call: Call) -> None:
    answers(ingress, told(apply=True, num_done=1))
    called = call("defrag", "--apply", "--free-gpu", "a/")
    assert called.code == 0
    assert (POST, {"apply": True, "free_gpu": "a/cpu:0"}) in ingress.asked
    assert "move 1 of 1 is done: it serves on b: cpu:0 and left a: cpu:0" in called.out
    assert "done: make room" in called.out


def test_what_cannot_be_done_says_why(ingress: ScriptedIngress, call: Call) -> None:
    answers(ingress, told(moves=(), problem="no deployment waits for memory"))
    called = call("defrag")
    assert (called.code, called.out) == (1, "")
    assert "no deployment waits for memory" in called.err


def test_json_is_what_the_allocator_said(ingress: ScriptedIngress, call: Call) -> None:
    answers(ingress, told())
    assert DefragmentationProgressed.model_validate(json.loads(call("defrag", "--json").out)) == told()


def test_what_cannot_be_done_is_one_json_object_too(ingress: ScriptedIngress, call: Call) -> None:
    answers(ingress, told(moves=(), problem="no deployment waits for memory"))
    called = call("defrag", "--json")
    assert (called.code, json.loads(called.out)["problem"]) == (1, "no deployment waits for memory")


def test_a_gpu_that_is_not_there_is_named_with_those_that_are(ingress: ScriptedIngress, call: Call) -> None:
    answers(ingress, told())
    called = call("defrag", "--free-gpu", "c")
    assert called.code == 1
    assert "--free-gpu" in called.err and "there are: a/cpu:0, b/cpu:0" in called.err
