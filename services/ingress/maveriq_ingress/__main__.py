"""Ingress: the door for intents, models and HTTP requests, and the record of every deployment."""

import asyncio
from collections.abc import Mapping
from contextlib import AsyncExitStack, suppress
from datetime import UTC, datetime

import structlog
from redis.asyncio import Redis

from maveriq.bus import Bus, QueueFull, Unavailable, Unroutable
from maveriq.running import main as run_service
from maveriq.running import side_by_side
from maveriq.streams import Streams
from maveriq.topology import INGRESS
from maveriq_ingress.accuracies import Accuracies
from maveriq_ingress.accuracy_handlers import AccuracyHandlers
from maveriq_ingress.accuracy_http import AccuracyApi
from maveriq_ingress.api import Api
from maveriq_ingress.briefs import Briefs
from maveriq_ingress.calibrations import Calibrations
from maveriq_ingress.calibrations_api import CalibrationsApi
from maveriq_ingress.changes import Changes
from maveriq_ingress.dead_requests import answering
from maveriq_ingress.defrag_http import DefragApi, Defragmentations
from maveriq_ingress.handlers import Handlers
from maveriq_ingress.http import app
from maveriq_ingress.inventory import Inventories
from maveriq_ingress.metrics import MetricsApi
from maveriq_ingress.models import Models
from maveriq_ingress.openai import OpenAi
from maveriq_ingress.openai_models import OpenAiModels
from maveriq_ingress.serving_http import listen, serve
from maveriq_ingress.settings import Settings
from maveriq_ingress.statuses import Statuses
from maveriq_ingress.traced_http import TracedHttp

RETRY_S = 1.0

log = structlog.get_logger()


async def run(bus: Bus, env: Mapping[str, str]) -> None:
    """Serve until cancelled.

    Raises:
        BadSetting: also where the HTTP port is taken.
    """
    settings = Settings.from_env(env)
    async with AsyncExitStack() as stack:
        listening = stack.enter_context(listen(settings))
        redis = Redis.from_url(settings.redis_url, decode_responses=True)  # pyright: ignore[reportUnknownMemberType]
        stack.push_async_callback(redis.aclose)
        models, statuses = Models(redis), Statuses(redis)
        inventories, calibrations = Inventories(redis), Calibrations(redis)
        handlers = Handlers(models, statuses, inventories, calibrations, bus, answering(bus), lambda: datetime.now(UTC))
        accuracy = AccuracyHandlers(models, Accuracies(redis))
        defragmentations = Defragmentations(redis)
        changes = Changes(statuses)
        await changes.open(bus)
        stack.push_async_callback(changes.close)
        streams = await Streams.open(bus, "ingress")
        stack.push_async_callback(streams.close)
        dead = await bus.consume_dead_requests(handlers.answer)
        stack.push_async_callback(dead.cancel)
        endpoints = [
            *Api(bus, handlers, changes, Briefs(handlers.statuses)).endpoints(),
            *CalibrationsApi(bus, calibrations, inventories).endpoints(),
            *AccuracyApi(bus, accuracy).endpoints(),
            *DefragApi(bus, defragmentations).endpoints(),
            *MetricsApi(handlers.metrics, calibrations, changes, inventories).endpoints(),
            *OpenAi(streams, changes, models).endpoints(),
            *OpenAiModels(models, changes).endpoints(),
        ]
        log.info("http listens", url="http://{}:{}".format(*listening.getsockname()[:2]))
        await side_by_side(
            bus.run(INGRESS, [*handlers.all(), *accuracy.all(), *defragmentations.all()]),
            serve(TracedHttp(app(endpoints, bus, redis), bus.spans), listening),
            changes.keep_fresh(),
            pass_on(bus, statuses),
        )


async def pass_on(bus: Bus, statuses: Statuses) -> None:
    """Publish again the intents that nobody has answered: a process may have died between keeping and publishing."""
    for waiting in await statuses.accepted():
        while True:
            with suppress(Unavailable, Unroutable, QueueFull):
                if not waiting.admission.dry_run:
                    await bus.open_requests(waiting.deployment_id)
                await bus.publish(waiting)
                break
            await asyncio.sleep(RETRY_S)


def main() -> None:
    run_service("ingress", run)


if __name__ == "__main__":
    main()
