"""Which estimators answer, by MAVERIQ_ESTIMATOR."""

from maveriq_planner.settings import Method
from maveriq_planner.space import Sources, by_law


def sources_of(method: Method) -> Sources:
    return by_law
