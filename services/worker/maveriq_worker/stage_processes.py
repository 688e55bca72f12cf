"""Starts one process for each stage, joins them with sockets, and sees to it that they end together."""

import asyncio
import os
import shutil
import socket
import sys
import tempfile
from collections import deque
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from maveriq_worker.stage_link import Gone, frame, pair, read
from maveriq_worker.torch_steps import StageReady, StageRefused, StageSpec

_TAIL_LINES = 20  # of what a stage said before it died
_STREAM_BYTES = 1 << 20
_AFTERMATH_S = 0.2


class StagesFailed(Exception):
    """A stage could not start; the message is its reason."""


@dataclass(slots=True)
class _Stage:
    process: asyncio.subprocess.Process
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    said: deque[str]
    listening: asyncio.Task[None]


class StageProcesses:
    """All stages of one replica. The first is the one to talk to."""

    def __init__(self) -> None:
        self._stages: list[_Stage] = []
        self._folder: Path | None = None

    async def start(self, specs: tuple[StageSpec, ...]) -> tuple[StageReady, ...]:
        """Load every stage.

        Raises:
            StagesFailed: one of them cannot; `stop` is still to be called.
        """
        self._folder = Path(tempfile.mkdtemp(prefix="maveriq-stages-"))
        with ExitStack() as given_away:
            followers = [pair() for _ in specs[1:]]
            for end in (end for ends in followers for end in ends):
                given_away.enter_context(end)
            for spec in specs:
                peers = [ends[0] for ends in followers] if spec.rank == 0 else [followers[spec.rank - 1][1]]
                stage = await self._spawn(spec.threads, peers)
                self._stages.append(stage)
                stage.writer.write(frame(replace(spec, rendezvous=self._folder / "rendezvous")))
        loading = [asyncio.ensure_future(self._loaded(rank)) for rank in range(len(specs))]
        try:
            return tuple(await asyncio.gather(*loading))
        finally:
            for task in loading:
                task.cancel()

    def send(self, message: object) -> None:
        """To the first stage; one that is gone is noticed by `receive`."""
        self._stages[0].writer.write(frame(message))

    async def receive(self) -> Any:
        """The first stage's next message.

        Raises:
            Gone
        """
        return await read(self._stages[0].reader)

    async def wait_died(self) -> str:
        """Return when any stage has ended, with what it said last.

        One stage's death ends the others with errors of their own: of those that ended about the same time, the one
        that was killed is the cause, then the one that raised.
        """
        deaths = {rank: asyncio.ensure_future(stage.process.wait()) for rank, stage in enumerate(self._stages)}
        try:
            await asyncio.wait(deaths.values(), return_when=asyncio.FIRST_COMPLETED)
            await asyncio.sleep(_AFTERMATH_S)
        finally:
            for task in deaths.values():
                task.cancel()
        codes = {rank: task.result() for rank, task in deaths.items() if task.done() and not task.cancelled()}
        return await self._obituary(min(codes, key=lambda rank: (codes[rank] >= 0, codes[rank] == 0)))

    async def stop(self) -> None:
        """End every process: they keep nothing that could be lost."""
        stages, self._stages = self._stages, []
        for stage in stages:
            with suppress(ProcessLookupError):
                stage.process.kill()
        for stage in stages:
            await stage.process.wait()
            stage.writer.close()
            stage.listening.cancel()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    async def _spawn(self, threads: int, peers: list[socket.socket]) -> _Stage:
        mine, theirs = pair()
        with theirs:
            fds = [theirs.fileno(), *(peer.fileno() for peer in peers)]
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "maveriq_worker.torch_pipeline", *map(str, fds),
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
                pass_fds=fds, env=_environment(threads),
            )  # fmt: skip
        reader, writer = await asyncio.open_unix_connection(sock=mine, limit=_STREAM_BYTES)
        said: deque[str] = deque(maxlen=_TAIL_LINES)
        assert process.stderr is not None
        return _Stage(process, reader, writer, said, asyncio.ensure_future(_listen(process.stderr, said)))

    async def _loaded(self, rank: int) -> StageReady:
        try:
            answer = await read(self._stages[rank].reader)
        except Gone:
            raise StagesFailed(await self._obituary(rank)) from None
        if isinstance(answer, StageRefused):
            raise StagesFailed(answer.reason)
        ready: StageReady = answer
        return ready

    async def _obituary(self, rank: int) -> str:
        stage = self._stages[rank]
        code = await stage.process.wait()
        await stage.listening
        how = f"signal {-code}" if code < 0 else f"exit status {code}"
        return f"stage {rank} of {len(self._stages)} died ({how}): " + ("\n".join(stage.said) or "it said nothing")


async def _listen(stderr: asyncio.StreamReader, said: deque[str]) -> None:
    """Keep a stage's last words; reading them also keeps it from blocking on a full pipe."""
    while text := await stderr.read(_STREAM_BYTES):
        said.extend(line for line in text.decode(errors="replace").splitlines() if line.strip())


def _environment(threads: int) -> dict[str, str]:
    """Stages meet on this machine only, and load local folders only."""
    added = {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false", "TRANSFORMERS_OFFLINE": "1"}
    if "lo" in (name for _, name in socket.if_nameindex()):
        added |= {"GLOO_SOCKET_IFNAME": "lo"}
    return {**os.environ, **added}
