"""SmolLM2 in int8, int4 and both: the tokens, the bytes and the perplexity of what was asked for."""

from collections.abc import Sequence
from dataclasses import replace
from math import exp
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from maveriq import law
from maveriq.contracts import Model, Precision
from maveriq.torch_layers import quantise
from maveriq_profiler.facts import read
from maveriq_worker.checkpoints import prepare
from maveriq_worker.engine import EngineFailed, Launch
from maveriq_worker.torch_engine import TorchEngine
from maveriq_worker.torch_stage import TorchStage
from maveriq_worker.torch_steps import Pick, StageSpec, Step
from tests.cluster.test_accuracy import TEXT
from tests.cluster.test_torch_engine import CONTEXT_TOKENS, answer, generation, launch

FP32, BF16, INT8, INT4 = Precision.FP32, Precision.BF16, Precision.INT8, Precision.INT4
MIXED = (INT4,) * 6 + (INT8,) * 14 + (FP32,) * 4 + (INT8,) * 6
QUESTIONS = (
    ("The capital of France is", 12),
    ("Once upon a time, in a village by the sea, there lived an old fisherman who", 7),
    ("def fibonacci(n):", 12),
    ("Water boils at", 3),
)

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def folder(smollm2: Model, cache_dir: Path) -> Path:
    torch.set_num_threads(1)
    return await prepare(smollm2.source, FP32, cache_dir)


def mixed(model: Model, split: tuple[int, ...], precisions: Sequence[Precision], cache_dir: Path) -> Launch:
    asked = launch(model, split, cache_dir)
    starts = [sum(split[:rank]) for rank in range(len(split))]
    stages = tuple(
        replace(stage, precisions=tuple(precisions[start : start + stage.num_layers]))
        for start, stage in zip(starts, asked.stages, strict=True)
    )
    configuration = asked.configuration.model_copy(update={"variant": "mixed"})
    return replace(asked, configuration=configuration, stages=stages)


async def served(asked: Launch) -> tuple[list[tuple[int, ...]], list[tuple[int, int]]]:
    """Tokens of each question, and bytes of weights and cache of each stage.

    One at a time: quantised layers multiply in bf16, so in another batch near-ties may go another way.
    """
    engine = TorchEngine()
    await engine.start(asked)
    try:
        asked_in_turn = [generation(question, max_tokens=count) for question, count in QUESTIONS]
        tokens = [(await answer(engine, each)).token_ids for each in asked_in_turn]
        return tokens, [(stage.weight_bytes, stage.kv_cache_bytes) for stage in engine.stats().stages]
    finally:
        await engine.stop()


async def test_an_uneven_mixed_pipeline_gives_the_tokens_of_transformers_within_the_bytes_of_the_law(
    smollm2: Model, folder: Path, cache_dir: Path
) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    for layer, precision in zip(model.model.layers, MIXED, strict=True):
        quantise(layer, precision)
    expected: list[tuple[int, ...]] = []
    for question, count in QUESTIONS:
        prompt = tokenizer(question, return_tensors="pt")
        given = model.generate(**prompt, max_new_tokens=count, do_sample=False)
        expected.append(tuple(given[0, prompt["input_ids"].shape[1] :].tolist()))
    del model
    tokens, held = await served(mixed(smollm2, (21, 9), MIXED, cache_dir))
    assert tokens == expected
    facts = read(str(folder)).facts
    of_layer = [law.layer_weight_bytes(facts, "torch", precision, 4.0) for precision in MIXED]
    cached = 3 * CONTEXT_TOKENS * law.cached_token_bytes(facts, "torch", FP32)
    assert held == [
        (sum(of_layer[:21]) + 4 * facts.embedding_params, 21 * cached),
        (sum(of_layer[21:]) + 4 * facts.lm_head_params, 9 * cached),
    ]


async def test_a_variant_without_a_checkpoint_is_made_of_the_models_weights(
    smollm2: Model, folder: Path, cache_dir: Path
) -> None:
    """Uniform int8 with an int8 cache: what is not quantised is in bf16."""
    asked = launch(smollm2, (30,), cache_dir)
    quantised = {"precision": INT8, "kv_precision": INT8}
    asked = replace(asked, configuration=asked.configuration.model_copy(update=quantised))
    model = smollm2.model_copy(update={"source": str(folder)})
    tokens, held = await served(replace(asked, model=model))
    assert [len(each) for each in tokens] == [count for _, count in QUESTIONS]
    facts = read(str(folder)).facts
    weights = 30 * law.layer_weight_bytes(facts, "torch", INT8, 2.0) + 2 * facts.lm_head_params  # tied: once
    assert held == [(weights, 30 * 3 * CONTEXT_TOKENS * law.cached_token_bytes(facts, "torch", INT8))]


async def test_perplexity_hardly_moves_in_int8_and_not_far_in_int4(folder: Path) -> None:
    whole = _perplexity(folder, (FP32,) * 30)
    assert _perplexity(folder, (INT8,) * 30, kv_int8=True) == pytest.approx(whole, rel=0.02)
    assert whole < _perplexity(folder, (INT4,) * 30) < 2 * whole


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"kv_precision": BF16}, "keeps its KV cache in fp32 or int8, not bf16"),
        ({"kv_precision": Precision.FP8}, "not fp8"),
        ({"precision": Precision.FP8, "kv_precision": FP32}, r"layers in fp32, int8, int4 .* not in fp8 \(stage 0"),
        ({"precision": INT8, "kv_precision": Precision.FP16}, "fp16 on CUDA devices only"),
    ],
    ids=["bf16 cache", "fp8 cache", "fp8", "fp16"],
)  # fmt: skip
async def test_what_the_engine_does_not_make_is_refused_by_name(
    changes: dict[str, Precision], reason: str, tiny: Model, cache_dir: Path
) -> None:
    asked = launch(tiny, (4,), cache_dir)
    with pytest.raises(EngineFailed, match=reason):
        await TorchEngine().start(replace(asked, configuration=asked.configuration.model_copy(update=changes)))


async def test_layers_and_precisions_that_do_not_agree_are_refused(tiny: Model, cache_dir: Path) -> None:
    asked = mixed(tiny, (3, 1), (INT8,) * 4, cache_dir)
    short = replace(asked.stages[0], precisions=(INT8,) * 2)
    with pytest.raises(EngineFailed, match="stage 0 has 3 layers and precisions of 2"):
        await TorchEngine().start(replace(asked, stages=(short, asked.stages[1])))


def _perplexity(folder: Path, precisions: tuple[Precision, ...], *, kv_int8: bool = False) -> float:
    """Of the engine's own stage, reading a text as it reads a prompt."""
    token_ids: list[int] = AutoTokenizer.from_pretrained(folder)(TEXT)["input_ids"][:180]
    stage = TorchStage(
        StageSpec(
            rank=0, num_stages=1, first_layer=0, num_layers=30, total_layers=30, checkpoint=folder, precision=FP32,
            device="cpu", backend="gloo", rendezvous=Path(), max_batch=1, context_tokens=len(token_ids),
            reserved_bytes=10**9, threads=1, eos_ids=(), precisions=precisions, kv_int8=kv_int8,
        )
    )  # fmt: skip
    picks = tuple(Pick(0, 0, token) for token in range(len(token_ids) - 1))
    logits = stage.forward(Step(0, 0, (tuple(token_ids),), (0,), picks), None)
    lost = torch.nn.functional.cross_entropy(logits.float(), torch.tensor(token_ids[1:]))
    return exp(float(lost))
