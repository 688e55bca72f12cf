"""One replica from its placement to its end: starts its engine, serves, and leaves nothing behind."""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from uuid import UUID

import structlog

from maveriq.bus import Bus
from maveriq.contracts import Placement, ReplicaFailed, ReplicaReady, ReplicaStopped, ServiceTimed
from maveriq.engine_version import engine_version
from maveriq.topology import MAX_DEADLINE_S
from maveriq_worker.engine import CheckpointUnusable, Engine, EngineFailed, Launch
from maveriq_worker.out_of_memory import is_out_of_memory
from maveriq_worker.serving import Serving

DRAIN_QUIET_S = 0.5  # the queues give nothing more: several times what a redelivery takes
DRAIN_LIMIT_S = MAX_DEADLINE_S  # by then whatever was queued when the drain began is answered or late

log = structlog.get_logger()


class Replica:
    def __init__(
        self,
        bus: Bus,
        engine: Engine,
        deployment_id: UUID,
        placement: Placement,
        launch: Launch,
        died: Callable[[ReplicaFailed], Awaitable[None]],
    ) -> None:
        """
        Args:
            died: told when the engine dies after it was ready, its requests being back in the queue.
        """
        self._bus = bus
        self._engine = engine
        self.deployment_id = deployment_id
        self.placement = placement
        self._launch = launch
        self._died = died
        self.serving: Serving | None = None
        """None: its engine is not ready."""
        self._before: Replica | None = None
        self._started: asyncio.Future[ReplicaReady | ReplicaFailed | None]
        self._started = asyncio.get_running_loop().create_future()
        self._life: asyncio.Task[None] | None = None
        self._ended = asyncio.Lock()

    def begin(self, after: "Replica | None" = None) -> None:
        """Start in the background.

        Args:
            after: stopped first, because it holds the same memory.
        """
        self._before = after
        self._life = asyncio.get_running_loop().create_task(self._live())

    async def started(self) -> ReplicaReady | ReplicaFailed | None:
        """How the start went, once it is known; None: it was stopped before."""
        return await asyncio.shield(self._started)

    async def drain(self) -> ReplicaStopped:
        """Answer what is queued, then stop. A replica that still loads is stopped at once."""
        if self.serving is not None and self._life is not None and not self._life.done():
            draining = asyncio.ensure_future(self.serving.drain(DRAIN_QUIET_S, DRAIN_LIMIT_S))
            try:
                await asyncio.wait({draining, self._life}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                draining.cancel()
        await self.stop()
        return self.stopped

    async def stop(self) -> None:
        """End now; what is in hand goes back to the queue. Again is harmless."""
        if self._life is not None:
            self._life.cancel()
            await asyncio.wait({self._life})
        await self._end()
        if not self._started.done():
            self._started.set_result(None)

    async def _live(self) -> None:
        if self._before is not None:
            await self._before.stop()
        began = time.monotonic()
        # Whatever ends an engine, a bug in it too, is a failed replica: so it is the task that is asked, not a clause.
        opening = asyncio.ensure_future(self._open())
        try:
            await asyncio.wait({opening})
        finally:
            opening.cancel()
        if (error := opening.exception()) is not None:
            self._log_failure(error)
            await self._end()
            self._started.set_result(self._failed(_words(error), unusable=isinstance(error, CheckpointUnusable)))
            return
        serving = opening.result()
        self._started.set_result(self._ready(time.monotonic() - began))
        detail = await self._failure(serving)
        log.error("engine died", deployment_id=str(self.deployment_id), error=detail)
        await self._end()
        await self._died(self._failed(detail))

    async def _open(self) -> Serving:
        await self._engine.start(self._launch)
        slots = self.placement.candidate.configuration.max_batch
        model, lanes = self.placement.model.name, self.placement.lanes
        self.serving = Serving(self._bus, self._engine, self.deployment_id, slots, lanes=lanes, model=model)
        await self.serving.open()
        return self.serving

    async def _failure(self, serving: Serving) -> str:
        """Wait until the engine has died; the reason."""
        watching = asyncio.ensure_future(self._engine.wait_failed())
        try:
            await asyncio.wait({watching, serving.failed}, return_when=asyncio.FIRST_COMPLETED)
            if serving.failed.done():
                return serving.failed.result()
            error = watching.exception()
            return watching.result() if error is None else _words(error)
        finally:
            watching.cancel()

    async def _end(self) -> None:
        async with self._ended:
            if self.serving is not None:
                await self.serving.give_back()
            await self._engine.stop()
            if self._before is not None:
                await self._before.stop()

    def _log_failure(self, error: BaseException) -> None:
        expected = isinstance(error, EngineFailed)
        log.error(
            "replica did not start",
            deployment_id=str(self.deployment_id),
            error=_words(error),
            exc_info=None if expected else error,
        )

    def _ready(self, load_s: float) -> ReplicaReady:
        return ReplicaReady(
            deployment_id=self.deployment_id,
            replica=self.placement.replica,
            token=self.placement.token,
            node=self.placement.node,
            load_s=load_s,
            stage_bytes=tuple(stage.weight_bytes + stage.kv_cache_bytes for stage in self._engine.stats().stages),
        )

    def _failed(self, detail: str, *, unusable: bool = False) -> ReplicaFailed:
        return failed(self.deployment_id, self.placement, detail, unusable=unusable)

    @property
    def is_busy(self) -> bool:
        """Its engine is at somebody's answer."""
        return self.serving is not None and self.serving.is_busy

    def timed(self) -> ServiceTimed | None:
        """What its passes took, and whom it answered, since this was last asked.

        None: nothing ran, or nobody said what the model is.
        """
        times, facts = self._engine.times(), self.placement.facts
        configuration = self.placement.candidate.configuration
        layers = Counter(each for stage in self.placement.stages for each in stage.precisions)
        requests = () if self.serving is None else self.serving.sizes.take()
        if not (times or requests) or facts is None:
            return None
        return ServiceTimed(
            deployment_id=self.deployment_id,
            node=self.placement.node,
            engine=configuration.engine,
            engine_version=engine_version(configuration.engine),
            gpu_types=tuple(stage.gpu_type or configuration.gpu_type for stage in self.placement.stages),
            facts=facts,
            precision=configuration.precision,
            kv_precision=configuration.kv_precision,
            tp=configuration.tp,
            layers=self.placement.layers,
            mix=tuple(layers.items()),
            times=times,
            requests=requests,
        )

    @property
    def stopped(self) -> ReplicaStopped:
        return ReplicaStopped(
            deployment_id=self.deployment_id,
            replica=self.placement.replica,
            token=self.placement.token,
            node=self.placement.node,
        )


def failed(deployment_id: UUID, placement: Placement, detail: str, *, unusable: bool = False) -> ReplicaFailed:
    return ReplicaFailed(
        deployment_id=deployment_id,
        replica=placement.replica,
        token=placement.token,
        node=placement.node,
        detail=detail,
        checkpoint_unusable=unusable,
        out_of_memory=not unusable and is_out_of_memory(detail),
    )


def _words(error: BaseException) -> str:
    return str(error) if isinstance(error, EngineFailed) else f"{type(error).__name__}: {error}"
