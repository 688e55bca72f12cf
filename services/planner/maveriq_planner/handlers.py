"""fingerprint.measured -> plan.computed | plan.previewed | deployment.failed"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from time import monotonic

import structlog

from maveriq.contracts import (
    DeploymentFailed,
    FailureReason,
    FingerprintMeasured,
    Plan,
    PlanComputed,
    PlannedFleet,
    PlanPreviewed,
)
from maveriq.contracts.provisioning import ProvisioningRefused
from maveriq_planner.explanation import explain
from maveriq_planner.families import mixing
from maveriq_planner.fleets import fleet_of, only_fleet
from maveriq_planner.listing import listing
from maveriq_planner.reach import within_reach
from maveriq_planner.room import seated_first
from maveriq_planner.search import Outcome, search
from maveriq_planner.space import Sources, Space, by_law

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Handlers:
    max_pp: int
    prices: Mapping[str, float] = field(default_factory=dict[str, float])
    sources: Sources = by_law
    """Which law speaks for what."""
    clock: Callable[[], float] = monotonic
    """Seconds since whenever, for time limits."""

    async def on_fingerprint_measured(
        self, event: FingerprintMeasured
    ) -> PlanComputed | PlanPreviewed | DeploymentFailed:
        intent, model = event.admission.intent, event.admission.model
        named = (*(intent.gpu_types or ()), *self.prices)
        tokens = min(intent.workload.input_tokens + intent.workload.output_tokens, event.facts.max_context_tokens)
        estimators, silent = self.sources(model, event.facts, event.fingerprints, event.calibrations, named, tokens)
        space = Space(model, event.facts, estimators, self.max_pp, self.prices, silent)
        space = mixing(space, event, tokens)
        outcome = search(intent, space)
        fleet = await asyncio.to_thread(self._fleet, event, space, outcome)  # seconds, for a hundred buckets
        if not len(outcome.met) and fleet is None:
            offers, beyond = within_reach(event.admission, space, outcome)
            return DeploymentFailed(
                deployment_id=event.deployment_id,
                reason=FailureReason.NO_FEASIBLE_PLAN,
                detail=explain(intent, space, outcome, offers) + beyond,
                counteroffers=offers,
            )
        answer = PlanPreviewed if event.admission.dry_run else PlanComputed
        listed = listing(outcome)
        candidates, num_fitting = seated_first(event.admission, event.facts.num_layers, listed.candidates)
        plan = Plan.model_construct(
            facts=event.facts,
            candidates=candidates,
            num_fitting=num_fitting,
            rejected=listed.rejected,
            front=listed.front,
            num_considered=outcome.num_considered,
            fleet=fleet,
        )
        return answer(deployment_id=event.deployment_id, admission=event.admission, plan=plan)

    def _fleet(self, event: FingerprintMeasured, space: Space, outcome: Outcome) -> PlannedFleet | None:
        """Where candidates meet the intent the plan is good without: one that fails its check is told, and left out."""
        find = fleet_of if len(outcome.met) else only_fleet
        try:
            return find(event.admission.intent, space, event.admission.fragments, self.clock)
        except ProvisioningRefused as refused:
            log.error("fleet left out", deployment_id=str(event.deployment_id), error=str(refused))
            return None
