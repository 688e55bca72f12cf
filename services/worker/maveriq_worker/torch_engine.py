"""The torch engine in the worker: starts the stages' processes, talks to the first, turns tokens into text."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count

from maveriq.contracts import ErrorCode, FinishReason, PositionLogprobs, ServedTime, TokenLogprob
from maveriq_worker.answer_text import AnswerText
from maveriq_worker.checkpoints import CheckpointFailed, prepare
from maveriq_worker.engine import (
    CheckpointUnusable,
    EngineFailed,
    EngineStats,
    Generation,
    Launch,
    Produced,
    RequestRefused,
    StageStats,
)
from maveriq_worker.prompts import Prompts, TokenizerFailed, field_of, load_prompts
from maveriq_worker.stage_link import Gone
from maveriq_worker.stage_processes import CheckpointRefused, StageProcesses, StagesFailed
from maveriq_worker.stage_specs import check, computed_in, source, stage_specs
from maveriq_worker.timings import Timings
from maveriq_worker.torch_steps import Cancel, Choice, Emitted, SamplerSpec, StageSpec, Stepped, Submit

_LONG_PROMPT_CHARS = 4_000  # longer ones are tokenised beside the event loop, which they would hold up


@dataclass(slots=True, eq=False)
class _Answer:
    """One request under way."""

    text: AnswerText
    prompt_tokens: int
    emitted: deque[Emitted] = field(default_factory=deque[Emitted])
    """What came from the stages and was not yet handed on."""
    news: asyncio.Event = field(default_factory=asyncio.Event)
    ended: bool = False
    """The stages are done with it."""


class TorchEngine:
    """Runs one replica; see `engine.Engine`.

    An answer longer than the context holds ends with finish reason `length`, whatever its max_tokens.
    """

    def __init__(self) -> None:
        self._processes = StageProcesses()
        self._answers: dict[int, _Answer] = {}
        self._keys = count()
        self._tasks: list[asyncio.Task[None]] = []
        self._reason: str | None = None
        self._died = asyncio.Event()
        self._prompts: Prompts | None = None
        self._context_tokens = 0
        self._active, self._waiting = 0, 0
        self._stages: tuple[StageStats, ...] = ()
        self._timings = Timings()

    async def start(self, launch: Launch) -> None:
        try:
            check(launch)
            precision = computed_in(launch.configuration)
            specs = stage_specs(launch, await prepare(source(launch), precision, launch.cache_dir))
            self._prompts, self._stages = await self._load(specs)
        except (CheckpointFailed, CheckpointRefused, TokenizerFailed) as error:
            await self.stop()
            raise CheckpointUnusable(str(error)) from error
        except StagesFailed as error:
            await self.stop()
            raise EngineFailed(str(error)) from error
        except asyncio.CancelledError:
            await self.stop()
            raise
        self._context_tokens = launch.configuration.context_tokens
        self._tasks = [asyncio.ensure_future(self._receive()), asyncio.ensure_future(self._watch())]

    async def generate(self, generation: Generation) -> AsyncIterator[Produced]:
        submit, answer = await self._admit(generation)
        if self._reason is not None:
            raise EngineFailed(self._reason)
        self._answers[submit.key] = answer
        self._processes.send(submit)
        try:
            finished = False
            while not finished:
                await answer.news.wait()
                if self._reason is not None:
                    raise EngineFailed(self._reason)
                answer.news.clear()
                produced = self._produced(answer, generation.sampling.logprobs is not None)
                finished = produced.finish_reason is not None
                yield produced
        finally:
            del self._answers[submit.key]
            if self._reason is None and not answer.ended:
                self._processes.send(Cancel(submit.key))

    def stats(self) -> EngineStats:
        return EngineStats(self._active, self._waiting, self._stages)

    def times(self) -> tuple[ServedTime, ...]:
        return self._timings.take()

    async def wait_failed(self) -> str:
        await self._died.wait()
        return self._reason or ""

    async def stop(self) -> None:
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._end("the engine was stopped")
        await self._processes.stop()
        self._active, self._waiting = 0, 0

    async def _load(self, specs: tuple[StageSpec, ...]) -> tuple[Prompts, tuple[StageStats, ...]]:
        loading = asyncio.ensure_future(self._processes.start(specs))
        try:
            prompts, ready = await asyncio.gather(asyncio.to_thread(load_prompts, specs[0].checkpoint), loading)
        finally:
            loading.cancel()
            await asyncio.gather(loading, return_exceptions=True)
        return prompts, tuple(StageStats(each.weight_bytes, each.kv_cache_bytes) for each in ready)

    async def _admit(self, generation: Generation) -> tuple[Submit, _Answer]:
        if self._prompts is None:
            raise EngineFailed("the engine is not started")
        sampling = generation.sampling
        if (least := self._prompts.least_tokens(generation)) >= self._context_tokens:
            raise self._too_long(generation, f"at least {least}")
        if generation.num_chars > _LONG_PROMPT_CHARS:
            token_ids = await asyncio.to_thread(self._prompts.encode, generation)
        else:
            token_ids = self._prompts.encode(generation)
        room = self._context_tokens - len(token_ids)
        if room < 1:
            raise self._too_long(generation, f"{len(token_ids)}")
        submit = Submit(
            next(self._keys), token_ids, min(sampling.max_tokens or room, room), sampling.ignore_eos,
            SamplerSpec(sampling.temperature, sampling.top_p, generation.seed, sampling.logprobs),
        )  # fmt: skip
        return submit, _Answer(AnswerText(self._prompts.decode, sampling.stop), len(token_ids))

    def _too_long(self, generation: Generation, num_tokens: str) -> RequestRefused:
        return RequestRefused(
            ErrorCode.CONTEXT_EXCEEDED, field_of(generation),
            f"it has {num_tokens} tokens, and the context of {self._context_tokens} must also hold the answer",
            f"shorten it to {self._context_tokens - 1} tokens or fewer, "
            "or deploy with a larger workload.context_tokens",
        )  # fmt: skip

    def _produced(self, answer: _Answer, with_logprobs: bool) -> Produced:
        """All that came since the last time: one step's token, more where the consumer was slow."""
        token_ids: list[int] = []
        text: list[str] = []
        logprobs: list[PositionLogprobs] = []
        reason: FinishReason | None = None
        while answer.emitted and reason is None:
            emitted = answer.emitted.popleft()
            reason = emitted.finish_reason
            token_ids.append(emitted.choice.token_id)
            logprobs += [self._logprobs(emitted.choice)] if with_logprobs else []
            # The token that ends a sequence has no text of its own.
            shown, stopped = ("", False) if reason is FinishReason.STOP else answer.text.add(emitted.choice.token_id)
            text.append(shown)
            if reason is not None and not stopped:
                shown, stopped = answer.text.finish()
                text.append(shown)
            reason = FinishReason.STOP if stopped else reason
        return Produced(
            tuple(token_ids), "".join(text), answer.prompt_tokens, tuple(logprobs) if with_logprobs else None, reason
        )

    def _logprobs(self, choice: Choice) -> PositionLogprobs:
        assert self._prompts is not None and choice.logprob is not None
        name = self._prompts.token_text
        chosen = TokenLogprob(token=name(choice.token_id), token_id=choice.token_id, logprob=choice.logprob)
        top = (TokenLogprob(token=name(id_), token_id=id_, logprob=logprob) for id_, logprob in choice.top)
        return PositionLogprobs(chosen=chosen, top=tuple(top))

    async def _receive(self) -> None:
        """A step's tokens come in one message, so that all its answers wake together."""
        with suppress(Gone):
            while True:
                stepped: Stepped = await self._processes.receive()
                self._active, self._waiting = stepped.active, stepped.waiting
                if stepped.passed is not None:
                    self._timings.add(stepped.passed)
                for emitted in stepped.emitted:
                    answer = self._answers.get(emitted.choice.key)
                    if answer is not None:
                        answer.emitted.append(emitted)
                        answer.ended = emitted.finish_reason is not None
                        answer.news.set()

    async def _watch(self) -> None:
        reason = await self._processes.wait_died()
        self._end(reason)
        self._died.set()
        await self._processes.stop()

    def _end(self, reason: str) -> None:
        """No token comes any more: every answer under way fails."""
        self._reason = self._reason or reason
        for answer in self._answers.values():
            answer.news.set()
