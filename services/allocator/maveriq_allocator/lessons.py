"""What failures for memory taught, in Redis: a string each that ends by itself. Keys: see `keys`."""

from dataclasses import dataclass

from maveriq.contracts import Model, Placement, PlanComputed
from maveriq_allocator import keys
from maveriq_allocator.store import Store
from maveriq_allocator.teaching import KEEP_S, Lesson, learned, lesson_key, taught


@dataclass(frozen=True, slots=True)
class Lessons:
    redis: Store

    async def learn(self, model: Model, failed: Placement) -> Lesson:
        """Two that learn of the same at once may count as one: the next failure teaches the rest."""
        key = lesson_key(model, failed.candidate)
        known = (await self._read([key])).get(key)
        lesson = learned(known, failed)
        if lesson != known:
            await self.redis.set(keys.lesson(key), lesson.model_dump_json(), ex=KEEP_S)
        return lesson

    async def of(self, plan: PlanComputed) -> dict[str, Lesson]:
        """By key, of the candidates of a plan and of its fleet's parts."""
        parts = () if plan.plan.fleet is None else plan.plan.fleet.parts
        placed = (*plan.plan.candidates, *parts)
        return await self._read(sorted({lesson_key(plan.admission.model, each) for each in placed}))

    async def taught(self, plan: PlanComputed) -> PlanComputed:
        return taught(plan, await self.of(plan))

    async def _read(self, wanted: list[str]) -> dict[str, Lesson]:
        found = await self.redis.mget([keys.lesson(key) for key in wanted])
        return {key: Lesson.model_validate_json(text) for key, text in zip(wanted, found, strict=True) if text}
