"""The TensorRT-LLM engine against the recorded API: an unknown class, argument or attribute is an error."""

import json
import sys
from collections.abc import AsyncGenerator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import pytest
from jinja2 import TemplateError

from maveriq.contracts import ChatMessage, Configuration, ErrorCode, FinishReason, Model, Precision, Sampling, Variant
from maveriq_worker.engine import Device, EngineFailed, Generation, Launch, LocalStage, Produced, RequestRefused
from maveriq_worker.modelopt_description import describe
from maveriq_worker.trtllm_engine import MAX_ERRORS, TrtLlmEngine
from maveriq_worker.trtllm_options import (
    Shape,
    graph_batch_sizes,
    kv_bytes_per_token,
    options,
    sampling_arguments,
    source,
)
from tests.unit.worker.trtllm_double import TrtLlm, load

SHAPE = Shape(num_layers=10, num_kv_heads=4, head_dim=64)
GIB = 2**30


def launch(
    layers: tuple[int, ...] = (6, 4),
    tp: int = 1,
    *,
    precision: Precision = Precision.BF16,
    kv_precision: Precision = Precision.BF16,
    model: Model | None = None,
    max_batch: int = 8,
    reserved_bytes: int = 8 * GIB,
) -> Launch:
    configuration = Configuration(
        engine="trtllm",
        gpu_type="H",
        tp=tp,
        pp=len(layers),
        precision=precision,
        kv_precision=kv_precision,
        max_batch=max_batch,
        context_tokens=1000,
    )
    stages = tuple(
        LocalStage(tuple(Device(f"GPU-{n}-{rank}", "cuda", n * tp + rank) for rank in range(tp)), count, reserved_bytes)
        for n, count in enumerate(layers)
    )
    return Launch(model or Model(name="m", source="org/m"), configuration, stages, Path("/cache"), 1)


class Tokenizer:
    """Words as tokens."""

    chat_template = "words"

    def __call__(self, text: str, **_: object) -> dict[str, list[int]]:
        return {"input_ids": list(range(len(text.split())))}

    def get_vocab(self) -> dict[str, int]:
        return {"<a word as long as any>": 0}

    def apply_chat_template(self, messages: list[dict[str, str]], **given: object) -> str:
        assert given == {"tokenize": False, "add_generation_prompt": True}
        if messages[0]["role"] == "tool":
            raise TemplateError("no tool here")
        return " ".join(message["content"] for message in messages) + " <assistant>"

    def decode(self, token_ids: list[int], **_: object) -> str:
        return f"<{token_ids[0]}>"


class Config:
    num_hidden_layers = 10
    num_attention_heads = 16
    num_key_value_heads = 4
    hidden_size = 1024
    vocab_size = 2000

    def get_text_config(self) -> "Config":
        return self


@pytest.fixture
def trtllm(monkeypatch: pytest.MonkeyPatch) -> TrtLlm:
    double = load()
    if double is None:
        pytest.skip("the recorded API of TensorRT-LLM is not here: set MAVERIQ_SHARED_DATA")
    for name, module in double.modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    auto = type("Auto", (), {"from_pretrained": staticmethod(lambda checkpoint: Config())})
    tokenizer = type("AutoTokenizer", (), {"from_pretrained": staticmethod(lambda checkpoint: Tokenizer())})
    transformers = type(sys)("transformers")
    transformers.AutoConfig, transformers.AutoTokenizer = auto, tokenizer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "transformers", transformers)
    return double


@pytest.fixture
async def engine(trtllm: TrtLlm) -> TrtLlmEngine:
    engine = TrtLlmEngine()
    await engine.start(launch())
    return engine


def asking(prompt: str | list[int] | None = "one two three", **sampling: Any) -> Generation:
    return Generation(uuid4(), prompt, None, Sampling(**{"seed": 3, **sampling}))


async def answer(engine: TrtLlmEngine, generation: Generation) -> list[Produced]:
    return [produced async for produced in engine.generate(generation)]


async def test_the_llm_is_made_as_the_placement_says(trtllm: TrtLlm) -> None:
    engine = TrtLlmEngine()
    await engine.start(launch((6, 4), tp=2))
    (llm,) = trtllm.llms
    assert llm.given["pp_partition"] == [6, 4]
    assert (llm.given["tensor_parallel_size"], llm.given["pipeline_parallel_size"]) == (2, 2)
    assert (llm.given["max_batch_size"], llm.given["max_seq_len"]) == (8, 1000)
    assert llm.given["load_format"] == "auto"
    assert "model_kwargs" not in llm.given
    kv = llm.given["kv_cache_config"].given
    assert kv["max_tokens"] == 8 * 1024  # whole blocks of 32
    assert kv["max_gpu_total_bytes"] == 8 * 1024 * kv_bytes_per_token(SHAPE, 2, Precision.BF16, 6)
    await engine.stop()
    await engine.stop()
    assert llm.is_shut_down


async def test_a_fingerprint_reads_no_weights_and_has_the_layers_that_it_was_cut_to(trtllm: TrtLlm) -> None:
    engine = TrtLlmEngine(dummy=True)
    await engine.start(launch((2,)))
    (llm,) = trtllm.llms
    assert llm.given["load_format"] == "dummy"
    assert llm.given["model_kwargs"] == {"num_hidden_layers": 2}
    assert "pp_partition" not in llm.given


async def test_a_request_is_streamed_step_by_step(trtllm: TrtLlm, engine: TrtLlmEngine) -> None:
    produced = await answer(engine, asking(max_tokens=5, temperature=0.7, top_p=0.9, stop=("x",)))
    assert [(p.token_ids, p.text, p.finish_reason) for p in produced] == [
        ((11,), "a", None),
        ((12, 13), "bc", FinishReason.LENGTH),
    ]
    assert produced[0].prompt_tokens == 3
    (request,) = trtllm.requests
    assert request.inputs == [0, 1, 2]
    assert request.given["streaming"] is True
    assert request.given["sampling_params"].given == {
        "max_tokens": 5, "ignore_eos": False, "temperature": 0.7, "top_p": 0.9, "seed": 3, "stop": ["x"],
    }  # fmt: skip
    assert not request.is_aborted
    assert engine.stats().active == 0


async def test_token_ids_and_chats_become_prompts(trtllm: TrtLlm, engine: TrtLlmEngine) -> None:
    await answer(engine, asking([5, 6]))
    chat = (ChatMessage(role="user", content="hello there"),)
    await answer(engine, Generation(uuid4(), None, chat, Sampling(seed=1)))
    assert [request.inputs for request in trtllm.requests] == [[5, 6], [0, 1, 2]]


async def test_a_chat_that_the_template_does_not_take_is_refused(engine: TrtLlmEngine) -> None:
    chat = (ChatMessage(role="tool", content="1"),)
    with pytest.raises(RequestRefused) as refused:
        await answer(engine, Generation(uuid4(), None, chat, Sampling(seed=1)))
    assert (refused.value.error.code, refused.value.error.field) == (ErrorCode.INVALID_REQUEST, "messages")


async def test_a_prompt_that_fills_the_context_is_refused_and_a_shorter_one_gets_what_is_left(
    trtllm: TrtLlm, engine: TrtLlmEngine
) -> None:
    with pytest.raises(RequestRefused) as refused:
        await answer(engine, asking(list(range(1000))))
    assert refused.value.error.code is ErrorCode.CONTEXT_EXCEEDED
    await answer(engine, asking(list(range(990)), max_tokens=500))
    await answer(engine, asking(list(range(990))))
    assert [r.given["sampling_params"].given["max_tokens"] for r in trtllm.requests] == [10, 10]


async def test_logprobs_are_those_of_the_chosen_token_and_as_many_others_as_were_asked(engine: TrtLlmEngine) -> None:
    for asked, num_top in ((0, 0), (2, 2)):
        first = (await answer(engine, asking(logprobs=asked)))[0]
        assert first.logprobs is not None
        (position,) = first.logprobs
        assert (position.chosen.token, position.chosen.logprob) == ("<11>", -0.5)
        assert len(position.top) == num_top
    assert (await answer(engine, asking()))[0].logprobs is None


async def test_closing_the_answer_aborts_the_request(trtllm: TrtLlm, engine: TrtLlmEngine) -> None:
    steps = cast(AsyncGenerator[Produced, None], engine.generate(asking()))
    await anext(steps)
    assert engine.stats().active == 1
    await steps.aclose()
    assert trtllm.requests[0].is_aborted
    assert engine.stats().active == 0


@pytest.mark.parametrize(
    ("reason", "finish"),
    [("stop", FinishReason.STOP), ("cancelled", FinishReason.CANCELLED), ("timeout", FinishReason.ERROR)],
)
async def test_finish_reasons_are_ours(trtllm: TrtLlm, engine: TrtLlmEngine, reason: str, finish: FinishReason) -> None:
    trtllm.answer = [([1], "a", reason)]
    assert (await answer(engine, asking()))[-1].finish_reason is finish


async def test_one_failed_request_is_an_error_and_several_in_a_row_are_a_dead_engine(
    trtllm: TrtLlm, engine: TrtLlmEngine
) -> None:
    trtllm.answer, trtllm.error = [], RuntimeError("cuda")
    for _ in range(MAX_ERRORS - 1):
        assert [p.finish_reason for p in await answer(engine, asking())] == [FinishReason.ERROR]
    with pytest.raises(EngineFailed):
        await answer(engine, asking())
    assert "cuda" in await engine.wait_failed()


async def test_an_llm_that_does_not_start_says_why(trtllm: TrtLlm) -> None:
    trtllm.start_error = RuntimeError("out of memory")
    with pytest.raises(EngineFailed, match="out of memory"):
        await TrtLlmEngine().start(launch())


async def test_without_tensorrt_llm_the_engine_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_llm", None)
    with pytest.raises(EngineFailed, match="pip install"):
        await TrtLlmEngine().start(launch())


def test_quantised_weights_come_from_a_checkpoint_of_their_own() -> None:
    variants = (Variant(precision=Precision.FP8, source="org/m-fp8"), Variant(precision=Precision.INT4))
    model = Model(name="m", source="org/m", variants=variants)
    assert source(model, Precision.FP8) == "org/m-fp8"
    assert source(model, Precision.BF16) == "org/m"
    assert options(launch(precision=Precision.FP8, model=model), SHAPE, dummy=False).llm["dtype"] == "auto"
    with pytest.raises(EngineFailed, match="int4"):
        source(model, Precision.INT4)


def test_a_gguf_is_refused() -> None:
    with pytest.raises(EngineFailed, match="GGUF"):
        source(Model(name="m", source="/models/m.gguf"), Precision.BF16)


def test_stages_that_do_not_make_the_model_are_refused() -> None:
    with pytest.raises(EngineFailed, match="9 layers"):
        options(launch((5, 4)), SHAPE, dummy=False)


def test_a_kv_cache_beyond_what_is_reserved_is_refused() -> None:
    with pytest.raises(EngineFailed, match="reserved"):
        options(launch(reserved_bytes=1000), SHAPE, dummy=False)


def test_the_kv_cache_counts_the_heads_of_one_rank() -> None:
    assert kv_bytes_per_token(SHAPE, 1, Precision.BF16, 10) == 2 * 4 * 64 * 2 * 10
    assert kv_bytes_per_token(SHAPE, 2, Precision.FP8, 10) == 2 * 2 * 64 * 1 * 10
    assert kv_bytes_per_token(SHAPE, 8, Precision.BF16, 10) == 2 * 1 * 64 * 2 * 10  # each rank keeps a head
    with pytest.raises(EngineFailed):
        kv_bytes_per_token(SHAPE, 1, Precision.INT4, 10)


def test_cuda_graphs_are_few_and_reach_the_largest_batch() -> None:
    for max_batch in (1, 2, 3, 8, 64, 2048):
        sizes = graph_batch_sizes(max_batch)
        assert len(sizes) <= 4
        assert (sizes[0], sizes[-1]) == (1, max_batch)


def test_greedy_sampling_names_no_temperature_and_seeds_are_unsigned() -> None:
    assert sampling_arguments(Sampling(temperature=0, ignore_eos=True), -1, 4) == {
        "max_tokens": 4, "ignore_eos": True, "top_k": 1, "seed": 2**64 - 1,
    }  # fmt: skip


INT4_AND_INT8 = ((Precision.INT4,) * 6, (Precision.INT8,) * 3 + (Precision.BF16,))


def mixed(folder: Path | None, described_layers: tuple[Precision, ...] | None = None) -> Launch:
    """Two stages of mixed layers, of a checkpoint that says what it holds."""
    variants: tuple[Variant, ...] = (Variant(precision=Precision.BF16),)
    if folder is not None:
        said = describe(described_layers or sum(INT4_AND_INT8, ()), Precision.BF16)
        (folder / "hf_quant_config.json").write_text(json.dumps(said))
        variants += (Variant(name="mixed", precision=Precision.INT4, source=str(folder)),)
    plain = launch(model=Model(name="m", source="org/m", variants=variants))
    stages = tuple(replace(stage, precisions=each) for stage, each in zip(plain.stages, INT4_AND_INT8, strict=True))
    labelled = plain.configuration.model_copy(update={"variant": "mixed"})
    return replace(plain, configuration=labelled, stages=stages)


async def test_a_mixed_placement_loads_the_checkpoint_that_holds_its_layers(trtllm: TrtLlm, tmp_path: Path) -> None:
    await TrtLlmEngine().start(mixed(tmp_path))
    (llm,) = trtllm.llms
    assert (llm.given["model"], llm.given["dtype"]) == (str(tmp_path), "bfloat16")
    assert llm.given["pp_partition"] == [6, 4]


async def test_a_checkpoint_of_other_layers_is_refused(trtllm: TrtLlm, tmp_path: Path) -> None:
    with pytest.raises(EngineFailed, match="layer 6 is int4 there and int8 in the placement"):
        await TrtLlmEngine().start(mixed(tmp_path, (Precision.INT4,) * 10))
    assert not trtllm.llms


async def test_a_mixed_placement_without_a_checkpoint_says_how_to_make_one(trtllm: TrtLlm) -> None:
    with pytest.raises(EngineFailed, match=r"layers 0-5 int4, 6-8 int8, 9 bf16; .*export_hf_checkpoint.*named mixed"):
        await TrtLlmEngine().start(mixed(None))


async def test_a_mixed_checkpoint_does_not_serve_a_placement_of_one_precision(trtllm: TrtLlm, tmp_path: Path) -> None:
    asked = mixed(tmp_path)
    uniform = tuple(replace(stage, precisions=()) for stage in asked.stages)
    int4 = asked.configuration.model_copy(update={"precision": Precision.INT4})
    with pytest.raises(EngineFailed, match="layers of several precisions"):
        await TrtLlmEngine().start(replace(asked, configuration=int4, stages=uniform))
