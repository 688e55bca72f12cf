"""Answers `maveriq provision`, which finds it by its entry point: adds the shipped catalogue and the clock."""

from functools import cache
from importlib.resources import files
from time import monotonic

from maveriq.contracts.provisioning import Catalogue, Fleet, ProvisioningRequest
from maveriq_planner.provision import provision

SHIPPED = "catalogue_2026-08-26.json"
"""List prices, by the day of the newest; a newer list is a new file."""


@cache
def shipped() -> Catalogue:
    text = files("maveriq_planner.provisioning").joinpath(SHIPPED).read_text(encoding="utf-8")
    return Catalogue.model_validate_json(text)


def answer(request: ProvisioningRequest) -> Fleet:
    """Raises ProvisioningRefused."""
    return provision(request, shipped(), monotonic)
