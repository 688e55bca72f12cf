"""Which estimators answer, by MAVERIQ_ESTIMATOR."""

from maveriq.agreed_settings import Method
from maveriq_planner.estimators.aiconfigurator import VendorTables, installed
from maveriq_planner.estimators.published import by_published
from maveriq_planner.space import Sources, by_law


def sources_of(method: Method) -> Sources:
    """Raises BadSetting: the method needs what is not installed."""
    match method:
        case Method.LAW:
            return by_law
        case Method.MAVERIQ:
            return by_published
        case Method.AICONFIGURATOR:
            return VendorTables(installed())
