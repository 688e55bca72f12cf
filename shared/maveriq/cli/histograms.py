"""What a command is told of the sizes of requests: a histogram, or a trace, which the planner's package reads."""

from pathlib import Path
from typing import Any

from maveriq.cli.api import CommandFailed
from maveriq.cli.reading import planners, read_json, read_text
from maveriq.contracts.provisioning import ProvisioningRefused

ENTRY_POINTS = "maveriq.histograms"


def sizes_of(histogram: Path | None, trace: Path | None) -> Any:
    """The histogram's JSON; None where neither is given. Raises CommandFailed."""
    if histogram is not None and trace is not None:
        raise CommandFailed("--histogram says the sizes already; give one of the two", field="--trace", exit_code=2)
    if histogram is not None:
        return read_json(histogram, "--histogram")
    if trace is None:
        return None
    try:
        return planners(ENTRY_POINTS)(read_text(trace, "--trace")).model_dump(mode="json")
    except ProvisioningRefused as refused:
        fault = refused.fault
        raise CommandFailed(f"{fault.problem}; {fault.remedy}", field="--trace", exit_code=2) from refused
