"""What an admission says is free: whole nodes that were heard of, most free bytes first."""

from datetime import UTC, datetime, timedelta
from uuid import uuid4

from maveriq.contracts import Fragment, Gpu, GpuState, Holding, InventoryChanged
from maveriq_ingress.fragments import MOST, carried, fragments_of

NOW = datetime(2026, 11, 21, tzinfo=UTC)


def gpu(
    name: str, *, total: int = 100, foreign: int = 0, held: int = 0, lent: int = 0, drift: str | None = None
) -> GpuState:
    holdings = [
        Holding(deployment_id=uuid4(), replica=0, bytes=number, calibration=calibration)
        for number, calibration in ((held, False), (lent, True))
        if number
    ]
    seen = Gpu(id=name, gpu_type="cpu-1t", total_bytes=total, foreign_bytes=foreign)
    return GpuState(gpu=seen, holdings=tuple(holdings), drift=drift)


def node(name: str, *gpus: GpuState) -> InventoryChanged:
    return InventoryChanged(node=name, engine="torch", gpus=gpus)


def free(found: tuple[Fragment, ...]) -> dict[str, int]:
    return {each.gpu: each.free_bytes for each in found}


def test_free_is_what_nobody_but_a_calibration_holds() -> None:
    here = node("a", gpu("a/0", foreign=10, held=30, lent=20), gpu("a/1", held=100), gpu("a/2", drift="takes more"))
    assert free(fragments_of([(here, NOW)])) == {"a/0": 60, "a/1": 0}
    fragment, _ = fragments_of([(here, NOW)])
    assert (fragment.node, fragment.engine, fragment.gpu_type) == ("a", "torch", "cpu-1t")


def test_what_deployments_hold_is_told_as_it_comes_back_but_not_where_headroom_needs_it() -> None:
    here = node("a", gpu("a/0", held=30, lent=20), gpu("a/1", held=100))
    assert {each.gpu: each.held_bytes for each in fragments_of([(here, NOW)])} == {"a/0": 30, "a/1": 100}
    assert fragments_of([(here.model_copy(update={"headroom_bytes": 80}), NOW)]) == ()


def test_a_nodes_headroom_is_kept_on_its_roomiest_gpus() -> None:
    here = node("a", gpu("a/0"), gpu("a/1", total=300), gpu("a/2", total=50))
    assert free(fragments_of([(here, NOW)])) == {"a/1": 300, "a/0": 100, "a/2": 50}
    kept = here.model_copy(update={"headroom_bytes": 120})
    assert free(fragments_of([(kept, NOW)])) == {"a/1": 180, "a/0": 100, "a/2": 50}
    assert free(fragments_of([(here.model_copy(update={"headroom_bytes": 420}), NOW)])) == {"a/2": 30}


def test_nodes_with_most_free_bytes_come_first_and_whole() -> None:
    small, large = node("s", gpu("s/0"), gpu("s/1")), node("l", gpu("l/0", total=300))
    assert list(free(fragments_of([(small, NOW), (large, NOW)]))) == ["l/0", "s/0", "s/1"]
    many = [node(f"n{i}", *(gpu(f"n{i}/{j}", total=1000 - i) for j in range(100))) for i in range(3)]
    last = node("last", *(gpu(f"last/{j}", total=1) for j in range(MOST - 200)))
    found = carried(fragments_of([(each, NOW) for each in (last, *many)]))
    assert {each.node for each in found} == {"n0", "n1", "last"}
    assert len(found) == MOST


def test_a_node_that_fell_silent_has_nothing_free() -> None:
    """Unless all did: then it is the reports that are away."""
    here, gone = node("here", gpu("h/0")), node("gone", gpu("g/0", total=900))
    before = NOW - timedelta(minutes=2)
    assert free(fragments_of([(here, NOW), (gone, before)])) == {"h/0": 100}
    assert free(fragments_of([(here, before), (gone, before)])) == {"g/0": 900, "h/0": 100}
    assert fragments_of([]) == ()


def test_a_node_that_is_said_to_be_silent_is_left_out() -> None:
    silent = node("b", gpu("b/0")).model_copy(update={"silent": True})
    assert free(fragments_of([(node("a", gpu("a/0")), NOW), (silent, NOW)])) == {"a/0": 100}
