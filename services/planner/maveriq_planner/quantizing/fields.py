"""Fields of a parsed JSON object, each with a check and an error that names it. Pure: values in, typed values out."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import inf
from typing import cast

import numpy as np

from maveriq_planner.quantizing.pipeline import Array


class TablesError(ValueError):
    """A table cannot be read: which field, and what it needs."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field


@dataclass(frozen=True, slots=True)
class Fields:
    values: Mapping[str, object]
    path: str = ""

    @classmethod
    def of(cls, given: object, path: str = "") -> "Fields":
        if not isinstance(given, dict):
            raise TablesError(path or "file", "must be a JSON object")
        return cls(cast(dict[str, object], given), path)

    def inside(self, name: str) -> "Fields":
        return Fields.of(self._value(name), self._named(name))

    def number(self, name: str, default: float | None = None) -> float:
        if default is not None and name not in self.values:
            return default
        return _number(self._value(name), self._named(name))

    def whole(self, name: str, least: int, default: int | None = None) -> int:
        value = self.number(name, default)
        if value != int(value) or value < least:
            raise TablesError(self._named(name), f"{value:g} must be a whole number of at least {least}")
        return int(value)

    def items(self, name: str) -> list[object]:
        value = self._value(name)
        if not isinstance(value, list) or not value:
            raise TablesError(self._named(name), "must be a list, and not empty")
        return cast(list[object], value)

    def numbers(self, name: str, length: int) -> tuple[float, ...]:
        return _row(self._value(name), self._named(name), length)

    def matrix(self, name: str, width: int) -> Array:
        rows = [_row(row, f"{self._named(name)}[{i}]", width) for i, row in enumerate(self.items(name))]
        return np.array(rows)

    def by_batch(self) -> Iterator[tuple[int, float]]:
        for name in self.values:
            yield self._batch(name), self.number(name)

    def rows_by_batch(self, width: int) -> Iterator[tuple[int, tuple[float, ...]]]:
        for name in self.values:
            yield self._batch(name), _row(self.values[name], self._named(name), width, missing=inf)

    def by_batch_of(self, name: str) -> Iterator[tuple[int, float]]:
        """A number, or one for each batch; -1: the one that there is."""
        if isinstance(self._value(name), dict):
            yield from self.inside(name).by_batch()
        else:
            yield -1, self.number(name)

    def rows_by_batch_of(self, name: str, width: int) -> Iterator[tuple[int, tuple[float, ...]]]:
        if isinstance(self._value(name), dict):
            yield from self.inside(name).rows_by_batch(width)
        else:
            yield -1, _row(self.values[name], self._named(name), width, missing=inf)

    def _value(self, name: str) -> object:
        if name not in self.values:
            raise TablesError(self._named(name), "is missing")
        return self.values[name]

    def _named(self, name: str) -> str:
        return f"{self.path}.{name}" if self.path else name

    def _batch(self, name: str) -> int:
        try:
            batch = int(name)
        except ValueError:
            batch = 0
        if batch < 1:
            raise TablesError(self._named(name), "must be named by a batch, a whole number of at least 1")
        return batch


def _row(value: object, name: str, length: int, missing: float | None = None) -> tuple[float, ...]:
    """Args:
    missing: what null stands for; None: it is refused.
    """
    if not isinstance(value, list):
        raise TablesError(name, f"must be a list of {length} numbers")
    items = cast(list[object], value)
    if len(items) != length:
        raise TablesError(name, f"has {len(items)} numbers and needs {length}")
    return tuple(
        missing if each is None and missing is not None else _number(each, f"{name}[{i}]", finite=missing is None)
        for i, each in enumerate(items)
    )


def _number(value: object, name: str, *, finite: bool = True) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TablesError(name, f"{value!r} must be a number")
    if value < 0 or (finite and not np.isfinite(value)):
        raise TablesError(name, f"{value} must be finite and not negative")
    return float(value)
