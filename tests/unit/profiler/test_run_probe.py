"""The double of the torch engine's stages, and a programme's item through the real child process."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from maveriq.contracts import Precision
from maveriq_profiler.children import Children
from maveriq_profiler.cutting import config_from
from maveriq_profiler.engine_stage import EngineStage, Pass, build_for_engine, decode_pass, prompt_passes
from maveriq_profiler.formats import Format
from maveriq_profiler.grid import Point
from maveriq_profiler.measuring import ChildProbe, ProbeFailed, Rig
from maveriq_profiler.programme import Item
from maveriq_profiler.settings import CPU_LIMITS
from maveriq_profiler.stage_chain import Chain, ChainFailed, ChainSpec, Run

TINY = {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2,
        "num_hidden_layers": 4, "intermediate_size": 96, "vocab_size": 128}  # fmt: skip
ITEM = Item(
    key="tiny",
    engine="torch",
    config_json=json.dumps(TINY),
    precision=Precision.FP32,
    splits=((4,), (1,), (3, 1), (2, 1, 1)),
    points=(Point(batch=1, input_tokens=8), Point(batch=2, input_tokens=8), Point(batch=1, input_tokens=600)),
    num_in_stages=2,
    output_tokens=3,
    rounds=2,
    bytes_needed=1,
    expected_s=1,
)
FULL = Format(Precision.FP32, Precision.FP32)


def model() -> Any:
    torch.manual_seed(1)
    return build_for_engine(config_from(json.dumps(TINY)), "cpu", FULL)


def passes() -> list[Pass]:
    """A prompt of two pieces, then two steps."""
    return [*prompt_passes(1, 600, 602), decode_pass(1, 600, 602), decode_pass(1, 601, 602)]


def test_stages_one_after_the_other_are_the_whole_model() -> None:
    whole = EngineStage(model(), first_layer=0, num_layers=4, is_first=True, is_last=True)
    first = EngineStage(model(), first_layer=0, num_layers=3, is_first=True, is_last=False)
    second = EngineStage(model(), first_layer=3, num_layers=1, is_first=False, is_last=True)
    for step in passes():
        assert torch.allclose(second.forward(step, first.forward(step, None)), whole.forward(step, None), atol=1e-5)


def test_pieces_and_cached_steps_choose_as_transformers_own_forward_does() -> None:
    stage = EngineStage(model(), first_layer=0, num_layers=4, is_first=True, is_last=True)
    outputs = [stage.forward(step, None) for step in passes()]
    with torch.inference_mode():
        reference = model()(input_ids=torch.full((1, 602), 7)).logits[0]
    for logits, at in zip(outputs[1:], (599, 600, 601), strict=True):
        assert torch.allclose(logits[0], reference[at], atol=1e-4)


@pytest.mark.parametrize(("precision", "alike"), [(Precision.INT8, 0.99), (Precision.INT4, 0.9)])
def test_a_quantised_double_computes_nearly_what_the_whole_one_does(precision: Precision, alike: float) -> None:
    torch.manual_seed(1)
    quantised = build_for_engine(config_from(json.dumps(TINY)), "cpu", Format(precision, Precision.FP32))
    for int8_cache in (False, True):
        told = EngineStage(quantised, first_layer=0, num_layers=4, is_first=True, is_last=True, int8_cache=int8_cache)
        whole = EngineStage(model(), first_layer=0, num_layers=4, is_first=True, is_last=True)
        for step in passes():
            ours, theirs = told.forward(step, None), whole.forward(step, None)
            assert not torch.equal(ours, theirs)
            assert torch.cosine_similarity(ours.flatten(), theirs.flatten(), dim=0) > alike


def test_prompts_are_read_as_the_engine_divides_them() -> None:
    assert [len(step.token_ids) for step in prompt_passes(8, 128, 136)] == [4, 4]
    assert [(len(step.token_ids[0]), bool(step.picks)) for step in prompt_passes(1, 600, 608)] == [
        (512, False), (88, True)
    ]  # fmt: skip


def test_a_stage_that_ends_is_noticed_at_once(tmp_path: Path) -> None:
    spec = ChainSpec(json.dumps(TINY), FULL, (3, 1), ("cpu", "cpu"), 1, tmp_path / "meet")
    chain = Chain(spec, model())
    assert len(chain.times_ms(Run(1, 8, 3, 16))) == 2
    os.kill(chain.pids[1], signal.SIGKILL)
    with pytest.raises(ChainFailed, match=r"-9"):
        chain.times_ms(Run(1, 8, 3, 16))


@pytest.mark.asyncio(loop_scope="session")
async def test_an_item_is_run_at_every_split_and_point_in_a_process_of_its_own(children: Children) -> None:
    probe = ChildProbe(Rig("torch", "0", "cpu-1t", "cpu", 1, (Precision.FP32,), 8), CPU_LIMITS, children)
    samples = await probe.run_item(ITEM, device="cpu")
    found = {(s.layers, s.batch, s.input_tokens) for s in samples}
    assert found == {(split, p.batch, p.input_tokens) for split in ITEM.splits for p in ITEM.points_of(split)}
    assert len({s.facts.shape_key for s in samples}) == 1 and samples[0].facts.num_layers == 4
    for sample in samples:
        assert sample.prefill_ms and sample.decode_ms
        assert (sample.activation_bytes is None) is (len(sample.layers) > 1)  # stages are not asked
    with pytest.raises(ProbeFailed, match=r"tiny on cpu-1t: .*[Cc][Uu][Dd][Aa]"):
        await probe.run_item(ITEM, device="cuda:99")
