"""The torch engine with real processes: exact on SmolLM2 for every split, and whole through joins, stops and deaths."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import pytest_asyncio
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from maveriq.contracts import ChatMessage, Configuration, ErrorCode, FinishReason, Model, Precision, Sampling
from maveriq_worker.checkpoints import prepare
from maveriq_worker.descendants import descendants
from maveriq_worker.engine import Device, EngineFailed, Generation, Launch, LocalStage, Produced, RequestRefused
from maveriq_worker.torch_engine import TorchEngine

QUESTIONS = (
    ("The capital of France is", 18),
    ("Once upon a time, in a village by the sea, there lived an old fisherman who", 7),
    ("def fibonacci(n):", 24),
    ("Water boils at", 3),
    ("A list of three fruits:", 12),
)
CONTEXT_TOKENS = 96

pytestmark = pytest.mark.asyncio(loop_scope="module")


@dataclass(frozen=True)
class Answer:
    token_ids: tuple[int, ...]
    text: str
    pieces: tuple[Produced, ...]

    @property
    def finish_reason(self) -> FinishReason | None:
        return self.pieces[-1].finish_reason


def launch(model: Model, split: tuple[int, ...], cache_dir: Path, max_batch: int = 3) -> Launch:
    configuration = Configuration(
        engine="torch", gpu_type="cpu-1t", tp=1, pp=len(split), precision=Precision.FP32,
        kv_precision=Precision.FP32, max_batch=max_batch, context_tokens=CONTEXT_TOKENS,
    )  # fmt: skip
    stages = tuple(
        LocalStage((Device(f"here/cpu:{number}", "cpu", number),), layers, 2 * 10**9)
        for number, layers in enumerate(split)
    )
    return Launch(model, configuration, stages, cache_dir, threads_per_stage=1)


def generation(prompt: str | tuple[int, ...] = "Hello", **sampling: Any) -> Generation:
    return Generation(uuid4(), prompt, None, Sampling(**{"temperature": 0, "max_tokens": 12, **sampling}))


async def answer(engine: TorchEngine, asked: Generation) -> Answer:
    pieces = tuple([produced async for produced in engine.generate(asked)])
    token_ids = tuple(token for produced in pieces for token in produced.token_ids)
    return Answer(token_ids, "".join(produced.text for produced in pieces), pieces)


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not holds():  # noqa: ASYNC110 - what is waited for is another process's doing
            await asyncio.sleep(0.01)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def expected(smollm2: Model, cache_dir: Path) -> list[tuple[tuple[int, ...], str]]:
    """What transformers' own generate answers to QUESTIONS."""
    folder = await prepare(smollm2.source, Precision.FP32, cache_dir)
    torch.set_num_threads(1)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    answers: list[tuple[tuple[int, ...], str]] = []
    for question, num_tokens in QUESTIONS:
        prompt = tokenizer(question, return_tensors="pt")
        given = model.generate(**prompt, max_new_tokens=num_tokens, do_sample=False)
        token_ids = given[0, prompt["input_ids"].shape[1] :].tolist()
        answers.append((tuple(token_ids), tokenizer.decode(token_ids, skip_special_tokens=True)))
    return answers


@pytest.mark.parametrize("split", [(30,), (15, 15), (22, 8), (20, 9, 1), (24, 4, 1, 1)], ids=str)
async def test_every_split_gives_the_tokens_of_generate_while_requests_join_and_leave(
    split: tuple[int, ...], smollm2: Model, cache_dir: Path, expected: list[tuple[tuple[int, ...], str]]
) -> None:
    engine = TorchEngine()
    await engine.start(launch(smollm2, split, cache_dir))
    try:
        # Three slots for five requests: two join when others have left, at steps of their own.
        asked = [generation(question, max_tokens=num_tokens) for question, num_tokens in QUESTIONS]
        answers = await asyncio.gather(*(answer(engine, each) for each in asked))
        assert [(each.token_ids, each.text) for each in answers] == expected
        assert len(engine.stats().stages) == len(split)
    finally:
        await engine.stop()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(tiny: Model, cache_dir: Path) -> AsyncIterator[TorchEngine]:
    """Two stages of a small random model; two slots, so one for each micro-batch."""
    started = TorchEngine()
    await started.start(launch(tiny, (3, 1), cache_dir, max_batch=2))
    yield started
    await started.stop()


async def test_what_ran_alone_is_timed_by_kind_and_told_once(engine: TorchEngine) -> None:
    engine.times()
    await answer(engine, generation((5,) * 20, max_tokens=6, ignore_eos=True))
    told = engine.times()
    (prefill,) = [time for time in told if time.prefill_ms is not None]
    assert (prefill.batch, prefill.input_tokens, prefill.output_tokens, prefill.count) == (1, 20, 1, 1)
    steps = [time for time in told if time.decode_ms is not None]
    assert {(time.batch, time.input_tokens) for time in steps} == {(1, 20)}
    assert sum(time.count for time in steps) == 5
    assert engine.times() == ()


async def test_requests_beyond_the_slots_wait_and_are_answered_as_if_alone(engine: TorchEngine) -> None:
    asked = [generation(f"Question {number}", max_tokens=4 + number) for number in range(6)]
    alone = [await answer(engine, each) for each in asked]
    together = await asyncio.gather(*(answer(engine, each) for each in asked))
    assert [each.token_ids for each in together] == [each.token_ids for each in alone]


async def test_closing_an_answer_frees_its_slot(engine: TorchEngine) -> None:
    asked = [generation("Talk on", max_tokens=80, ignore_eos=True) for _ in range(3)]
    async with aclosing(engine.generate(asked[0])) as first, aclosing(engine.generate(asked[1])) as second:
        await anext(first)
        await anext(second)
        third = asyncio.ensure_future(answer(engine, replace(asked[2], sampling=Sampling(max_tokens=2))))
        await until(lambda: engine.stats().waiting == 1)
        assert engine.stats().active == 2
    assert (await third).finish_reason is FinishReason.LENGTH
    await until(lambda: engine.stats().active == 0)


async def test_a_waiting_request_can_be_cancelled(engine: TorchEngine) -> None:
    busy = [asyncio.ensure_future(answer(engine, generation("Talk on", max_tokens=60))) for _ in range(2)]
    waiting = asyncio.ensure_future(answer(engine, generation("Never mind")))
    await until(lambda: engine.stats().waiting == 1)
    waiting.cancel()
    await until(lambda: engine.stats().waiting == 0)
    assert len(await asyncio.gather(*busy)) == 2


async def test_sampled_tokens_follow_the_seed_and_not_the_batch(engine: TorchEngine) -> None:
    asked = [generation("Tell", temperature=0.9, top_p=0.9 + seed / 20, seed=seed, max_tokens=16) for seed in range(3)]
    alone = [await answer(engine, each) for each in asked]
    together = await asyncio.gather(*(answer(engine, each) for each in (*asked, generation("Greedy company"))))
    assert [each.token_ids for each in together[:3]] == [each.token_ids for each in alone]
    assert len({each.token_ids for each in alone}) == 3


async def test_a_stop_string_ends_the_answer_before_itself(engine: TorchEngine) -> None:
    whole = await answer(engine, generation("Stop somewhere", max_tokens=20))
    stop = whole.text[len(whole.text) // 2 :][:5]
    stopped = await answer(engine, generation("Stop somewhere", max_tokens=20, stop=(stop,)))
    assert stopped.finish_reason is FinishReason.STOP
    assert stopped.text == whole.text[: whole.text.index(stop)]
    assert whole.token_ids[: len(stopped.token_ids)] == stopped.token_ids
    await until(lambda: engine.stats().active == 0)


async def test_log_probabilities_name_the_chosen_token_and_the_most_likely(engine: TorchEngine) -> None:
    given = await answer(engine, generation("Why", logprobs=2, max_tokens=3))
    positions = [position for piece in given.pieces for position in piece.logprobs or ()]
    assert [position.chosen.token_id for position in positions] == list(given.token_ids)
    assert all(len(position.top) == 2 and position.top[0] == position.chosen for position in positions)


async def test_no_max_tokens_means_all_that_the_context_holds(engine: TorchEngine) -> None:
    given = await answer(engine, generation((5, 6, 7), max_tokens=None, ignore_eos=True))
    assert (len(given.token_ids), given.finish_reason) == (CONTEXT_TOKENS - 3, FinishReason.LENGTH)
    assert given.pieces[-1].prompt_tokens == 3


async def test_a_prompt_longer_than_the_context_is_refused_with_the_numbers(engine: TorchEngine) -> None:
    with pytest.raises(RequestRefused, match=f"{CONTEXT_TOKENS} tokens") as refused:
        await answer(engine, generation((5,) * CONTEXT_TOKENS))
    assert (refused.value.error.code, refused.value.error.field) == (ErrorCode.CONTEXT_EXCEEDED, "prompt")
    chat = Generation(uuid4(), None, (ChatMessage(role="user", content="long " * CONTEXT_TOKENS),), Sampling())
    with pytest.raises(RequestRefused) as refused:
        await answer(engine, chat)
    assert (refused.value.error.code, refused.value.error.field) == (ErrorCode.CONTEXT_EXCEEDED, "messages")


async def test_a_token_outside_the_vocabulary_is_refused(engine: TorchEngine) -> None:
    with pytest.raises(RequestRefused) as refused:
        await answer(engine, generation((5, 10**6)))
    assert refused.value.error.code is ErrorCode.INVALID_REQUEST


async def test_a_stage_that_does_not_fit_its_reservation_says_which_and_by_how_much(
    tiny: Model, cache_dir: Path
) -> None:
    asked = launch(tiny, (2, 2), cache_dir)
    small = replace(asked.stages[1], reserved_bytes=4096)
    before = _stage_processes(os.getpid())
    engine = TorchEngine()
    with pytest.raises(EngineFailed, match=r"stage 1 .* 4096 bytes are reserved"):
        await engine.start(replace(asked, stages=(asked.stages[0], small)))
    assert _stage_processes(os.getpid()) == before


async def test_a_killed_stage_fails_every_answer_and_leaves_nothing_running(tiny: Model, cache_dir: Path) -> None:
    before = _stage_processes(os.getpid())
    engine = TorchEngine()
    await engine.start(launch(tiny, (1, 2, 1), cache_dir))
    mine = _stage_processes(os.getpid()) - before
    assert len(mine) == 3
    answers = [asyncio.ensure_future(answer(engine, generation("On", max_tokens=80))) for _ in range(5)]
    await until(lambda: engine.stats().active > 0)
    (leader,) = mine & {pid for pid in mine if _parent(pid) == os.getpid()}
    os.kill(min(mine - {leader}), signal.SIGKILL)
    failures = await asyncio.gather(*answers, return_exceptions=True)
    assert all(isinstance(failure, EngineFailed) for failure in failures), failures
    assert "was killed by signal 9" in await engine.wait_failed()
    with pytest.raises(EngineFailed, match="signal 9"):
        await answer(engine, generation())
    await engine.stop()
    assert _stage_processes(os.getpid()) == before


async def test_a_killed_worker_takes_its_stages_with_it(tiny: Model, cache_dir: Path) -> None:
    worker = await asyncio.create_subprocess_exec(
        sys.executable, "-c", WORKER, tiny.source, str(cache_dir), stdout=asyncio.subprocess.PIPE
    )
    assert worker.stdout is not None
    assert await worker.stdout.readline() == b"started\n"
    stages = _stage_processes(worker.pid)
    assert len(stages) == 2
    worker.kill()
    await worker.wait()
    await until(lambda: not any(_alive(pid) for pid in stages))


WORKER = """
import asyncio, sys
from pathlib import Path
from maveriq.contracts import Model
from maveriq_worker.torch_engine import TorchEngine
from tests.cluster.test_torch_engine import launch

async def run():
    await TorchEngine().start(launch(Model(name="tiny", source=sys.argv[1]), (2, 2), Path(sys.argv[2])))
    print("started", flush=True)
    await asyncio.sleep(600)

asyncio.run(run())
"""


def _stage_processes(pid: int) -> set[int]:
    return {child for child in descendants(pid) if b"torch_pipeline" in _command(child)}


def _command(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
