"""fingerprint.measured -> plan.computed | plan.previewed | deployment.failed"""

from dataclasses import dataclass

from maveriq.contracts import (
    DeploymentFailed,
    FailureReason,
    FingerprintMeasured,
    Plan,
    PlanComputed,
    PlanPreviewed,
)
from maveriq_planner.counteroffers import counteroffers
from maveriq_planner.estimate import Fit, fit
from maveriq_planner.explanation import explain
from maveriq_planner.search import measured_space, search


@dataclass(frozen=True, slots=True)
class Handlers:
    max_pp: int
    fit: Fit = fit
    """The law."""

    async def on_fingerprint_measured(
        self, event: FingerprintMeasured
    ) -> PlanComputed | PlanPreviewed | DeploymentFailed:
        intent, model = event.admission.intent, event.admission.model
        space = measured_space(model, event.facts, event.fingerprints, max_pp=self.max_pp, fit=self.fit)
        outcome = search(intent, space)
        if not outcome.met:
            offers = counteroffers(intent, space, outcome)
            return DeploymentFailed(
                deployment_id=event.deployment_id,
                reason=FailureReason.NO_FEASIBLE_PLAN,
                detail=explain(intent, space, outcome, offers),
                counteroffers=offers,
            )
        answer = PlanPreviewed if event.admission.dry_run else PlanComputed
        plan = Plan(
            facts=event.facts,
            candidates=outcome.candidates(),
            rejected=outcome.rejections(),
            num_considered=outcome.num_considered,
        )
        return answer(deployment_id=event.deployment_id, admission=event.admission, plan=plan)
