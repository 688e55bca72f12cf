"""What is known of each GPU type's calibration, and how far one under way is, in Redis.

ingress:calibrations                     hash: <engine>|<gpu type> -> Calibration: the latest heard of
ingress:calibration-progress             hash: rig -> CalibrationProgressed: its latest
ingress:calibration-progress:<id>        CalibrationProgressed of one calibration, for a while after its end
"""

from dataclasses import dataclass
from uuid import UUID

from redis.asyncio import Redis

from maveriq.contracts import Calibration, CalibrationProgressed, CalibrationUpdated

KNOWN = "ingress:calibrations"
PROGRESS = "ingress:calibration-progress"
KEEP_S = 24 * 3600


@dataclass(frozen=True, slots=True)
class Calibrations:
    redis: Redis

    async def on_calibration_updated(self, message: CalibrationUpdated) -> None:
        new = message.calibration
        field = f"{new.engine}|{new.gpu_type}"
        found = await self.redis.hget(KNOWN, field)
        if found is None or Calibration.model_validate_json(found).fitted_at <= new.fitted_at:
            await self.redis.hset(KNOWN, field, new.model_dump_json())

    async def on_calibration_progressed(self, message: CalibrationProgressed) -> None:
        """The end stays the end, should an earlier message come again after it."""
        known = await self.progress(message.calibration_id)
        if known is None or not known.finished:
            text = message.model_dump_json()
            await self.redis.set(f"{PROGRESS}:{message.calibration_id}", text, ex=KEEP_S)
            await self.redis.hset(PROGRESS, message.node, text)

    async def all(self) -> list[Calibration]:
        """By engine and GPU type."""
        found = await self.redis.hgetall(KNOWN)
        return [Calibration.model_validate_json(found[field]) for field in sorted(found)]

    async def under_way(self) -> list[CalibrationProgressed]:
        """Those that have not ended, by rig."""
        found = await self.redis.hgetall(PROGRESS)
        heard = (CalibrationProgressed.model_validate_json(found[rig]) for rig in sorted(found))
        return [one for one in heard if not one.finished]

    async def progress(self, calibration_id: UUID) -> CalibrationProgressed | None:
        found = await self.redis.get(f"{PROGRESS}:{calibration_id}")
        return None if found is None else CalibrationProgressed.model_validate_json(found)
