"""Processes forked for orders: how they end is told, and none outlives whoever waits for it."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from maveriq_profiler.children import Children
from maveriq_profiler.exit_status import ExitStatus

DOINGS = """
import os, time

def main(given, answers):
    word, _, rest = given.strip().partition(" ")
    answers.write(f"{os.getpid()} {os.getppid()} {len(os.listdir('/proc/self/fd'))}\\n")
    answers.flush()
    if word == "raise":
        print("a warning")
        raise ValueError(rest)
    if word == "half":
        answers.write("{half of a li")
        answers.flush()
        os._exit(3)
    if word == "fork" and os.fork() == 0:
        time.sleep(5)  # holds the connection open
        os._exit(0)
    if word == "sleep":
        time.sleep(60)
"""


@pytest.fixture
async def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Children]:
    """As for TensorRT-LLM: nothing is imported beforehand, so that they start at once."""
    (tmp_path / "doings.py").write_text(DOINGS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    children = Children(threads=1, engine="trtllm")
    yield children
    await children.close()


class Heard:
    def __init__(self) -> None:
        self.lines: list[str] = []
        self.first = asyncio.Event()

    async def hear(self, line: bytes) -> None:
        self.lines.append(line.decode())
        self.first.set()

    @property
    def pid(self) -> int:
        return int(self.lines[0].split()[0])

    @property
    def server_pid(self) -> int:
        return int(self.lines[0].split()[1])


def is_gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


async def soon_gone(*pids: int) -> bool:
    for _ in range(100):
        if all(is_gone(pid) for pid in pids):
            return True
        await asyncio.sleep(0.05)
    return False


async def begun(children: Children, order: str) -> tuple[Heard, "asyncio.Task[ExitStatus]"]:
    heard = Heard()
    running = asyncio.create_task(children.run("doings", order, heard.hear))
    await heard.first.wait()
    return heard, running


async def test_each_order_has_a_process_of_its_own_forked_from_one_and_gone_at_the_end(empty: Children) -> None:
    first, second = Heard(), Heard()
    assert await empty.run("doings", "return", first.hear) == ExitStatus(code=0)
    assert await empty.run("doings", "return", second.hear) == ExitStatus(code=0)
    assert first.pid != second.pid and first.server_pid == second.server_pid
    assert is_gone(first.pid) and is_gone(second.pid)
    assert first.lines[0].split()[2] == second.lines[0].split()[2], "no file is handed on from one to the next"


async def test_a_death_is_told_with_its_code_and_last_words(empty: Children) -> None:
    failed = await empty.run("doings", "raise too little memory", Heard().hear)
    assert (failed.code, failed.words) == (1, "ValueError: too little memory")
    heard, running = await begun(empty, "sleep")
    os.kill(heard.pid, signal.SIGKILL)
    assert "-9: killed, as the kernel does where memory ends" in (await running).told


async def test_a_line_cut_short_is_not_heard(empty: Children) -> None:
    heard = Heard()
    assert (await empty.run("doings", "half", heard.hear)).code == 3
    assert len(heard.lines) == 1


async def test_the_end_is_told_though_a_process_below_lives_on(empty: Children) -> None:
    async with asyncio.timeout(4):
        assert await empty.run("doings", "fork", Heard().hear) == ExitStatus(code=0)


async def test_whoever_gives_up_leaves_nothing_running_and_disturbs_no_other(empty: Children) -> None:
    stays, other = await begun(empty, "sleep")
    heard, running = await begun(empty, "sleep")
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert is_gone(heard.pid) and not is_gone(stays.pid)
    other.cancel()
    await asyncio.gather(other, return_exceptions=True)
    assert is_gone(stays.pid)


async def test_whoever_gives_up_or_ends_waits_for_no_import(
    empty: Children, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "slow.py").write_text("import time; time.sleep(60)")
    monkeypatch.setattr("maveriq_profiler.children.TORCH", ("slow",))
    slow, heard = Children(threads=1), Heard()
    async with asyncio.timeout(30):
        running = asyncio.create_task(slow.run("doings", "sleep", heard.hear))
        await asyncio.sleep(0.1)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await slow.close()
    assert heard.lines == []


async def test_a_fork_server_that_is_killed_takes_its_children_along_and_is_replaced(empty: Children) -> None:
    heard, running = await begun(empty, "sleep")
    os.kill(heard.server_pid, signal.SIGKILL)
    assert await running == ExitStatus(code=None)
    assert await soon_gone(heard.pid)
    after = Heard()
    assert await empty.run("doings", "return", after.hear) == ExitStatus(code=0)
    assert after.server_pid != heard.server_pid


async def test_a_fork_server_made_ready_carries_out_what_is_ordered_next_and_ends_where_nothing_is(
    empty: Children,
) -> None:
    brief, heard = Children(threads=1, engine="trtllm", idle_s=0.5), Heard()
    await brief.get_ready()
    ready = brief._server  # pyright: ignore[reportPrivateUsage]
    assert await brief.run("doings", "return", heard.hear) == ExitStatus(code=0)
    assert ready is not None and heard.server_pid == ready.pid
    assert await soon_gone(ready.pid)
    await brief.get_ready()
    idle = brief._server  # pyright: ignore[reportPrivateUsage]
    assert idle is not None and idle.pid != ready.pid and await soon_gone(idle.pid)


async def test_the_fork_server_ends_when_it_was_idle_for_a_while(empty: Children) -> None:
    brief = Children(threads=1, engine="trtllm", idle_s=0.05)  # beside the fixture's, for its environment
    heard, again = Heard(), Heard()
    await brief.run("doings", "return", heard.hear)
    assert await soon_gone(heard.server_pid)
    assert await brief.run("doings", "return", again.hear) == ExitStatus(code=0)
    await brief.close()
    assert is_gone(again.server_pid)


def test_a_profiler_that_is_killed_leaves_nothing_running(tmp_path: Path) -> None:
    (tmp_path / "doings.py").write_text(DOINGS)
    script = (
        "import asyncio; from maveriq_profiler.children import Children\n"
        "async def hear(line): print(line.decode(), end='', flush=True)\n"
        "asyncio.run(Children(1, engine='trtllm').run('doings', 'sleep', hear))"
    )
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    with subprocess.Popen([sys.executable, "-c", script], env=env, stdout=subprocess.PIPE, text=True) as profiler:
        assert profiler.stdout is not None
        pid, server_pid, _ = map(int, profiler.stdout.readline().split())
        profiler.kill()
    until = time.monotonic() + 5
    while not (is_gone(pid) and is_gone(server_pid)):
        assert time.monotonic() < until
        time.sleep(0.05)
