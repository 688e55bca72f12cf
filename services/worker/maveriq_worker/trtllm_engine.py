"""Runs a replica with TensorRT-LLM's LLM API. The only file that imports tensorrt_llm.

One engine a process (`child_engine`): rank n takes the n-th visible GPU.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from importlib import import_module
from pathlib import Path
from typing import Any

from maveriq.contracts import ErrorCode, FinishReason, PositionLogprobs, ServedTime, TokenLogprob
from maveriq_worker.engine import EngineFailed, EngineStats, Generation, Launch, Produced, RequestRefused
from maveriq_worker.modelopt_description import DESCRIPTION_FILES, Described, Undescribed, described
from maveriq_worker.prompts import Prompts, TokenizerFailed, field_of, load_prompts
from maveriq_worker.trtllm_options import Shape, check_description, options, sampling_arguments, source_of

MAX_ERRORS = 3  # requests that failed one after the other: the engine is broken, not they

_FINISH = {"stop": FinishReason.STOP, "length": FinishReason.LENGTH, "cancelled": FinishReason.CANCELLED}


class TrtLlmEngine:
    def __init__(self, *, dummy: bool = False) -> None:
        """
        Args:
            dummy: random weights in as many layers as the placement has: for fingerprints.
        """
        self._dummy = dummy
        self._api: Any = None
        self._llm: Any = None
        self._prompts: Prompts | None = None
        self._context_tokens = 0
        self._slots = 0
        self._num_requests = 0
        self._errors_in_a_row = 0
        self._failed: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def start(self, launch: Launch) -> None:
        """Blocks the loop: TensorRT-LLM is started from the main thread, which has nothing else to do here."""
        try:
            self._api = import_module("tensorrt_llm")
            llmapi: Any = import_module("tensorrt_llm.llmapi")
            transformers: Any = import_module("transformers")
        except ImportError as error:
            raise EngineFailed(f'{error}; run pip install "maveriq-worker[trtllm]" on a machine with GPUs') from error
        checkpoint = source_of(launch)
        if not self._dummy:
            check_description(launch, checkpoint, _description(checkpoint))
        try:
            shape = _shape(transformers.AutoConfig.from_pretrained(checkpoint).get_text_config())
            chosen = options(launch, shape, dummy=self._dummy)
            self._prompts = load_prompts(Path(checkpoint))
            self._llm = self._api.LLM(
                **chosen.llm,
                kv_cache_config=llmapi.KvCacheConfig(**chosen.kv_cache),
                cuda_graph_config=llmapi.CudaGraphConfig(**chosen.cuda_graph),
            )
        except (RuntimeError, ValueError, OSError, AssertionError, TokenizerFailed) as error:
            raise EngineFailed(f"TensorRT-LLM did not start: {error}") from error
        self._context_tokens = launch.configuration.context_tokens
        self._slots = launch.configuration.max_batch

    async def generate(self, generation: Generation) -> AsyncIterator[Produced]:
        assert self._prompts is not None, "generate comes after start"
        prompt = list(self._prompts.encode(generation))
        room = self._context_tokens - len(prompt)
        if room < 1:
            raise RequestRefused(
                ErrorCode.CONTEXT_EXCEEDED,
                field_of(generation),
                f"{len(prompt)} tokens; the context holds {self._context_tokens} with the answer",
                "send a shorter prompt, or deploy with a larger workload.context_tokens",
            )
        wanted = generation.sampling
        arguments = sampling_arguments(wanted, generation.seed, min(room, wanted.max_tokens or room))
        try:
            result = self._llm.generate_async(
                prompt, sampling_params=self._api.SamplingParams(**arguments), streaming=True
            )
        except (ValueError, RuntimeError) as error:
            raise RequestRefused(
                ErrorCode.INVALID_REQUEST, "sampling", str(error), "change the request as the problem says"
            ) from error
        self._num_requests += 1
        finished = False
        try:
            async for produced in self._steps(result, len(prompt), wanted.logprobs):
                finished = produced.finish_reason is not None
                yield produced
        finally:
            self._num_requests -= 1
            if not finished:
                result.abort()

    async def _steps(self, result: Any, num_prompt: int, num_logprobs: int | None) -> AsyncIterator[Produced]:
        try:
            async for output in result:
                step = output.outputs[0]
                self._errors_in_a_row = 0
                yield Produced(
                    token_ids=tuple(step.token_ids_diff),
                    text=step.text_diff,
                    prompt_tokens=num_prompt,
                    logprobs=None if num_logprobs is None else self._logprobs(step, num_logprobs),
                    # a time-out of TensorRT-LLM's own, which is never asked for, would be an error of the engine
                    finish_reason=_FINISH.get(step.finish_reason, FinishReason.ERROR) if step.finish_reason else None,
                )
        except RuntimeError as error:
            self._errors_in_a_row += 1
            if self._errors_in_a_row >= MAX_ERRORS:
                self._fail(f"{MAX_ERRORS} requests failed one after the other, the last with: {error}")
                raise EngineFailed(str(error)) from error
            yield Produced((), "", num_prompt, finish_reason=FinishReason.ERROR)

    def stats(self) -> EngineStats:
        """No stages: the LLM API does not say what each rank allocated."""
        active = min(self._num_requests, self._slots)
        return EngineStats(active=active, waiting=self._num_requests - active, stages=())

    def times(self) -> tuple[ServedTime, ...]:
        """Nothing: the LLM API shows no steps. `ChildEngine` times the requests that it runs alone."""
        return ()

    async def wait_failed(self) -> str:
        return await asyncio.shield(self._failed)

    async def stop(self) -> None:
        if self._llm is not None:
            llm, self._llm = self._llm, None
            await asyncio.to_thread(llm.shutdown)

    def _fail(self, detail: str) -> None:
        if not self._failed.done():
            self._failed.set_result(detail)

    def _logprobs(self, step: Any, num_logprobs: int) -> tuple[PositionLogprobs, ...]:
        """TensorRT-LLM gives a dict by token id for each position: the likeliest, and the chosen one."""
        found: list[PositionLogprobs] = []
        for token_id, by_id in zip(step.token_ids_diff, step.logprobs_diff, strict=True):
            ranked = sorted(by_id, key=lambda one: by_id[one].logprob, reverse=True)[:num_logprobs]
            found.append(
                PositionLogprobs(
                    chosen=self._token(token_id, by_id[token_id].logprob),
                    top=tuple(self._token(one, by_id[one].logprob) for one in ranked),
                )
            )
        return tuple(found)

    def _token(self, token_id: int, logprob: float) -> TokenLogprob:
        assert self._prompts is not None, "generate comes after start"
        return TokenLogprob(token=self._prompts.token_text(token_id), token_id=token_id, logprob=logprob)


def _description(checkpoint: str) -> Described | None:
    """What a local checkpoint says of its quantisation; None: nothing, or it is yet to be downloaded.

    Raises:
        EngineFailed: it says what TensorRT-LLM could read and we could not plan with.
    """
    files = [Path(checkpoint) / name for name in DESCRIPTION_FILES]
    if not files[0].exists():
        return None
    try:
        return described(*(json.loads(file.read_text()) for file in files if file.exists()))
    except (Undescribed, ValueError) as error:
        raise EngineFailed(f"{checkpoint}: {error}") from error


def _shape(config: Any) -> Shape:
    """From a model's config.json as transformers reads it."""
    num_heads: int = config.num_attention_heads
    return Shape(
        num_layers=config.num_hidden_layers,
        num_kv_heads=_num_kv_heads(config) or num_heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // num_heads,
    )


def _num_kv_heads(config: Any) -> int | None:
    """None: as many as there are heads."""
    if getattr(config, "multi_query", False) and not getattr(config, "new_decoder_architecture", False):
        return 1  # Falcon 7B, GPT-BigCode
    return getattr(config, "num_key_value_heads", None) or getattr(config, "num_kv_heads", None)
