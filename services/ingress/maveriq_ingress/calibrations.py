"""What is known of each GPU type's calibration, and how far one under way is, in Redis.

maveriq:ingress:calibrations                set: <engine>|<gpu type>
maveriq:ingress:calibration:<one of them>   hash: rank, when it was fitted; text, Calibration as JSON
maveriq:ingress:calibration-progress:<id>   hash: rig, where it was asked for over HTTP; rank, how far it is; text,
                                            CalibrationProgressed as JSON. Kept for a day
maveriq:ingress:calibration-latest          hash: rig -> its latest calibration

Messages are handled side by side and may come again, so what is newer is decided by what they say, in Redis.
"""

from dataclasses import dataclass
from uuid import UUID

from redis.asyncio import Redis

from maveriq.contracts import Calibration, CalibrationProgressed, CalibrationRequested, CalibrationUpdated

NAMES = "maveriq:ingress:calibrations"
LATEST = "maveriq:ingress:calibration-latest"
KEEP_S = 24 * 3600  # after its last news
END = 1_000_000  # models that no programme has

_KEEP = """
if tonumber(redis.call('hget', KEYS[1], 'rank') or '-1') > tonumber(ARGV[1]) then return 0 end
redis.call('hset', KEYS[1], 'rank', ARGV[1], 'text', ARGV[2])
return 1
"""


@dataclass(frozen=True, slots=True)
class Calibrations:
    redis: Redis

    async def accept(self, asked: CalibrationRequested) -> None:
        """From now on its id is known, though its profiler has said nothing yet."""
        key = _progress(asked.calibration_id)
        await self.redis.hset(key, "rig", asked.node)
        await self.redis.expire(key, KEEP_S)

    async def forget(self, asked: CalibrationRequested) -> None:
        """It was passed on to nobody after all."""
        await self.redis.delete(_progress(asked.calibration_id))

    async def knows(self, calibration_id: UUID) -> bool:
        """Of all ingress processes any may have accepted it, or heard of it."""
        return bool(await self.redis.exists(_progress(calibration_id)))

    async def on_calibration_updated(self, message: CalibrationUpdated) -> None:
        new = message.calibration
        name = f"{new.engine}|{new.gpu_type}"
        await self._keep(_known(name), new.fitted_at.timestamp(), new.model_dump_json())
        await self.redis.sadd(NAMES, name)

    async def on_calibration_progressed(self, message: CalibrationProgressed) -> None:
        key = _progress(message.calibration_id)
        await self._keep(key, message.num_done + END * message.finished, message.model_dump_json())
        await self.redis.expire(key, KEEP_S)
        if not message.finished:  # one that another took the place of ends after that has begun
            await self.redis.hset(LATEST, message.node, str(message.calibration_id))

    async def all(self) -> list[Calibration]:
        """By engine and GPU type."""
        names = sorted(str(name) for name in await self.redis.smembers(NAMES))
        texts = [await self.redis.hget(_known(name), "text") for name in names]
        return [Calibration.model_validate_json(text) for text in texts if text is not None]

    async def under_way(self) -> list[CalibrationProgressed]:
        """Those that have not ended, by rig."""
        latest = await self.redis.hgetall(LATEST)
        heard = [await self.progress(UUID(str(latest[rig]))) for rig in sorted(latest)]
        return [one for one in heard if one is not None and not one.finished]

    async def progress(self, calibration_id: UUID) -> CalibrationProgressed | None:
        text = await self.redis.hget(_progress(calibration_id), "text")
        return None if text is None else CalibrationProgressed.model_validate_json(text)

    async def _keep(self, key: str, rank: float, text: str) -> None:
        """Unless something further is known."""
        await self.redis.eval(_KEEP, 1, key, repr(rank), text)


def _known(name: str) -> str:
    return f"maveriq:ingress:calibration:{name}"


def _progress(calibration_id: UUID) -> str:
    return f"maveriq:ingress:calibration-progress:{calibration_id}"
