"""Each case at which MaverIQ's released allocator over-commits, refuses, hangs or is slow is decided right."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from maveriq.contracts import StageMemory, Strategy
from maveriq_allocator.choosing import Choice, Manner, Node, choose
from maveriq_allocator.packing import Fragment
from maveriq_allocator.strategies import Preference
from tests.unit.allocator.plans import candidate, memory, plan

_SHARED = Path(os.environ.get("MAVERIQ_SHARED_DATA", Path(__file__).parents[4] / "shared" / "data"))
CASES = _SHARED / "maveriq_allocation" / "cases.json"
GB = 10**9


def cases(prefix: str) -> list[dict[str, Any]]:
    if not CASES.exists():
        pytest.skip("MaverIQ's cases are not beside this checkout")
    found = [case for case in json.loads(CASES.read_text()) if case["case"].startswith(prefix)]
    assert found
    return found


def free_gb(case: dict[str, Any]) -> list[float]:
    totals = case.get("total", [48] * len(case.get("used", ())))
    return case.get("free") or [total - used for total, used in zip(totals, case["used"], strict=True)]


def nodes(frees: list[list[float]], shares: list[float] | None = None) -> list[Node]:
    numbers = iter(range(99))
    return [
        Node(
            f"n{at}",
            "torch",
            tuple(
                Fragment(str(number := next(numbers)), "A6000", round(free * GB), shares[number] if shares else 0.0)
                for free in row
            ),
        )
        for at, row in enumerate(frees)
    ]


def chosen(
    there: list[Node], stage: StageMemory, num_layers: int, manner: Manner | None = None, *, pp: int = 1, tp: int = 1
) -> Choice:
    """What is chosen has passed the feasibility check."""
    choice = choose(plan(candidate(pp=pp, tp=tp, stage=stage), num_layers=num_layers), there, manner=manner)
    assert choice is not None
    return choice


@pytest.mark.parametrize("prefix", ["1a", "1b"])
def test_what_is_free_counts_not_what_a_gpu_has(prefix: str) -> None:
    for case in cases(prefix):
        stage = memory(layer=case["model_mem"] * GB // case["L"])
        choice = chosen(nodes([free_gb(case)]), stage, case["L"], pp=2)
        assert {int(s.gpus[0]): s.num_layers for s in choice.seats[0].stages} == dict(
            zip(case["feasible"]["gpus"], case["feasible"]["layers"], strict=True)
        )


def test_the_head_sits_on_the_last_stage() -> None:
    """Layers and ends as measured: 28 + 4 layers took 13.27 and 2.80 GB, 29 + 3 took 13.71 and 2.36."""
    stage = memory(layer=round(0.44 * GB), first=round(0.95 * GB), last=round(1.04 * GB))
    for case in cases("2"):
        seat = chosen(nodes([free_gb(case)]), stage, 32, pp=2).seats[0]
        assert sum(s.num_layers for s in seat.stages) == 32


@pytest.mark.parametrize("strategy", list(Strategy))
def test_no_strategy_waits_for_a_gpu_that_it_would_rather_have(strategy: Strategy) -> None:
    manner = Manner(preference=Preference(strategy))
    for case in [*cases("3 "), *cases("3b")]:
        choice = chosen(nodes([free_gb(case)], case["util"]), memory(layer=case["need"][0] * GB), 1, manner)
        assert choice.seats[0].stages[0].gpus == ("0",)
    for case in cases("3c"):
        there = nodes([free_gb(case)], case["util"])
        wanted = plan(candidate(stage=memory(layer=case["need"][0] * GB)), num_layers=1)
        assert choose(wanted, there, manner=manner) is None


def test_layers_go_where_they_are_fast() -> None:
    for case in cases("4"):
        speeds = {f"type {gpu}": ms for gpu, ms in case["ms_per_layer"].items()}
        there = [Node("n", "torch", tuple(Fragment(t.removeprefix("type "), t, 48 * GB) for t in speeds))]
        pair = chosen(there, memory(layer=GB), 32, Manner(speeds=speeds), pp=2).seats[0]
        assert {int(s.gpus[0]): s.num_layers for s in pair.stages} == {0: 31, 1: 1}
        alone = chosen(there, memory(layer=GB), 32, Manner(speeds=speeds), pp=1).seats[0]
        assert alone.stages[0].gpus == ("0",)


def test_tp_ranks_share_a_node() -> None:
    for case in [*cases("5 "), *cases("5b")]:
        free = free_gb(case)
        there = nodes([[free[gpu] for gpu in row] for row in case["nodes"]])
        need = case.get("need_per_gpu", 28)
        stage = memory(layer=need * GB // 32)
        ranks = chosen(there, stage, 32, tp=2).seats[0].stages[0].gpus
        assert [int(gpu) for gpu in ranks] in case["nodes"]
