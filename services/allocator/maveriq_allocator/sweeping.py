"""Looks for workers that fell silent, and for what their reports show beside what they say. Keys: see `keys`."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID, uuid4

import structlog

from maveriq.bus import Bus, QueueFull, Unavailable, Unroutable
from maveriq.contracts import (
    ConfirmationRequested,
    GpuState,
    InventoryChanged,
    MemoryDrifted,
    Message,
    NodeReported,
    ReplicaLost,
    SweepDue,
)
from maveriq_allocator import adopting, keys, lifecycle
from maveriq_allocator.drift import drifted
from maveriq_allocator.inventory import Kept, Times
from maveriq_allocator.record import Held, Stray
from maveriq_allocator.reservations import Reservations
from maveriq_allocator.store import Store

_TICK = Path(__file__).with_name("tick.lua").read_text()
FORGET_S = 24 * 3600  # a node that was silent for longer is not coming back
LATE_S = 30  # a worker that runs on what it was told to stop is told again after that
LOST_S = 600  # a loss that is still held after that is told again: no backlog is so long, its message failed

log = structlog.get_logger()


async def remind(bus: Bus, every_s: float) -> None:
    """SweepDue for ever; none while the broker is away, and nobody is taken for silent."""
    while True:
        await asyncio.sleep(every_s)
        try:
            await bus.publish(SweepDue(mark=uuid4()))
        except (Unavailable, QueueFull, Unroutable) as error:
            log.warning("no sweep", error=repr(error))


@dataclass(frozen=True, slots=True)
class Sweeping:
    redis: Store
    reservations: Reservations
    times: Times

    async def silent(self) -> dict[str, str]:
        """Nodes whose worker was silent for the grace period, until all of that is told, with a mark of the silence."""
        tick = self.redis.register_script(_TICK)
        silent_ms = self.times.grace_ms + round(1e3 * self.times.sweep_s)  # what a tick's own age may hide
        touched = [keys.WATCH, keys.HEARD, keys.CHANGES]
        found: list[str] = await tick(touched, [self.times.max_step_ms, silent_ms, FORGET_S * 1000, keys.node("")])
        return dict(zip(found[::2], found[1::2], strict=True))

    async def lost(self, node: str, mark: str, sweep: UUID | None) -> list[ReplicaLost]:
        """What a silent worker held. Each is said once, and again where a sweep is handed out again, for who handled it
        may have died before it was sent."""
        told: list[ReplicaLost] = []
        holding = await self._held_on(node)
        for deployment_id, held in holding:
            if await self._is_loss_to_tell(held.placement.token, str(sweep or "")):
                detail = f"the worker of node {node} did not report for {self.times.grace_s:.0f} s"
                told.append(_lost(deployment_id, held, detail))
        if not holding:
            await self.redis.hset(keys.node(node), "told_of", mark)
        return told

    async def _held_on(self, node: str) -> list[tuple[UUID, Held]]:
        fields: list[str] = await self.redis.hkeys(keys.held(node))
        tokens = {field.rpartition("|")[2] for field in fields}
        owners = {keys.parse_token(token)[0] for token in tokens if not token.endswith("/hold")}
        records = [loaded.record for loaded in await self.reservations.load_all(sorted(owners))]
        return [(r.deployment_id, held) for r in records for held in r.held if held.placement.token in tokens]

    async def after_report(
        self, message: NodeReported, kept: Kept, changed: Sequence[InventoryChanged]
    ) -> list[Message]:
        """What a worker is to be asked or told, and which GPUs drifted."""
        messages: list[Message] = []
        unknown: list[str] = []
        for token in kept.strange:
            deployment_id, replica = keys.parse_token(token)
            record = (await self.reservations.load(deployment_id)).record
            if adopting.is_wanted(record, token, replica):
                unknown.append(token)
            elif not adopting.is_known(record, token) and await self._is_late_to_tell(token):
                messages.append(lifecycle.drain(record, Stray(node=message.node, replica=replica, token=token)))
        if unknown:
            messages.append(ConfirmationRequested(node=message.node, tokens=tuple(unknown)))
        for token in kept.left_out:
            deployment_id, replica = keys.parse_token(token)
            record = (await self.reservations.load(deployment_id)).record
            if adopting.is_known(record, token):
                messages += lifecycle.orders(record, replica=replica, node=message.node)
        async with self.redis.pipeline(transaction=False) as pipeline:
            pipeline.hkeys(keys.held(message.node))
            pipeline.hgetall(keys.drifted(message.node))
            fields, known = await pipeline.execute()
        messages += await self._on_lost_gpus(message, fields)
        states = [state for node in changed if node.node == message.node for state in node.gpus]
        return [*messages, *await self._drifted(message, states, known)]

    async def _on_lost_gpus(self, message: NodeReported, fields: Sequence[str]) -> list[ReplicaLost]:
        """What is held on GPUs that their node no longer has."""
        there = {gpu.id for gpu in message.gpus}
        by = "" if message.number is None else f"{message.node}/{message.number}"
        lost: list[ReplicaLost] = []
        for gpu, _, token in (field.rpartition("|") for field in fields):
            if gpu in there or token.endswith("/hold"):
                continue
            deployment_id, _ = keys.parse_token(token)
            held = (await self.reservations.load(deployment_id)).record.holding(token)
            if held is not None and await self._is_loss_to_tell(token, by):
                lost.append(_lost(deployment_id, held, f"node {message.node} no longer has GPU {gpu}"))
        return lost

    async def _drifted(
        self, message: NodeReported, states: Sequence[GpuState], known: Mapping[str, str]
    ) -> list[MemoryDrifted]:
        """Those that did not before; a report that is handled again says the same again."""
        told: list[MemoryDrifted] = []
        report = str(message.number)
        for state in states:
            gpu = state.gpu.id
            if state.drift is None:
                if gpu in known:
                    await self.redis.hdel(keys.drifted(message.node), gpu)
            elif known.get(gpu) == report or await self.redis.hsetnx(keys.drifted(message.node), gpu, report):
                told.append(drifted(message.node, state))
        return told

    async def _is_loss_to_tell(self, token: str, by: str) -> bool:
        """Args:
        by: the sweep or report that shows it; '': it cannot be told from others.
        """
        key = keys.said(token, "lost")
        if await self.redis.set(key, by, nx=True, ex=LOST_S):
            return True
        return bool(by) and await self.redis.get(key) == by

    async def _is_late_to_tell(self, token: str) -> bool:
        return bool(await self.redis.set(keys.said(token, "late"), "1", nx=True, ex=LATE_S))


def _lost(deployment_id: UUID, held: Held, detail: str) -> ReplicaLost:
    at = held.placement
    return ReplicaLost(deployment_id=deployment_id, replica=at.replica, token=at.token, node=at.node, detail=detail)
