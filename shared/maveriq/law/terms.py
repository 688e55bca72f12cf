"""Named terms and their sums. Pure: numbers or arrays in, the same out.

A quantity may be a number or a numpy array: the law uses arithmetic and comparisons only, so that the planner can
predict a whole space of configurations at once while a producer's package needs no numpy.
"""

from collections.abc import Mapping
from typing import Any

Quantity = Any
"""A float, or an array of them."""
Terms = Mapping[str, Quantity]
"""By the name of the constant that multiplies it."""


def added(*many: Terms) -> dict[str, Quantity]:
    total: dict[str, Quantity] = {}
    for terms in many:
        for name, value in terms.items():
            total[name] = total[name] + value if name in total else value
    return total


def scaled(terms: Terms, factor: Quantity) -> dict[str, Quantity]:
    return {name: value * factor for name, value in terms.items()}


def dot(constants: Mapping[str, float], terms: Terms) -> Quantity:
    """A term whose constant was fitted to 0 or never seen adds nothing: `scope.uncovered` says where that matters."""
    total: Quantity = 0.0
    for name, value in terms.items():
        constant = constants.get(name)
        if constant:
            total = total + constant * value
    return total
