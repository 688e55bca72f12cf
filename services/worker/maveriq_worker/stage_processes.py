"""Starts a replica's stages, each a process, talks to them over sockets, and sees to it that they end together."""

import asyncio
import os
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from maveriq_worker.oom_kills import OomKills
from maveriq_worker.stage_link import Gone, frame, pair, read
from maveriq_worker.torch_steps import StageReady, StageRefused, StageSpec

_TAIL_BYTES = 4096  # of what the stages said before one died
_STREAM_BYTES = 1 << 20
_FAREWELL_S = 3.0  # stages that have not ended by then are killed
_AFTERMATH_S = 0.3  # for the first stage to say how another ended


class StagesFailed(Exception):
    """A stage could not start; the message is its reason."""


class CheckpointRefused(StagesFailed):
    """No stage of this checkpoint could."""


@dataclass(frozen=True, slots=True)
class _Link:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter


class StageProcesses:
    """All stages of one replica: one process started here, which starts the others. The first is the one to talk to."""

    def __init__(self, program: Sequence[str] = ("-m", "maveriq_worker.torch_pipeline")) -> None:
        """Args:
        program: what Python runs.
        """
        self._program = program
        self._process: asyncio.subprocess.Process | None = None
        self._links: list[_Link] = []
        self._said = b""
        self._oom_kills = OomKills()
        self._listening: asyncio.Task[None] | None = None
        self._folder: Path | None = None

    async def start(self, specs: tuple[StageSpec, ...]) -> tuple[StageReady, ...]:
        """Load every stage.

        Raises:
            StagesFailed: one of them cannot; `stop` is still to be called.
        """
        self._folder = Path(tempfile.mkdtemp(prefix="maveriq-stages-"))
        with ExitStack() as given_away:
            theirs: list[socket.socket] = []
            for _ in specs:
                mine, other = pair()
                theirs.append(given_away.enter_context(other))
                self._links.append(_Link(*await asyncio.open_unix_connection(sock=mine, limit=_STREAM_BYTES)))
            await self._spawn(specs, [end.fileno() for end in theirs])
        for link, spec in zip(self._links, specs, strict=True):
            link.writer.write(frame(replace(spec, rendezvous=self._folder / "rendezvous")))
        loading = [asyncio.ensure_future(self._loaded(link)) for link in self._links]
        try:
            return tuple(await asyncio.gather(*loading))
        finally:
            for task in loading:
                task.cancel()

    def send(self, message: object) -> None:
        """To the first stage; one that is gone is noticed by `wait_died`."""
        self._links[0].writer.write(frame(message))

    async def receive(self) -> Any:
        """The first stage's next message.

        Raises:
            Gone
        """
        return await read(self._links[0].reader)

    async def wait_died(self) -> str:
        """Return when any stage has ended, with what was said last; the others are ended too."""
        assert self._process is not None
        ends: list[asyncio.Future[Any]] = [asyncio.ensure_future(self._process.wait())]
        ends += [asyncio.ensure_future(link.reader.read()) for link in self._links[1:]]  # nothing comes but the end
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in ends:
                task.cancel()
        return await self._obituary()

    async def stop(self) -> None:
        """End every process: they keep nothing that could be lost."""
        await self._kill()
        for link in self._links:
            link.writer.close()
        self._links = []
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    async def _kill(self) -> None:
        process, listening = self._process, self._listening
        if process is not None and listening is not None:
            assert process.stdin is not None
            process.stdin.close()  # the sign to end; standard error ends with the last of them
            _, running = await asyncio.wait([listening], timeout=_FAREWELL_S)
            if running:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
            await asyncio.wait([listening])
        self._process = self._listening = None

    async def _spawn(self, specs: tuple[StageSpec, ...], fds: list[int]) -> None:
        self._oom_kills = OomKills()
        how = "fork" if all(spec.device == "cpu" for spec in specs) else "spawn"
        process = await asyncio.create_subprocess_exec(
            sys.executable, *self._program, how, *map(str, fds),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
            pass_fds=fds, env=_environment(specs[0].threads),
            start_new_session=True,  # so that all of them can be ended together
        )  # fmt: skip
        assert process.stderr is not None
        self._process, self._listening = process, asyncio.ensure_future(self._listen(process.stderr))

    async def _loaded(self, link: _Link) -> StageReady:
        try:
            answer = await read(link.reader)
        except Gone:
            raise StagesFailed(await self._obituary()) from None
        if isinstance(answer, StageRefused):
            raise (CheckpointRefused if answer.unusable else StagesFailed)(answer.reason)
        ready: StageReady = answer
        return ready

    async def _obituary(self) -> str:
        process, first = self._process, ""
        if process is not None:
            with suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), _AFTERMATH_S)
            code = process.returncode
            first = f"stage 0 was killed by signal {-code}\n" if code is not None and code < 0 else ""
        await self._kill()
        said = (first + self._said.decode(errors="replace")).strip() or "the stages ended without a word"
        return self._oom_kills.explained(said)

    async def _listen(self, stderr: asyncio.StreamReader) -> None:
        """Keep the stages' last words; reading them also keeps them from blocking on a full pipe."""
        while said := await stderr.read(_STREAM_BYTES):
            self._said = (self._said + said)[-_TAIL_BYTES:]


def _environment(threads: int) -> dict[str, str]:
    """Stages meet on this machine only, and load local folders only."""
    added = {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false", "TRANSFORMERS_OFFLINE": "1"}
    added |= {"OPENBLAS_NUM_THREADS": "1"}  # numpy's threads start with its import, before the fork
    if "lo" in (name for _, name in socket.if_nameindex()):
        added |= {"GLOO_SOCKET_IFNAME": "lo"}
    return {**os.environ, **added}
