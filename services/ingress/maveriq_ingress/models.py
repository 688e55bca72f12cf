"""The registered models, in Redis: one hash, name -> model and when it was registered."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from redis.asyncio import Redis
from redis.exceptions import WatchError

from maveriq.contracts import Model, Value

KEY = "maveriq:ingress:models"


class Registration(Value):
    model: Model
    registered_at: datetime


@dataclass(frozen=True, slots=True)
class Models:
    redis: Redis

    async def register(self, model: Model, now: datetime) -> None:
        """The last registration of a name counts."""
        registration = Registration(model=model, registered_at=now)
        await self.redis.hset(KEY, model.name, registration.model_dump_json())

    async def restore(self, model: Model, now: datetime) -> None:
        """Unless a model of its name is registered."""
        await self.redis.hsetnx(KEY, model.name, Registration(model=model, registered_at=now).model_dump_json())

    async def change(self, name: str, change: Callable[[Model], Model]) -> Model | None:
        """The model as changed, atomically; None where no such model is registered (any more).

        It keeps the time at which it was registered.
        """
        async with self.redis.pipeline() as pipe:
            while True:
                await pipe.watch(KEY)
                found = await pipe.hget(KEY, name)
                if found is None:
                    return None
                known = Registration.model_validate_json(found)
                changed = known.model_copy(update={"model": change(known.model)})
                pipe.multi()  # type: ignore[no-untyped-call]
                pipe.hset(KEY, name, changed.model_dump_json())
                try:
                    await pipe.execute()
                except WatchError:
                    continue  # it was registered again in between
                return changed.model

    async def get(self, name: str) -> Registration | None:
        found = await self.redis.hget(KEY, name)
        return None if found is None else Registration.model_validate_json(found)

    async def all(self) -> dict[str, Registration]:
        """By name, in order of the names."""
        found = await self.redis.hgetall(KEY)
        registrations = (Registration.model_validate_json(text) for text in found.values())
        return {one.model.name: one for one in sorted(registrations, key=lambda one: one.model.name)}
