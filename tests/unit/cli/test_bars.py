"""Bars never lie: all cells are given out, and what is there is seen."""

from io import StringIO

from hypothesis import given
from hypothesis import strategies as some
from rich.console import Console

from maveriq.cli.bars import cells, draw
from maveriq.contracts import Gpu, GpuState, InventoryChanged


@given(some.lists(some.integers(0, 10**12), min_size=1, max_size=6), some.integers(6, 60))
def test_a_bar_is_exactly_as_wide_as_it_should_be(parts: list[int], width: int) -> None:
    shown = cells(parts, width)
    assert sum(shown) == (width if sum(parts) > 0 else 0)
    assert all(cell > 0 for cell, part in zip(shown, parts, strict=True) if part > 0)
    assert all(cell == 0 for cell, part in zip(shown, parts, strict=True) if part == 0)


def test_a_silent_node_is_drawn_as_such() -> None:
    gpu = GpuState(gpu=Gpu(id="a/cpu:0", gpu_type="cpu-1t", total_bytes=100, foreign_bytes=0))
    console = Console(width=120, record=True, file=StringIO())
    for silent in (False, True):
        console.print(draw([InventoryChanged(node="a", engine="torch", gpus=(gpu,), silent=silent)], {}))
    alive, said = console.export_text().split("GPU ")[1:]
    assert "silent" not in alive
    assert "a/cpu:0 (silent)" in said and "nothing is placed there" in said


def test_what_may_not_be_taken_though_it_is_free_is_said() -> None:
    gpu = GpuState(gpu=Gpu(id="a/cpu:0", gpu_type="cpu-1t", total_bytes=2**20, foreign_bytes=0))
    console = Console(width=120, record=True, file=StringIO())
    console.print(draw([InventoryChanged(node="a", engine="torch", gpus=(gpu,))], {}))
    drifted = gpu.model_copy(update={"drift": "our processes take 9 B"})
    console.print(draw([InventoryChanged(node="a", engine="torch", gpus=(drifted,), headroom_bytes=2**19)], {}))
    plain, said = console.export_text().split("GPU ")[1:]
    assert "stays free" not in plain
    assert "a: 512 KiB of what is free on it stays free (MAVERIQ_HEADROOM)" in said
    assert "a/cpu:0: our processes take 9 B" in said
