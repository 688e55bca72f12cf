"""An engine in a process of its own: what it sees, and that nothing of it stays."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import cast
from uuid import uuid4

import pytest

from maveriq.contracts import ErrorCode, FinishReason, Sampling
from maveriq_worker.child_engine import ChildEngine, child_env
from maveriq_worker.descendants import descendants
from maveriq_worker.engine import Device, EngineFailed, Generation, Launch, LocalStage, Produced, RequestRefused
from tests.unit.worker.engine_double import until
from tests.unit.worker.test_trtllm_engine import launch

ENGINE = '''
import asyncio, os, subprocess, sys
from maveriq.contracts import ErrorCode, FinishReason
from maveriq_worker.engine import EngineFailed, EngineStats, Produced, RequestRefused, StageStats

class Native:
    """Stands for an engine with ranks of its own: it answers with what it sees."""

    def __init__(self):
        self.num_closed = 0

    async def start(self, launch):
        if launch.configuration.max_batch == 1:
            raise EngineFailed("no room")
        if launch.configuration.max_batch == 2:
            await asyncio.sleep(60)
        self.rank = subprocess.Popen(["sleep", "60"])

    async def generate(self, generation):
        if generation.prompt == "refuse":
            raise RequestRefused(ErrorCode.INVALID_REQUEST, "prompt", "bad", "send another")
        if generation.prompt == "die":
            os.kill(os.getpid(), 9)
        if generation.prompt == "closed":
            yield Produced((self.num_closed,), "", 1, None, FinishReason.STOP)
            return
        try:
            for n in range(generation.sampling.max_tokens):
                await asyncio.sleep(0.001)
                last = n == generation.sampling.max_tokens - 1
                yield Produced((n,), os.environ["CUDA_VISIBLE_DEVICES"], 1, None, FinishReason.LENGTH if last else None)
        except (GeneratorExit, asyncio.CancelledError):
            self.num_closed += 1
            raise

    def stats(self):
        return EngineStats(0, 0, (StageStats(5, 6),))

    async def wait_failed(self):
        await asyncio.Event().wait()

    async def stop(self):
        self.rank.terminate()
        self.rank.wait()
'''


@pytest.fixture
def target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "native_engine.py").write_text(ENGINE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return "native_engine:Native"


@pytest.fixture
async def engine(target: str) -> AsyncIterator[ChildEngine]:
    engine = ChildEngine(target)
    await engine.start(launch())
    yield engine
    await engine.stop()
    assert not engine_processes()


def engine_processes() -> set[int]:
    """Of this test run's other children, the servers, not one."""
    return {pid for pid in descendants(os.getpid()) if b"maveriq_worker.child_main" in command(pid)}


def command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def asking(prompt: str = "go", tokens: int = 3) -> Generation:
    return Generation(uuid4(), prompt, None, Sampling(max_tokens=tokens, seed=0))


async def answer(engine: ChildEngine, generation: Generation) -> list[Produced]:
    return [produced async for produced in engine.generate(generation)]


async def test_requests_that_come_alone_are_timed_and_others_are_not(engine: ChildEngine) -> None:
    async def ask(tokens: int) -> None:
        asked = Generation(uuid4(), "hello", None, Sampling(max_tokens=tokens, seed=1))
        assert len([produced async for produced in engine.generate(asked)]) == tokens

    await ask(6)
    prefill, step = engine.times()
    assert prefill.prefill_ms is not None and (prefill.batch, prefill.input_tokens, prefill.count) == (1, 1, 1)
    assert step.decode_ms is not None and (step.batch, step.output_tokens, step.count) == (1, 3, 1)
    await asyncio.gather(ask(6), ask(6))
    assert engine.times() == ()


async def test_requests_are_answered_side_by_side_by_ranks_that_see_the_placements_gpus(engine: ChildEngine) -> None:
    answers = await asyncio.gather(*(answer(engine, asking(tokens=n)) for n in (3, 5, 8)))
    assert [[p.token_ids[0] for p in one] for one in answers] == [[*range(3)], [*range(5)], [*range(8)]]
    assert {p.text for one in answers for p in one} == {"GPU-0-0,GPU-1-0"}
    assert all(one[-1].finish_reason is FinishReason.LENGTH for one in answers)
    assert engine.stats().stages[0].weight_bytes == 5
    assert engine.stats().active == 0


async def test_a_refusal_comes_through(engine: ChildEngine) -> None:
    with pytest.raises(RequestRefused) as refused:
        await answer(engine, asking("refuse"))
    assert (refused.value.error.code, refused.value.error.field) == (ErrorCode.INVALID_REQUEST, "prompt")


async def test_closing_an_answer_closes_it_in_the_child(engine: ChildEngine) -> None:
    steps = cast(AsyncGenerator[Produced, None], engine.generate(asking(tokens=100_000)))
    await anext(steps)
    await steps.aclose()
    async with asyncio.timeout(10):
        while (await answer(engine, asking("closed")))[0].token_ids != (1,):  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.01)


async def test_a_crash_fails_every_request_and_leaves_no_rank_behind(engine: ChildEngine) -> None:
    long = asyncio.create_task(answer(engine, asking(tokens=100_000)))
    await until(lambda: engine.stats().active == 1)
    with pytest.raises(EngineFailed, match="was killed by signal 9"):
        await answer(engine, asking("die"))
    with pytest.raises(EngineFailed):
        await long
    assert "was killed by signal 9" in await engine.wait_failed()
    with pytest.raises(EngineFailed):
        await answer(engine, asking())


async def test_an_engine_that_does_not_start_says_why_and_is_gone(target: str) -> None:
    with pytest.raises(EngineFailed, match="no room"):
        await ChildEngine(target).start(launch(max_batch=1))
    with pytest.raises(EngineFailed, match="ended with exit status 1"):
        await ChildEngine("no_such_module:Engine").start(launch())
    assert not engine_processes()


async def test_an_engine_that_loads_can_be_stopped(target: str) -> None:
    engine = ChildEngine(target)
    starting = asyncio.create_task(engine.start(launch(max_batch=2)))
    await until(lambda: bool(engine_processes()))
    starting.cancel()
    await asyncio.wait({starting})
    await engine.stop()
    assert not engine_processes()


async def test_a_child_whose_worker_is_killed_ends(target: str, tmp_path: Path) -> None:
    script = tmp_path / "dying_worker.py"
    script.write_text(
        "import asyncio, sys\n"
        "from maveriq_worker.child_engine import ChildEngine\n"
        "from tests.unit.worker.test_trtllm_engine import launch\n"
        "async def main():\n"
        f"    engine = ChildEngine({target!r})\n"
        "    await engine.start(launch())\n"
        "    print('started', flush=True)\n"
        "    await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    env = {**os.environ, "PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[3]}"}
    worker = await asyncio.create_subprocess_exec(sys.executable, str(script), stdout=asyncio.subprocess.PIPE, env=env)
    assert worker.stdout is not None
    assert await worker.stdout.readline() == b"started\n"
    below = descendants(worker.pid)
    assert len(below) == 2
    os.kill(worker.pid, signal.SIGKILL)
    await worker.wait()
    await until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in below))


def test_ranks_see_the_gpus_stage_by_stage_and_two_ranks_never_share_one() -> None:
    assert child_env({"A": "1"}, launch((6, 4), tp=2)) == {
        "A": "1",
        "CUDA_VISIBLE_DEVICES": "GPU-0-0,GPU-0-1,GPU-1-0,GPU-1-1",
    }
    gpu = Device("GPU-x", "cuda", 0)
    twice: Launch = replace(launch(), stages=(LocalStage((gpu,), 6, 1), LocalStage((gpu,), 4, 1)))
    with pytest.raises(EngineFailed, match="one GPU"):
        child_env({}, twice)
