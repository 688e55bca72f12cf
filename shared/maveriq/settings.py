"""Reads environment variables once, at the start: a bad value stops it with the variable's name."""

import re
from collections.abc import Callable, Mapping
from typing import TypeVar

T = TypeVar("T")

_UNIT_BYTES = {
    "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
    "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40,
}  # fmt: skip


class BadSetting(Exception):
    """A setting is missing or makes no sense; the message names it and says what to give."""


def read(env: Mapping[str, str], name: str, parse: Callable[[str], T], default: T | None = None) -> T:
    """The value of `name` in `env`.

    Args:
        parse: raises ValueError on a bad value, with words that say what is expected.
        default: where the variable is not set (or empty); None makes it required.

    Raises:
        BadSetting: it is required and not set, or `parse` refused it.
    """
    text = env.get(name, "")
    if text == "":
        if default is None:
            raise BadSetting(f"{name} is not set")
        return default
    try:
        return parse(text)
    except ValueError as error:
        raise BadSetting(f"{name}={text!r}: {error}") from error


def num_bytes(text: str) -> int:
    """`512MiB` as 536870912. Raises ValueError."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]+)\s*", text)
    unit_bytes = _UNIT_BYTES.get(match[2].upper()) if match else None
    if match is None or unit_bytes is None:
        raise ValueError(f"{text.strip()} is not a size such as 512MiB")
    return int(float(match[1]) * unit_bytes)
