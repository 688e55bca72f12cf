"""Measurements of accuracy, asked for and done, in Redis for a week after the last: maveriq:ingress:accuracy:<id>."""

from dataclasses import dataclass
from uuid import UUID

from redis.asyncio import Redis
from redis.exceptions import WatchError

from maveriq.contracts import AccuracyMeasured, AccuracyProgressed, AccuracyRequested
from maveriq.contracts.accuracy import AccuracyRecord, VariantProgress, layers_label

KEEP_S = 7 * 24 * 3600


@dataclass(frozen=True, slots=True)
class Accuracies:
    redis: Redis

    async def get(self, accuracy_id: UUID) -> AccuracyRecord | None:
        found = await self.redis.get(_key(accuracy_id))
        return None if found is None else AccuracyRecord.model_validate_json(found)

    async def begin(self, asked: AccuracyRequested) -> AccuracyRecord:
        """Claim the id. Of two requests the first has it: the record says which."""
        record = AccuracyRecord(
            accuracy_id=asked.accuracy_id,
            model=asked.model.name,
            variants=tuple(map(layers_label, asked.layers)) or tuple(each.label for each in asked.model.variants),
            max_tokens=asked.max_tokens,
            layers=asked.layers,
        )
        await self.redis.set(_key(asked.accuracy_id), record.model_dump_json(), nx=True, ex=KEEP_S)
        return await self.get(asked.accuracy_id) or record

    async def learn(self, news: AccuracyProgressed | AccuracyMeasured) -> None:
        """Fold one message in, atomically. Again, or late, is harmless."""
        key = _key(news.accuracy_id)
        async with self.redis.pipeline() as pipe:
            while True:
                await pipe.watch(key)
                found = await pipe.get(key)
                if found is None:
                    return
                pipe.multi()  # type: ignore[no-untyped-call]
                changed = folded(AccuracyRecord.model_validate_json(found), news)
                pipe.set(key, changed.model_dump_json(), ex=KEEP_S)
                try:
                    await pipe.execute()
                except WatchError:
                    continue  # other news came in between
                return


def folded(record: AccuracyRecord, news: AccuracyProgressed | AccuracyMeasured) -> AccuracyRecord:
    """Pure: the record with one message more. What is finished stays as it is."""
    if record.finished:
        return record
    if isinstance(news, AccuracyMeasured):
        found: dict[str, object] = {"reference": news.reference, "results": news.variants}
        found |= {"sensitivity": news.sensitivity, "num_tokens": news.num_tokens, "problem": news.problem}
        return record.model_copy(update={"finished": True, **found})
    now = VariantProgress(variant=news.variant, num_done=news.num_done, num_tokens=news.num_tokens)
    known = {each.variant: each for each in record.progress}
    known[news.variant] = now
    return record.model_copy(update={"progress": tuple(known.values())})


def _key(accuracy_id: UUID) -> str:
    return f"maveriq:ingress:accuracy:{accuracy_id}"
