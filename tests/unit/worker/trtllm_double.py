"""TensorRT-LLM as its recorded API says it is: any name that is not in the record is refused."""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

_RECORD = "trtllm_api/llm_api_1.2.json"
# The record names CudaGraphConfig without its fields; these are from NVIDIA's reference of the LLM API 1.2.
_CUDA_GRAPH_FIELDS = {"batch_sizes", "max_batch_size", "enable_padding"}


def record_path() -> Path | None:
    """Where the recorded API lies: MAVERIQ_SHARED_DATA, or ../shared/data beside the checkout; None: nowhere."""
    beside = Path(__file__).parents[4] / "shared" / "data"
    for folder in (Path(os.environ.get("MAVERIQ_SHARED_DATA", beside)), beside):
        if (folder / _RECORD).is_file():
            return folder / _RECORD
    return None


class Strict:
    """Takes the arguments that a record lists, and gives the attributes that it lists."""

    def __init__(self, name: str, allowed: set[str], given: dict[str, Any]) -> None:
        unknown = set(given) - allowed
        if unknown:
            raise TypeError(f"{name} has no {sorted(unknown)}")
        self.given = given


@dataclass
class Logprob:
    logprob: float
    rank: int


class Completion:
    def __init__(self, properties: set[str], **values: object) -> None:
        self._properties, self._values = properties, values

    def __getattr__(self, name: str) -> object:
        if name not in self._properties:
            raise AttributeError(f"CompletionOutput has no {name}")
        return self._values[name]


@dataclass
class TrtLlm:
    """The modules, and what was asked of them."""

    api: dict[str, Any]
    llms: list[Any] = field(default_factory=list[Any])
    requests: list[Any] = field(default_factory=list[Any])
    answer: list[tuple[list[int], str, str | None]] = field(
        default_factory=lambda: [([11], "a", None), ([12, 13], "bc", "length")]
    )
    """(token ids, text, finish reason) of each step."""
    error: Exception | None = None
    """Raised after the steps."""
    start_error: Exception | None = None

    def modules(self) -> dict[str, ModuleType]:
        top, llmapi = ModuleType("tensorrt_llm"), ModuleType("tensorrt_llm.llmapi")
        double = self

        class SamplingParams(Strict):
            def __init__(self, **given: Any) -> None:
                super().__init__("SamplingParams", set(double.api["SamplingParams"]), given)

        class KvCacheConfig(Strict):
            def __init__(self, **given: Any) -> None:
                super().__init__("KvCacheConfig", set(double.api["KvCacheConfig"]), given)

        class CudaGraphConfig(Strict):
            def __init__(self, **given: Any) -> None:
                super().__init__("CudaGraphConfig", _CUDA_GRAPH_FIELDS, given)

        class LLM(Strict):
            def __init__(self, **given: Any) -> None:
                super().__init__("LLM", set(double.api["LLM.__init__"]), given)
                if double.start_error is not None:
                    raise double.start_error
                self.is_shut_down = False
                double.llms.append(self)

            def generate_async(self, inputs: object, **given: Any) -> "Result":
                Strict("generate_async", set(double.api["LLM.generate_async"]) - {"returns", "inputs"}, given)
                assert isinstance(given["sampling_params"], SamplingParams)
                result = Result(double, inputs, given)
                double.requests.append(result)
                return result

            def __getattr__(self, name: str) -> object:
                if name == "shutdown" and name in double.api["LLM other methods"]:
                    return lambda: setattr(self, "is_shut_down", True)
                raise AttributeError(f"LLM has no {name}")

        for module, names in self._imports().items():
            for name in names:
                setattr(
                    {"tensorrt_llm": top, "tensorrt_llm.llmapi": llmapi}[module],
                    name,
                    {c.__name__: c for c in (LLM, SamplingParams, KvCacheConfig, CudaGraphConfig)}.get(name),
                )
        return {"tensorrt_llm": top, "tensorrt_llm.llmapi": llmapi}

    def _imports(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for clause in self.api["import"].split(";"):
            _, module, _, names = clause.strip().split(" ", 3)
            found[module] = [name.strip() for name in names.split(",")]
        return found


class Result:
    """A RequestOutput: iterating yields itself, once a step."""

    def __init__(self, double: TrtLlm, inputs: object, given: dict[str, Any]) -> None:
        self._double = double
        self._names = {*double.api["RequestOutput"]["properties"], *double.api["RequestOutput"]["methods"]}
        self.inputs, self.given = inputs, given
        self.is_aborted = False
        self._outputs: list[Completion] = []

    def __getattr__(self, name: str) -> object:
        if name not in self._names:
            raise AttributeError(f"RequestOutput has no {name}")
        if name == "outputs":
            return self._outputs
        if name == "abort":
            return lambda: setattr(self, "is_aborted", True)
        raise AssertionError(f"the double does not say what {name} is")

    async def __aiter__(self) -> AsyncIterator["Result"]:
        properties = set(self._double.api["CompletionOutput"]["properties"])
        for token_ids, text, reason in self._double.answer:
            await asyncio.sleep(0)
            logprobs = [{token: Logprob(-0.5, 1), 99: Logprob(-2.0, 2)} for token in token_ids]
            self._outputs = [
                Completion(
                    properties, token_ids_diff=token_ids, text_diff=text, finish_reason=reason, logprobs_diff=logprobs
                )
            ]
            yield self
        if self._double.error is not None:
            raise self._double.error


def load() -> TrtLlm | None:
    path = record_path()
    return None if path is None else TrtLlm(json.loads(path.read_text()))
