"""The process of one stage: `python -m maveriq_worker.torch_pipeline <worker fd> [<peer fd> ...]`.

The first stage leads: it takes requests from the worker, decides each step, and tells the worker what a step brought.
The others do as told. Steps and chosen tokens travel over sockets, activations over torch.distributed.
"""

import gc
import os
import socket
import sys
import threading

import torch

from maveriq_worker.sampling import Sampler
from maveriq_worker.scheduler import Scheduler
from maveriq_worker.stage_link import Gone, Link, ready
from maveriq_worker.stage_transport import Transport
from maveriq_worker.torch_stage import StageCannotRun, TorchStage
from maveriq_worker.torch_steps import Cancel, StageReady, StageRefused, StageSpec, Step, StepDone, Stepped, Submit


class Follower:
    """Any stage but the first."""

    def __init__(self, stage: TorchStage, transport: Transport, leader: Link) -> None:
        self._stage, self._transport, self._leader = stage, transport, leader
        self._sampler = Sampler()

    def run(self) -> None:
        while True:
            step: Step = self._leader.receive()
            hidden = self._transport.receive(len(step.token_ids), len(step.token_ids[0]))
            output = self._stage.forward(step, hidden)
            if self._stage.is_last:
                self._leader.send(choose(self._sampler, step, output))
            else:
                self._transport.send(output)


class Leader:
    """The first stage, which may be the only one."""

    def __init__(
        self, stage: TorchStage, transport: Transport, scheduler: Scheduler, worker: Link, followers: list[Link]
    ) -> None:
        self._stage, self._transport, self._scheduler = stage, transport, scheduler
        self._worker, self._followers = worker, followers
        self._sampler = Sampler()
        self._in_flight = 0
        self._told = (0, 0)

    def run(self) -> None:
        while True:
            step = self._scheduler.next_step()
            if step is not None:
                self._launch(step)
            self._hear(wait=step is None)

    def _launch(self, step: Step) -> None:
        for follower in self._followers:
            follower.send(step)
        output = self._stage.forward(step, None)
        if self._stage.is_last:
            self._done(choose(self._sampler, step, output))
        else:
            self._transport.send(output)
            self._in_flight += 1

    def _hear(self, *, wait: bool) -> None:
        """Take in what the worker wants and which steps are done; where nothing can be started, wait for either."""
        links = [self._worker, *self._followers[-1:]]
        heard = ready(links, None if wait else 0)
        while heard:
            for link in heard:
                message = link.receive()
                if isinstance(message, StepDone):
                    self._in_flight -= 1
                    self._done(message)
                elif isinstance(message, Submit):
                    self._scheduler.submit(message)
                elif isinstance(message, Cancel):
                    self._scheduler.cancel(message.key)
            heard = ready([self._worker], 0)
        self._tell()

    def _done(self, done: StepDone) -> None:
        emitted = self._scheduler.done(done)
        if emitted:
            self._told = (self._scheduler.num_active, self._scheduler.num_waiting)
            self._worker.send(Stepped(emitted, *self._told))

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


def run(worker: Link, peers: list[Link]) -> None:
    """Load, report, and serve until the worker is gone."""
    spec: StageSpec = worker.receive()
    torch.set_num_threads(spec.threads)
    try:
        stage = TorchStage(spec)
    except StageCannotRun as error:
        worker.send(StageRefused(str(error)))
        return
    transport = Transport(spec, stage.hidden_size, stage.dtype)
    gc.collect()
    gc.freeze()  # nothing loaded so far is ever garbage: collections between steps stay short
    worker.send(StageReady(stage.weight_bytes, stage.kv_cache_bytes))
    if spec.rank > 0:
        Follower(stage, transport, peers[0]).run()
    else:
        scheduler = Scheduler(max_batch=spec.max_batch, num_groups=spec.num_stages, eos_ids=spec.eos_ids)
        Leader(stage, transport, scheduler, worker, peers).run()


def _end_with_the_worker() -> None:
    """Standard input is a pipe that the worker holds: its end, however it came, ends this process at once."""
    while os.read(0, 1):
        pass
    os._exit(0)


def main() -> None:
    threading.Thread(target=_end_with_the_worker, daemon=True).start()
    links = [Link(socket.socket(fileno=int(number))) for number in sys.argv[1:]]
    try:
        run(links[0], links[1:])
    except Gone:
        os._exit(0)


if __name__ == "__main__":
    main()
