"""Has orders carried out, each in a process of its own, forked from one that has imported torch (fork_server.py).

That one starts with the first order, or before, and ends when nothing was ordered for a while: it holds some 280 MiB
of its own.
"""

import asyncio
import os
import socket
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import closing, suppress

from maveriq_profiler.exit_status import END, ExitStatus

IDLE_S = 60.0
_LINE_LIMIT_BYTES = 64 * 2**20  # a config with its lists, or all samples, on one line
TORCH = (
    "maveriq_profiler.child", "maveriq_profiler.facts", "maveriq_profiler.hop", "maveriq_profiler.probe",
    "maveriq_profiler.run_probe", "maveriq_profiler.accuracy_child", "transformers.models.llama.modeling_llama",
)  # fmt: skip

Hear = Callable[[bytes], Awaitable[None]]


class Children:
    def __init__(self, threads: int, *, engine: str = "torch", idle_s: float = IDLE_S) -> None:
        """
        Args:
            threads: of the CPU, for libraries that read OMP_NUM_THREADS when they are imported.
            engine: of `trtllm` nothing is imported beforehand, as neither MPI nor CUDA survives a fork.
        """
        self._modules: Sequence[str] = TORCH if engine == "torch" else ()
        self._threads = threads
        self._idle_s = idle_s
        self._server: asyncio.subprocess.Process | None = None
        self._control: socket.socket | None = None
        self._is_ready = False
        self._starting = asyncio.Lock()
        self._num_running = 0
        self._ending: asyncio.TimerHandle | None = None

    async def run(self, module: str, order: str, hear: Hear) -> ExitStatus:
        """Give one line to the module's `main` in a new process, which is killed if this is cancelled.

        Args:
            hear: told each line of its answer.
        """
        self._num_running += 1
        self._stay()
        try:
            reader, writer = await self._begun()
            with closing(writer):
                try:
                    writer.write(f"{module}\n{order}\n".encode())
                    return await _heard(reader, hear)
                finally:
                    with suppress(OSError):
                        writer.write_eof()
                    if self._begins():
                        await asyncio.shield(_heard(reader, _to_nobody))  # until it is dead
        finally:
            self._num_running -= 1
            self._rest()

    async def get_ready(self) -> None:
        """Begin to import now, for an order that is to come soon; returns at once."""
        self._stay()
        async with self._starting:
            if not self._is_there():
                await self._start()
        self._rest()

    async def close(self) -> None:
        """Nothing is left running."""
        self._stay()
        self._let_go()
        if self._server is not None:
            with suppress(ProcessLookupError):
                self._server.kill()  # it may have torch to import before it would look
            await self._server.wait()

    async def _begun(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        async with self._starting:
            if not self._is_there():
                await self._start()
            ours, theirs = socket.socketpair()
            with theirs:
                try:
                    self._hand_over(theirs)
                except BrokenPipeError:  # it was killed just now
                    await self._start()
                    self._hand_over(theirs)
        return await asyncio.open_unix_connection(sock=ours, limit=_LINE_LIMIT_BYTES)

    def _is_there(self) -> bool:
        return self._control is not None and self._server is not None and self._server.returncode is None

    def _hand_over(self, connection: socket.socket) -> None:
        assert self._control is not None, "it was started"
        socket.send_fds(self._control, [b"+"], [connection.fileno()])

    async def _start(self) -> None:
        self._let_go()
        self._control, theirs = socket.socketpair()
        self._is_ready = False
        with theirs:
            self._server = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "maveriq_profiler.fork_server", str(theirs.fileno()), *self._modules,
                stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, env=_environment(self._threads),
                pass_fds=(theirs.fileno(),),
                start_new_session=True,  # a Ctrl-C is for the profiler, which ends this one
            )  # fmt: skip

    def _begins(self) -> bool:
        """Whether orders are begun by now: not while modules are imported, and a killed one begins none."""
        if self._control is not None and not self._is_ready:
            with suppress(BlockingIOError):
                self._is_ready = bool(self._control.recv(1, socket.MSG_DONTWAIT))
        return self._is_ready

    def _stay(self) -> None:
        if self._ending is not None:
            self._ending.cancel()
            self._ending = None

    def _rest(self) -> None:
        if not self._num_running:
            self._stay()
            self._ending = asyncio.get_running_loop().call_later(self._idle_s, self._let_go)

    def _let_go(self) -> None:
        """It ends by itself, and with it whatever it forked."""
        if self._control is not None:
            self._control.close()
            self._control = None


async def _heard(reader: asyncio.StreamReader, hear: Hear) -> ExitStatus:
    async for text in reader:
        _, last, ended = text.partition(END)
        if last:
            return ExitStatus.model_validate_json(ended)
        await hear(text)
    return ExitStatus(code=None)


async def _to_nobody(line: bytes) -> None:
    pass


def _environment(threads: int) -> dict[str, str]:
    return {
        **os.environ,
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",  # ordinals by bus, as NVML counts
        "OMP_NUM_THREADS": str(threads),  # libraries that read it obey the same number as torch
        "OPENBLAS_NUM_THREADS": "1",  # NumPy's and SciPy's, which would start threads when imported
        "TQDM_DISABLE": "1",
    }
