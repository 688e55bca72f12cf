"""Which GPUs are preferred among those that serve equally fast. Pure: free bytes and utilisation in, a cost each out.

A strategy only orders; every GPU that has room can be taken under each of them. MaverIQ, whose strategies the first
three are, excludes what it does not prefer, and waits for ever where nothing else has room.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from maveriq.contracts import Strategy

_STEPS = 100  # of utilisation: costs are integers, so that sums of them are exact
_FEWER_THAN = 2**15  # sum of the steps of a replica's GPUs: 200 each at most
_LESS_THAN = 2**44  # sum of their free bytes


@dataclass(frozen=True, slots=True)
class Preference:
    strategy: Strategy = Strategy.BEST_FIT
    threshold: float = 0.7
    """Of `hybrid`: share of the window."""

    def costs(self, free_bytes: NDArray[np.int64], utilisation: NDArray[np.float64]) -> NDArray[np.int64]:
        """Of taking each GPU; those with the least sum are preferred.

        The named strategies look at the utilisation first and at the bytes left over second, `best_fit` the other way.

        Args:
            free_bytes: under 2**38 of each GPU, for at most 64 GPUs of a replica.
            utilisation: share of the window in which it was busy.
        """
        steps = np.rint(_STEPS * _unwanted(self, np.clip(utilisation, 0.0, 1.0))).astype(np.int64)
        if self.strategy is Strategy.BEST_FIT:
            return free_bytes * _FEWER_THAN + steps
        return steps * _LESS_THAN + free_bytes

    def at_least(self, free_bytes: NDArray[np.int64]) -> NDArray[np.int64]:
        """What GPUs with so many free bytes together cost, whichever they are."""
        return free_bytes * _FEWER_THAN if self.strategy is Strategy.BEST_FIT else free_bytes


def _unwanted(preference: Preference, share: NDArray[np.float64]) -> NDArray[np.float64]:
    """From 0 to 2, the most wanted first."""
    match preference.strategy:
        case Strategy.PACKING:
            return np.where(share < 1.0, 1.0 - share, 2.0)
        case Strategy.HYBRID:
            return np.where(share < preference.threshold, preference.threshold - share, 1.0 + share)
        case Strategy.LEAST_LOADED | Strategy.BEST_FIT:
            return share
