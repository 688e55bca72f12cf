"""The process of one engine: hears its worker on a socket, and ends with it."""

import asyncio
import ctypes
import signal
import socket
import sys
from functools import partial
from importlib import import_module

from maveriq.contracts import InferenceError
from maveriq_worker.engine import Engine, EngineFailed, Produced, RequestRefused
from maveriq_worker.frames import Abort, Ask, Failure, Frame, Start, Started, Step, Stop, read_frame, write_frame

_PR_SET_PDEATHSIG = 1  # prctl(2)


class Child:
    def __init__(self, engine: Engine, writer: asyncio.StreamWriter) -> None:
        self._engine = engine
        self._writer = writer
        self._loop = asyncio.get_running_loop()
        self._answers: dict[int, asyncio.Task[None]] = {}
        self._step: list[tuple[int, Produced | InferenceError]] = []

    async def run(self, reader: asyncio.StreamReader) -> None:
        """Serve until told to stop, until the worker is gone, or until the engine fails."""
        start = await read_frame(reader)
        if not isinstance(start, Start):
            return
        end_with_parent(True)  # loading may block this loop for minutes, so that nobody hears the socket close
        try:
            await self._engine.start(start.launch)
        except EngineFailed as failed:
            await self._say(Failure(str(failed)))
            return
        end_with_parent(False)
        await self._say(Started(self._engine.stats().stages))
        watching = self._loop.create_task(self._watch())
        hearing = self._loop.create_task(self._hear(reader))
        await asyncio.wait({watching, hearing}, return_when=asyncio.FIRST_COMPLETED)
        rest = {watching, hearing, *self._answers.values()}
        for task in rest:
            task.cancel()
        await asyncio.wait(rest)
        await self._engine.stop()

    async def _hear(self, reader: asyncio.StreamReader) -> None:
        while (frame := await read_frame(reader)) is not None and not isinstance(frame, Stop):
            if isinstance(frame, Ask):
                task = self._loop.create_task(self._answer(frame))
                self._answers[frame.number] = task
                task.add_done_callback(partial(self._forget, frame.number))
            elif isinstance(frame, Abort) and (running := self._answers.get(frame.number)) is not None:
                running.cancel()

    def _forget(self, number: int, _: asyncio.Task[None]) -> None:
        del self._answers[number]

    async def _answer(self, ask: Ask) -> None:
        try:
            async for produced in self._engine.generate(ask.generation):
                self._put(ask.number, produced)
        except RequestRefused as refused:
            self._put(ask.number, refused.error)
        except EngineFailed as failed:
            await self._say(Failure(str(failed)))

    def _put(self, number: int, item: Produced | InferenceError) -> None:
        """One frame a step: flushed after all tasks that the step woke have run."""
        if not self._step:
            self._loop.call_soon(self._flush)
        self._step.append((number, item))

    def _flush(self) -> None:
        write_frame(self._writer, Step(tuple(self._step)))
        self._step.clear()

    async def _watch(self) -> None:
        await self._say(Failure(await self._engine.wait_failed()))

    async def _say(self, frame: Frame) -> None:
        write_frame(self._writer, frame)
        await self._writer.drain()


def end_with_parent(yes: bool) -> None:
    """Whether the kernel kills this process when its worker dies. Linux alone; elsewhere the closed socket does."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL if yes else 0)


async def _main(fd: int, target: str) -> None:
    reader, writer = await asyncio.open_unix_connection(sock=socket.socket(fileno=fd))
    module, _, name = target.partition(":")
    engine: Engine = getattr(import_module(module), name)()
    await Child(engine, writer).run(reader)
    writer.close()


if __name__ == "__main__":
    asyncio.run(_main(int(sys.argv[1]), sys.argv[2]))
