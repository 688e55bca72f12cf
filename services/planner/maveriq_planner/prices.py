"""What a GPU costs an hour. Pure: the text of MAVERIQ_PRICES in, money by GPU type out."""

from collections.abc import Mapping, Sequence
from math import isfinite
from types import MappingProxyType

NAME = "MAVERIQ_PRICES"


def example(gpu_types: Sequence[str]) -> str:
    """Prices of these, to be filled in."""
    return f'{NAME}="{",".join(f"{name}=0.80" for name in gpu_types)}"'


def prices(text: str) -> Mapping[str, float]:
    """Raises ValueError, with words that say what to give."""
    found: dict[str, float] = {}
    for entry in filter(None, (part.strip() for part in text.split(","))):
        name, separator, number = (part.strip() for part in entry.rpartition("="))
        if not separator or not name:
            shown = example(["NVIDIA L4", "NVIDIA H100 80GB HBM3"])
            raise ValueError(f"give a GPU type and its price an hour, as in {shown}; {entry!r} is not that")
        if name in found:
            raise ValueError(f"{name} has two prices")
        found[name] = _price(name, number)
    return MappingProxyType(found)


def _price(name: str, number: str) -> float:
    try:
        value = float(number)
    except ValueError:
        raise ValueError(f"the price of {name} is not a number: {number!r}") from None
    if not isfinite(value) or value <= 0:
        raise ValueError(f"the price of {name} must be more than 0, not {number}")
    return value
