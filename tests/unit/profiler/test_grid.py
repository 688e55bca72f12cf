"""Which cuts are measured, with which batches and prompts, within which bounds."""

from maveriq_profiler.grid import grid_for
from maveriq_profiler.settings import CPU_LIMITS
from tests.unit.profiler.rigs import FACTS

SMALL = FACTS.model_copy(update={"num_layers": 30, "max_context_tokens": 8192})


def test_every_batch_is_measured_at_several_depths_and_one_of_them_at_two_prompt_lengths() -> None:
    grid = grid_for(CPU_LIMITS, SMALL, 4.0)
    assert grid.layers == (2, 8)
    assert {point.batch for point in grid.points} == {1, 2, 4, 8}
    assert {point.input_tokens for point in grid.points if point.batch == 1} == {32, 128, 512}
    assert {point.input_tokens for point in grid.points if point.batch == 4} == {32, 128}


def test_no_cut_is_deeper_than_the_model_or_larger_than_the_limit() -> None:
    assert grid_for(CPU_LIMITS, SMALL.model_copy(update={"num_layers": 3}), 4.0).layers == (2, 3)
    assert grid_for(CPU_LIMITS, SMALL.model_copy(update={"num_layers": 1}), 4.0).layers == (1,)
    large = SMALL.model_copy(update={"layer_params": 200_000_000})
    assert grid_for(CPU_LIMITS, large, 4.0).layers == (2, 5)


def test_prompts_leave_room_for_the_answer_within_the_models_context() -> None:
    grid = grid_for(CPU_LIMITS, SMALL.model_copy(update={"max_context_tokens": 100}), 4.0)
    assert max(point.input_tokens for point in grid.points) == 100 - CPU_LIMITS.output_tokens
