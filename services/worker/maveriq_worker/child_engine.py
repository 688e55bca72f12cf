"""Runs an engine in a process of its own, which sees its replica's GPUs alone.

TensorRT-LLM gives rank n the n-th visible GPU and reads CUDA_VISIBLE_DEVICES when it is imported.
So two replicas on different GPUs of one node, or one whose stages do not follow the order of the
bus, need one process each, with the placement's GPUs by UUID in rank order. A crash in native
code then ends one replica, not the worker.
"""

import asyncio
import os
import socket
import sys
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count

from maveriq.contracts import InferenceError, ServedTime
from maveriq_worker.descendants import descendants, end
from maveriq_worker.engine import EngineFailed, EngineStats, Generation, Launch, Produced, RequestRefused, StageStats
from maveriq_worker.frames import Abort, Ask, Failure, Start, Started, Step, Stop, read_frame, write_frame
from maveriq_worker.oom_kills import OomKills, ended
from maveriq_worker.timings import SoloClock, Timings

STOP_S = 20.0  # an engine that has not let go of its GPUs by then is killed
_FRAME_LIMIT_BYTES = 2**20  # the stream reader's buffer


@dataclass(slots=True, eq=False)
class _Stream:
    """What came for one request and was not read yet."""

    items: deque[Produced | InferenceError | EngineFailed] = field(
        default_factory=deque[Produced | InferenceError | EngineFailed]
    )
    reader: asyncio.Future[None] | None = None

    def put(self, item: Produced | InferenceError | EngineFailed) -> None:
        self.items.append(item)
        if self.reader is not None and not self.reader.done():
            self.reader.set_result(None)

    async def get(self) -> Produced | InferenceError | EngineFailed:
        while not self.items:
            self.reader = asyncio.get_running_loop().create_future()
            await self.reader
        return self.items.popleft()


class ChildEngine:
    """An `Engine` that passes everything on to another, in a child process."""

    def __init__(self, target: str) -> None:
        """
        Args:
            target: "module:Class" of the engine; imported in the child alone.
        """
        self._target = target
        self._numbers = count()
        self._streams: dict[int, _Stream] = {}
        self._child: asyncio.subprocess.Process | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None
        self._below: dict[int, int] = {}
        self._failed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._started: asyncio.Future[tuple[StageStats, ...]] = asyncio.get_running_loop().create_future()
        self._slots = 0
        self._newest = -1
        self._timings = Timings()

    async def start(self, launch: Launch) -> None:
        self._slots = launch.configuration.max_batch
        ours, theirs = socket.socketpair()
        with theirs:
            self._child = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "maveriq_worker.child_main", str(theirs.fileno()), self._target,
                stdin=asyncio.subprocess.DEVNULL,
                env=child_env(os.environ, launch),
                pass_fds=(theirs.fileno(),),
                start_new_session=True,  # a Ctrl-C for the worker is not one for the engine: requests go back first
            )  # fmt: skip
        reader, self._writer = await asyncio.open_unix_connection(sock=ours, limit=_FRAME_LIMIT_BYTES)
        self._reading = asyncio.create_task(self._read(reader, self._child))
        write_frame(self._writer, Start(launch))
        await asyncio.wait((self._started, self._failed), return_when=asyncio.FIRST_COMPLETED)
        if self._failed.done():
            await self.stop()
            raise EngineFailed(self._failed.result())

    async def generate(self, generation: Generation) -> AsyncIterator[Produced]:
        if self._failed.done() or self._writer is None:
            raise EngineFailed(self._failed.result() if self._failed.done() else "not started")
        clock = None if self._streams else SoloClock(asyncio.get_running_loop().time())
        self._newest, stream = next(self._numbers), _Stream()
        number = self._newest
        self._streams[number] = stream
        write_frame(self._writer, Ask(number, generation))
        try:
            while True:
                item = await stream.get()
                if isinstance(item, EngineFailed):
                    raise item
                if isinstance(item, InferenceError):
                    raise RequestRefused(item.code, item.field, item.problem, item.remedy)
                if clock is not None and self._newest == number:
                    self._time(clock, item)
                if item.finish_reason is not None:
                    del self._streams[number]
                yield item
                if item.finish_reason is not None:
                    return
        finally:
            if self._streams.pop(number, None) is not None and not self._failed.done():
                write_frame(self._writer, Abort(number))

    def stats(self) -> EngineStats:
        active = min(len(self._streams), self._slots)
        stages = self._started.result() if self._started.done() else ()
        return EngineStats(active=active, waiting=len(self._streams) - active, stages=stages)

    def times(self) -> tuple[ServedTime, ...]:
        """Of requests that were alone from first to last token: the steps of several cannot be seen from here."""
        return self._timings.take()

    async def wait_failed(self) -> str:
        return await asyncio.shield(self._failed)

    async def stop(self) -> None:
        if self._child is None:
            return
        if self._started.done() and self._writer is not None:
            self._below |= descendants(self._child.pid)
            write_frame(self._writer, Stop())
            with suppress(TimeoutError):
                await asyncio.wait_for(self._child.wait(), STOP_S)
        self._below |= descendants(self._child.pid)
        with suppress(ProcessLookupError):
            self._child.kill()
        await self._child.wait()
        end(self._below)
        if self._reading is not None:
            await asyncio.wait({self._reading})
        if self._writer is not None:
            self._writer.close()

    async def _read(self, reader: asyncio.StreamReader, child: asyncio.subprocess.Process) -> None:
        oom_kills = OomKills()
        while (frame := await read_frame(reader)) is not None:
            if isinstance(frame, Step):
                for number, item in frame.items:
                    if (stream := self._streams.get(number)) is not None:
                        stream.put(item)
            elif isinstance(frame, Started):
                self._below = descendants(child.pid)  # while they can still be told: orphans have another parent
                self._started.set_result(frame.stages)
            elif isinstance(frame, Failure):
                self._fail(frame.detail)
        self._fail(oom_kills.explained(f"the engine's process {ended(await child.wait())}"))

    def _time(self, clock: SoloClock, item: Produced) -> None:
        now_s, last = asyncio.get_running_loop().time(), item.finish_reason is not None
        passed = clock.produced(len(item.token_ids), item.prompt_tokens, now_s, last=last)
        if passed is not None:
            self._timings.add(passed)

    def _fail(self, detail: str) -> None:
        if self._failed.done():
            return
        self._failed.set_result(detail)
        for stream in self._streams.values():
            stream.put(EngineFailed(detail))


def child_env(env: Mapping[str, str], launch: Launch) -> dict[str, str]:
    """The child's environment: its replica's GPUs, rank by rank (stages in order, in each its TP ranks).

    Raises:
        EngineFailed: one GPU is to be two ranks.
    """
    gpus = [device.gpu for stage in launch.stages for device in stage.devices if device.kind == "cuda"]
    if len(set(gpus)) != len(gpus):
        raise EngineFailed("two ranks on one GPU: the engine needs a GPU for each")
    return {**env, "CUDA_VISIBLE_DEVICES": ",".join(gpus)} if gpus else dict(env)
