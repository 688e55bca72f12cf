"""What a person reads of a candidate that does not fit: what it needs, what of it is short, and what there is."""

import pytest

from maveriq.contracts import Candidate, LayerSpeed, StageMemory
from maveriq_allocator.choosing import Node, choose
from maveriq_allocator.shortages import shortage
from maveriq_allocator.words import readable
from tests.unit.allocator.plans import candidate, memory, node, plan

LAYERS = 8
ENDS = memory(layer=10, first=25, last=30, runtime=5)
BIG_ENDS = memory(layer=10, first=200, last=200, runtime=5)
MIXABLE = (LayerSpeed(gpu_type="A6000", decode_ms=1), LayerSpeed(gpu_type="L4", decode_ms=2))


def asked(pp: int = 1, tp: int = 1, stage: StageMemory = ENDS, gpu_type: str = "A6000") -> Candidate:
    return candidate(pp=pp, tp=tp, stage=stage, gpu_type=gpu_type)


@pytest.mark.parametrize(
    ("wanted", "nodes", "num_replicas", "short"),
    [
        (asked(), [], 1, "nodes: no node with engine torch has a A6000, none reports"),
        (asked(), [node("a", 999, engine="trtllm")], 1, "nodes: no node runs engine torch, only trtllm"),
        (
            asked(gpu_type="H100"), [node("a", 999), node("b", 9, gpu_type="L4")], 1,
            "GPUs: no node with engine torch has a H100, only A6000, L4",
        ),
        (
            asked(pp=2, tp=2), [node("a", 99, 99), node("b", 99, 99, 99)], 1,
            "GPUs on one node: 4 A6000 needed, 3 on b are the most",
        ),
        (
            asked(pp=3), [node("a", 99, 20, 14), node("b", 99, 9, 9)], 1,
            "stages: a comes closest, where 2 of 3 stages find 15 B on each of its GPUs, the least for one layer",
        ),
        (
            asked(pp=2, tp=2), [node("a", 99, 99, 99, 14)], 1,
            "stages: a comes closest, where 1 of 2 stages find 15 B on each of a stage's 2 GPUs, the least",
        ),
        (
            asked(pp=2, stage=memory(layer=10, first=200)), [node("a", 150, 150)], 1,
            "room for the first stage: a comes closest, but nothing there has 210 B",
        ),
        (
            asked(pp=2, stage=memory(layer=10, last=200)), [node("a", 150, 150)], 1,
            "room for the last stage: a comes closest, but nothing there has 210 B",
        ),
        (
            asked(pp=2, stage=BIG_ENDS), [node("a", 300, 150)], 1,
            "room for the first and the last stage: a comes closest, but only one GPU there has room for either",
        ),
        (
            asked(pp=2), [node("a", 55, 66), node("b", 55, 60)], 1,
            "layers: a comes closest and holds 5 of 8 with embedding and lm_head, though 8 without",
        ),
        (asked(), [node("a", 99), node("b", 120)], 1, "layers: b comes closest and holds 6 of 8 with embedding"),
        (asked(stage=BIG_ENDS), [node("a", 99)], 1, "layers: a comes closest and holds 0 of 8 with embedding"),
        (asked(), [node("a", 290), node("b", 140)], 4, "memory for all replicas: 3 of 4 found a seat"),
    ],
)  # fmt: skip
def test_the_first_thing_that_is_missing_is_named(
    wanted: Candidate, nodes: list[Node], num_replicas: int, short: str
) -> None:
    assert choose(plan(wanted, num_layers=LAYERS), nodes, num_replicas=num_replicas) is None
    assert f"; short of {short}" in shortage(wanted, LAYERS, nodes, num_replicas)


def test_what_was_needed_and_the_largest_fragments_are_told() -> None:
    stage = memory(layer=2**30, first=2**29, last=2**28, runtime=2**28)
    told = shortage(asked(pp=2, stage=stage), 32, [node("a", 21 * 2**29, 2**30), node("b", 2**20, 1)], 2)
    assert "needed: 2 x 2 GPU(s) A6000 of one node" in told
    assert "33.2 GiB free over the stages, at least 1.8 GiB on the first and 1.5 GiB on the last" in told
    assert told.endswith("largest fragments: a: 10.5 GiB, 1.0 GiB; b: 1.0 MiB, 1 B")


def test_the_types_that_a_replica_may_be_mixed_of_are_told() -> None:
    mixed = asked(pp=2).model_copy(update={"mixable": MIXABLE})
    assert "2 GPU(s) A6000 (or with L4) of one node" in shortage(mixed, LAYERS, [node("a", 9, 9)], 1)


def test_bytes_are_told_in_the_unit_that_fits() -> None:
    assert [readable(n) for n in (5, 2048, 3 * 2**19, 5 * 2**30)] == ["5 B", "2.0 KiB", "1.5 MiB", "5.0 GiB"]
