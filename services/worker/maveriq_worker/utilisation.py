"""How busy devices were lately. Pure: readings in, the share of the window at which each was busy out."""

from collections import deque

WINDOW_S = 120.0  # MaverIQ's
BUSY = 0.01  # MaverIQ's: utilisation above which a GPU counts as busy


class Utilisation:
    """Of one node's devices."""

    def __init__(self) -> None:
        self._readings: dict[str, deque[tuple[float, bool]]] = {}

    def read(self, gpu: str, at_s: float, utilisation: float) -> float:
        """Take a reading, from 0 to 1; the share of the readings in the window that were busy, this one counted."""
        readings = self._readings.setdefault(gpu, deque())
        readings.append((at_s, utilisation > BUSY))
        while readings[0][0] <= at_s - WINDOW_S:
            readings.popleft()
        return sum(busy for _, busy in readings) / len(readings)
