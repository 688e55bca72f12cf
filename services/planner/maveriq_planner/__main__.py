"""Wires the planner and runs it: `python -m maveriq_planner`."""

from collections.abc import Mapping

from maveriq import running
from maveriq.bus import Bus, Handler
from maveriq.contracts import FingerprintMeasured
from maveriq.topology import PLANNER
from maveriq_planner.handlers import Handlers
from maveriq_planner.settings import Settings
from maveriq_planner.sources import sources_of


async def run(bus: Bus, env: Mapping[str, str]) -> None:
    settings = Settings.from_env(env)
    handlers = Handlers(max_pp=settings.max_pp, prices=settings.prices, sources=sources_of(settings.estimator))
    await bus.run(PLANNER, [Handler(FingerprintMeasured, handlers.on_fingerprint_measured)])


def main() -> None:
    running.main("planner", run)


if __name__ == "__main__":
    main()
