"""The TensorRT-LLM probe against a double that knows only the names of the recorded LLM API, version 1.2."""

import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from maveriq.contracts import Precision, Sample
from maveriq_profiler.cutting import config_from
from maveriq_profiler.grid import Grid, Point
from maveriq_profiler.orders import ProbeOrder
from maveriq_profiler.programme import Item
from maveriq_profiler.trtllm_probe import TensorRt, measure_item_with, measure_with

_SHARED = Path(os.environ.get("MAVERIQ_SHARED_DATA", Path(__file__).parents[4] / "shared" / "data"))
_API = _SHARED / "trtllm_api" / "llm_api_1.2.json"
_CONFIG = {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2,
           "num_hidden_layers": 6, "intermediate_size": 96, "vocab_size": 64}  # fmt: skip

pytestmark = pytest.mark.skipif(
    not _API.is_file(), reason="the recorded TensorRT-LLM API is not here: set MAVERIQ_SHARED_DATA to its folder"
)


class StrictApi:
    """Refuses any name that TensorRT-LLM's strict classes would refuse."""

    def __init__(self) -> None:
        self.names: dict[str, Any] = json.loads(_API.read_text())
        self.started: list[dict[str, Any]] = []
        self.stopped = 0

    def check(self, of: str, given: dict[str, Any]) -> None:
        unknown = set(given) - set(self.names[of])
        assert not unknown, f"{of} has no {unknown}"

    def llm(self, **given: Any) -> Any:
        self.check("LLM.__init__", given)
        config = json.loads((Path(given["model"]) / "config.json").read_text())
        assert config["architectures"] == ["LlamaForCausalLM"]
        self.started.append(given)
        return SimpleNamespace(generate_async=self.generate_async, shutdown=self.shutdown)

    def sampling_params(self, **given: Any) -> dict[str, Any]:
        self.check("SamplingParams", given)
        return given

    def kv_cache_config(self, **given: Any) -> dict[str, Any]:
        self.check("KvCacheConfig", given)
        return given

    async def generate_async(self, inputs: list[int], **given: Any) -> AsyncIterator[Any]:
        self.check("LLM.generate_async", given)
        assert given["streaming"]
        for length in range(1, given["sampling_params"]["max_tokens"] + 1):
            yield SimpleNamespace(outputs=[SimpleNamespace(token_ids=[7] * length)])

    def shutdown(self) -> None:
        assert "shutdown" in self.names["LLM other methods"]
        self.stopped += 1


async def test_each_cut_runs_with_dummy_weights_under_names_that_the_api_has() -> None:
    api = StrictApi()
    points = (Point(batch=1, input_tokens=8), Point(batch=2, input_tokens=8))
    order = ProbeOrder(
        config_json=config_from(json.dumps(_CONFIG)).to_json_string(use_diff=False),
        engine="trtllm",
        device="cuda:0",
        threads=1,
        precision=Precision.BF16,
        kv_precision=Precision.BF16,
        grid=Grid(layers=(2, 4), points=points, output_tokens=4, min_rounds=1, budget_s=1),
    )
    reported: list[Sample] = []
    trt = TensorRt(api.llm, api.sampling_params, api.kv_cache_config, lambda: 10**9)
    samples = await measure_with(trt, order, reported.append)
    assert [(s.num_layers, s.batch) for s in samples] == [(2, 1), (2, 2), (4, 1), (4, 2)]
    assert samples == tuple(reported)
    assert [given["model_kwargs"]["num_hidden_layers"] for given in api.started] == [2, 4]
    assert {given["load_format"] for given in api.started} == {"dummy"}
    assert api.stopped == 2


@pytest.mark.parametrize(("tp", "split"), [(1, (6,)), (2, (6,)), (1, (4, 2)), (2, (4, 2))])
async def test_an_item_is_divided_as_asked_and_its_samples_say_so(tp: int, split: tuple[int, ...]) -> None:
    api = StrictApi()
    item = Item(
        key="tiny",
        engine="trtllm",
        config_json=json.dumps(_CONFIG),
        precision=Precision.BF16,
        tp=tp,
        splits=(split,),
        points=(Point(batch=1, input_tokens=8), Point(batch=2, input_tokens=8)),
        num_in_stages=2,
        output_tokens=4,
        rounds=1,
        bytes_needed=1,
        expected_s=1,
    )
    samples = await measure_item_with(TensorRt(api.llm, api.sampling_params, api.kv_cache_config, lambda: 10**9), item)
    assert [(s.tp, s.layers, s.batch) for s in samples] == [(tp, split, 1), (tp, split, 2)]
    (given,) = api.started
    assert given["model_kwargs"]["num_hidden_layers"] == 6
    assert given.get("tensor_parallel_size", 1) == tp
    assert given.get("pipeline_parallel_size", 1) == len(split)
    assert given.get("pp_partition") == (list(split) if len(split) > 1 else None)
    assert item.num_gpus == tp * len(split)
    assert api.stopped == 1
