"""Runs the stages of one replica: `python -m maveriq_worker.torch_pipeline fork|spawn <worker fd of each stage>`.

The first stage leads: it takes requests from the worker, decides each step, and tells the worker what a step brought.
The others do as told. Steps and chosen tokens travel over a ring of sockets, activations over torch.distributed.
A step runs ahead of its activations, so that each stage has asked for them before they are there.
This process is the first stage. The others are forked from it once torch and transformers are imported, so that a
replica pays for that once, in time and in memory. Where a GPU is used they are spawned: CUDA does not survive a fork.
"""

import gc
import os
import socket
import sys
import threading
import time
import traceback
from typing import NamedTuple, NoReturn

import torch

from maveriq.torch_layers import StageCore, keep_freed_memory
from maveriq_worker.out_of_memory import is_out_of_memory
from maveriq_worker.pass_clock import PassClock
from maveriq_worker.sampling import Sampler
from maveriq_worker.scheduler import Scheduler
from maveriq_worker.stage_link import Gone, Link, pair, ready
from maveriq_worker.stage_transport import Transport
from maveriq_worker.torch_stage import CheckpointCannotRun, StageCannotRun, TorchStage
from maveriq_worker.torch_steps import (
    Cancel,
    Sent,
    StageReady,
    StageRefused,
    StageSpec,
    Step,
    StepDone,
    Stepped,
    Submit,
)

_LAST_WORDS_S = 1.0  # for the other stages to end, and to say how


class Ring(NamedTuple):
    """A stage's links to the one before and the one after; the first comes after the last."""

    before: Link
    after: Link


class Follower:
    """Any stage but the first."""

    def __init__(self, stage: TorchStage, transport: Transport, ring: Ring, core: StageCore) -> None:
        self._stage, self._transport, self._ring, self._core = stage, transport, ring, core
        self._sampler = Sampler()

    def run(self) -> None:
        before, after = self._ring
        while True:
            step: Step = before.receive()
            arriving = self._transport.expect(len(step.token_ids), len(step.token_ids[0]))
            if not self._stage.is_last:
                after.send(step)
            sent: Sent = before.receive()
            self._core.follow(sent.core)
            output = self._stage.forward(step, arriving.wait())
            if self._stage.is_last:
                after.send(choose(self._sampler, step, output))
            else:
                self._transport.send(output)
                after.send(sent)


class Leader:
    """The first stage, which may be the only one."""

    def __init__(
        self, stage: TorchStage, transport: Transport, scheduler: Scheduler, worker: Link, ring: Ring | None,
        core: StageCore,
    ) -> None:  # fmt: skip
        """
        Args:
            ring: None: there is no other stage.
        """
        self._stage, self._transport, self._scheduler = stage, transport, scheduler
        self._worker, self._ring, self._core = worker, ring, core
        self._sampler = Sampler()
        self._clock = PassClock()
        self._told = (0, 0)

    def run(self) -> None:
        while True:
            step = None if self._clock.holds(time.perf_counter()) else self._scheduler.next_step()
            if step is not None:
                self._launch(step)
            self._hear(wait=step is None)

    def _launch(self, step: Step) -> None:
        self._clock.launched(step, self._scheduler.prompt_tokens(step), time.perf_counter())
        if self._ring is None:
            self._done(choose(self._sampler, step, self._stage.forward(step, None)))
            return
        alone = self._scheduler.num_busy == 1
        self._ring.after.send(step)
        self._core.before(alone=alone)
        self._transport.send(self._stage.forward(step, None))
        self._ring.after.send(Sent(self._core.after(alone=alone)))

    def _hear(self, *, wait: bool) -> None:
        """Take in what the worker wants and which steps are done; where nothing can be started, wait for either."""
        links = [self._worker] if self._ring is None else [self._worker, self._ring.before]
        heard = ready(links, None if wait else 0)
        while heard:
            for link in heard:
                message = link.receive()
                if isinstance(message, StepDone):
                    self._done(message)
                elif isinstance(message, Submit):
                    self._scheduler.submit(message)
                elif isinstance(message, Cancel):
                    self._scheduler.cancel(message.key)
            heard = ready([self._worker], 0)
        self._tell()

    def _done(self, done: StepDone) -> None:
        passed = self._clock.done(done.group, time.perf_counter())
        emitted = self._scheduler.done(done)
        if emitted:
            self._told = (self._scheduler.num_active, self._scheduler.num_waiting)
            self._worker.send(Stepped(emitted, *self._told, passed))

    def _tell(self) -> None:
        """Counts that changed without a token: requests that came, or were cancelled."""
        counts = (self._scheduler.num_active, self._scheduler.num_waiting)
        if counts != self._told:
            self._told = counts
            self._worker.send(Stepped((), *counts))


def choose(sampler: Sampler, step: Step, logits: torch.Tensor) -> StepDone:
    """The tokens of a step's picks. Of a prompt that goes on in the next step there are none."""
    for key, spec in step.opened:
        sampler.open(key, spec)
    for key in step.closed:
        sampler.close(key)
    choices = sampler.choose(tuple(pick.key for pick in step.picks), logits) if step.picks else ()
    return StepDone(step.group, choices)


def run(worker: Link, ring: Ring | None) -> None:
    """Load, report, and serve until the worker is gone."""
    spec: StageSpec = worker.receive()
    torch.set_num_threads(spec.threads)
    try:
        stage = TorchStage(spec)
    except StageCannotRun as error:
        worker.send(StageRefused(str(error), unusable=isinstance(error, CheckpointCannotRun)))
        return
    except (RuntimeError, MemoryError, OSError) as error:
        if not is_out_of_memory(f"{type(error).__name__}: {error}"):
            raise
        worker.send(StageRefused(_out_of_memory(spec, error)))
        return
    transport = Transport(spec, stage.hidden_size, stage.dtype)
    gc.collect()
    gc.freeze()  # nothing loaded so far is ever garbage: collections between steps stay short
    keep_freed_memory()
    worker.send(StageReady(stage.weight_bytes, stage.kv_cache_bytes))
    core = StageCore(movable=spec.device == "cpu" and spec.threads == 1)
    if spec.rank > 0 and ring is not None:
        Follower(stage, transport, ring, core).run()
    else:
        scheduler = Scheduler(max_batch=spec.max_batch, num_groups=spec.num_stages, eos_ids=spec.eos_ids)
        Leader(stage, transport, scheduler, worker, ring, core).run()


def _out_of_memory(spec: StageSpec, error: BaseException) -> str:
    """One line, for whoever deployed it; what else an allocator says is of its own source."""
    first, *_ = str(error).splitlines() or [type(error).__name__]
    layers, reserved = f"{spec.num_layers} layers on {spec.device}", spec.reserved_bytes
    return f"stage {spec.rank} ({layers}, {reserved} bytes reserved) ran out of memory while it loaded: {first}"


def lead(worker_fds: list[int], *, spawn: bool) -> None:
    """Start the other stages, then be the first."""
    pairs = [pair() for _ in worker_fds]  # each from a stage to the next
    ranks: dict[int, int] = {}
    for rank, worker_fd in enumerate(worker_fds[1:], start=1):
        pid = os.fork()
        if pid == 0:
            for other_fd in (worker_fds[0], *worker_fds[rank + 1 :]):  # those before are closed already
                os.close(other_fd)
            before, after = _ring_fds(pairs, rank)
            follow(worker_fd, before, after, spawn=spawn)
        os.close(worker_fd)
        ranks[pid] = rank
    before, after = _ring_fds(pairs, 0)
    ring = _ring(before, after) if ranks else None
    watching = threading.Thread(target=_report_deaths, args=(ranks,), daemon=True)
    watching.start()
    _serve(Link(socket.socket(fileno=worker_fds[0])), ring, watching)


def _ring_fds(pairs: list[tuple[socket.socket, socket.socket]], rank: int) -> tuple[int, int]:
    """A stage's own ends, before and after; all others are closed, so that the end of a stage is seen by the next."""
    before, after = pairs[rank - 1][1].detach(), pairs[rank][0].detach()
    for ends in pairs:
        for end in ends:
            end.close()
    return before, after


def _ring(before_fd: int, after_fd: int) -> Ring:
    return Ring(*(Link(socket.socket(fileno=fd)) for fd in (before_fd, after_fd)))


def follow(worker_fd: int, before_fd: int, after_fd: int, *, spawn: bool) -> NoReturn:
    """Be any stage but the first; never returns."""
    if spawn:
        fds = (worker_fd, before_fd, after_fd)
        for fd in fds:
            os.set_inheritable(fd, True)
        module = ["-m", "maveriq_worker.torch_pipeline", "follow", *map(str, fds)]
        os.execv(sys.executable, [sys.executable, *module])
    _serve(Link(socket.socket(fileno=worker_fd)), _ring(before_fd, after_fd), None)


def _serve(worker: Link, ring: Ring | None, watching: threading.Thread | None) -> NoReturn:
    """A stage's whole life. Exits without Python's farewells, which belong to the process it was forked from."""
    threading.Thread(target=_end_with_the_worker, args=(watching,), daemon=True).start()
    status = 0
    try:
        run(worker, ring)
    except Gone:
        if watching is not None:
            watching.join(_LAST_WORDS_S)
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stderr.flush()
    os._exit(status)


def _report_deaths(ranks: dict[int, int]) -> None:
    """Say how another stage ended, for the worker to read; the first to end is the cause."""
    while ranks:
        pid, status = os.waitpid(-1, 0)
        code = os.waitstatus_to_exitcode(status)
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit status {code}"
        print(f"stage {ranks.pop(pid)} {how}", file=sys.stderr, flush=True)


def _end_with_the_worker(watching: threading.Thread | None) -> None:
    """Standard input is a pipe that the worker holds: its end, however it came, ends every stage at once.

    The first waits for the others, which are its children: left behind they would stay defunct where nobody reaps.
    """
    while os.read(0, 1):
        pass
    if watching is not None:
        watching.join(_LAST_WORDS_S)
    os._exit(0)


if __name__ == "__main__":
    how, *numbers = sys.argv[1:]
    if how == "follow":
        follow(*map(int, numbers), spawn=False)
    lead([int(number) for number in numbers], spawn=how == "spawn")
