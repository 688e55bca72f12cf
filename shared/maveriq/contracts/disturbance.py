"""How far a measurement is to be trusted that others disturbed. Pure: the share of the device that they took in."""

from collections.abc import Iterable
from math import log

QUIET_SHARE = 0.05
"""Of a device. Where others took more, a measurement is provisional: it is made again once they are gone."""
_NINE_OF_TEN = 1.645  # standard deviations
_MOST = 0.99


def others_error(others: float) -> float:
    """Relative standard error of what was measured while others took that share.

    Shared evenly in time, a device leaves 1 - others of it, so that a reading is too long by 1 / (1 - others): there
    ends the interval that holds nine cases of ten.
    """
    return -log(1.0 - min(others, _MOST)) / _NINE_OF_TEN if others > QUIET_SHARE else 0.0


def nine_of_ten(shares: Iterable[float | None]) -> float:
    """What others took at most, but for one reading in ten; 0 where nobody could tell."""
    known = sorted(share for share in shares if share is not None)
    return known[round(0.9 * (len(known) - 1))] if known else 0.0
