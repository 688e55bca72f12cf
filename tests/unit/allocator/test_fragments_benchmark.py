"""The rules that the benchmark compares, and that its streams are what it says."""

from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
from fragments import given
from fragments_files import read, write
from fragments_rules import Even, MaverIQ, Ours, Rule, WholeGpu, round_robin
from fragments_streams import GIB, Deployment, Gpu, Instance, draw

from tests.unit.allocator.plans import memory


def node(*free_gib: int, total_gib: int = 48) -> tuple[Gpu, ...]:
    return tuple(
        Gpu(f"n0/{at}", "RTX A6000", total_gib * GIB, (total_gib - free) * GIB) for at, free in enumerate(free_gib)
    )


def placed(rule: Rule, gpus: tuple[Gpu, ...], layers: int, layer_gib: int) -> list[int] | None:
    """GiB of each stage."""
    deployment = Deployment("any", layers, memory(layer=layer_gib * GIB))
    held = rule.place(deployment, [gpus], {gpu.name: gpu.free_bytes for gpu in gpus})
    return None if held is None else [num_bytes // GIB for num_bytes in held.values()]


@pytest.mark.parametrize(
    ("limits", "layer", "expected"),
    [((16.0, 2.1), 0.5021, [28, 4]), ((14.6, 2.0), 0.5021, [29, 3]), ((8.6, 8.2), 0.5021, [16, 16])],
)
def test_layers_go_round_as_maveriq_was_seen_to_deal_them(
    limits: tuple[float, float], layer: float, expected: list[int]
) -> None:
    assert round_robin(limits, layer, 32) == expected


def test_maveriqs_limits_follow_the_totals_and_not_the_gpus() -> None:
    """Seen: 9 and 1 layer of 8 GB where 40 and 48 GB are free, and a refusal where 20 and 48 are and 60 would do."""
    assert round_robin((80 - 0, 48 - 40), 8, 10) == [9, 1]
    assert round_robin((80 - 0, 48 - 60), 6, 10) is None


def test_uneven_stages_fit_where_even_ones_do_not() -> None:
    gpus = node(20, 8, 8)
    assert placed(Even(), gpus, 32, 1) is None
    ours = placed(Ours(), gpus, 32, 1)
    assert ours is not None
    assert sum(ours) == 32


def test_a_whole_gpu_is_given_once() -> None:
    gpus = node(40)
    free = {"n0/0": 30 * GIB}
    deployment = Deployment("any", 10, memory(layer=GIB))
    assert WholeGpu().place(deployment, [gpus], free) is None
    assert Even().place(deployment, [gpus], free) == {"n0/0": 10 * GIB}


def test_a_stream_depends_on_its_seed_alone_and_ours_places_it_as_others_cannot() -> None:
    instance = draw(Random("a seed"), 16, 4, 0.9)
    assert instance == draw(Random("a seed"), 16, 4, 0.9)
    ours, theirs = count(Ours(), instance), [count(rule, instance) for rule in (MaverIQ(), Even(), WholeGpu())]
    assert ours <= len(instance.stream)
    assert ours >= max(theirs)


def test_instances_of_a_file_are_those_that_were_written_and_a_bad_one_is_named(tmp_path: Path) -> None:
    path, instance = tmp_path / "instances.json", draw(Random("a seed"), 8, 4, 0.7)
    write(path, [instance])
    assert read(path) == [instance]
    (row,) = (entry.row() for entry in given(path))
    assert (row["gpus"], row["types"], row["bound"]) == (8, 4, len(instance.stream))
    write(path, [replace(instance, nodes=(*instance.nodes, *instance.nodes))])
    with pytest.raises(SystemExit, match="instance 0: 2 GPUs are named"):
        read(path)
    path.write_text(path.read_text().replace('"total_bytes"', '"size"', 1))
    with pytest.raises(SystemExit, match="total_bytes"):
        read(path)


def count(rule: Rule, instance: Instance) -> int:
    free = {gpu.name: gpu.free_bytes for gpus in instance.nodes for gpu in gpus}
    num_placed = 0
    for deployment in instance.stream:
        held = rule.place(deployment, instance.nodes, free)
        for gpu, num_bytes in (held or {}).items():
            free[gpu] -= num_bytes
        assert min(free.values()) >= 0
        num_placed += held is not None
    return num_placed
