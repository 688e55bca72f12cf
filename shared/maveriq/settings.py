"""Reads environment variables once, at the start: a bad value stops it with the variable's name."""

import re
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from typing import TypeVar
from urllib.parse import urlsplit

T = TypeVar("T")
C = TypeVar("C", bound=str)

PREFIX = "MAVERIQ_"
NAMES = frozenset(
    PREFIX + name
    for name in (
        "AMQP_URL", "CACHE_DIR", "CALIBRATE", "CALIBRATION_BUDGET_S", "DEVICES", "ENGINE", "ESTIMATOR", "GRACE_S",
        "HEADROOM", "HEALTH_PORT", "HTTP_HOST", "HTTP_PORT", "LOG_LEVEL", "MAX_PP", "NODE", "NODE_TIMEOUT_S", "PRICES",
        "PROFILE_BATCHES", "PROFILE_BUDGET_S", "PROFILE_DEVICE", "PROFILE_LAYERS", "PROFILE_PROMPTS", "QUOTAS",
        "REDIS_URL", "REPORT_S", "STRATEGY", "THREADS_PER_STAGE", "URL",
    )
)  # fmt: skip
"""Every variable that some service or the command line reads; docs/operating.md says what each means."""

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
        raise BadSetting(f"{name}={without_password(text)!r}: {error}") from error


def misspelt(env: Mapping[str, str]) -> dict[str, str]:
    """Variables that nobody reads but that are nearly named like one that is read, with that one."""
    strangers = (name for name in env if name.startswith(PREFIX) and name not in NAMES)
    near = ((name, get_close_matches(name, NAMES, n=1, cutoff=0.92)) for name in strangers)
    return {name: found[0] for name, found in near if found}


def without_password(text: str) -> str:
    """A value as it may be shown: whatever stands before an @ is a user and a password."""
    return re.sub(r"^(\w+://)?.*@", r"\1***@", text)


def whole(low: int, high: int) -> Callable[[str], int]:
    """Parses a whole number within these bounds."""

    def parse(text: str) -> int:
        number = int(text) if text.isascii() and text.isdecimal() else None
        if number is None or not low <= number <= high:
            raise ValueError(f"give a whole number from {low} to {high}")
        return number

    return parse


def number(low: float, high: float, unit: str) -> Callable[[str], float]:
    """Parses a number within these bounds.

    Args:
        unit: for people, in the plural.
    """

    def parse(text: str) -> float:
        try:
            found = float(text)
        except ValueError:
            found = float("nan")
        if not low <= found <= high:
            raise ValueError(f"give a number of {unit} from {low:g} to {high:g}")
        return found

    return parse


def one_of(choices: Iterable[C]) -> Callable[[str], C]:
    """Parses one of these words."""
    known = {str(choice): choice for choice in choices}

    def parse(text: str) -> C:
        if text not in known:
            raise ValueError(f"give one of {', '.join(known)}")
        return known[text]

    return parse


def url(schemes: tuple[str, ...], words: str) -> Callable[[str], str]:
    """Passes on a URL of one of these schemes; `words` say what is expected."""

    def parse(text: str) -> str:
        if not text.startswith(tuple(f"{scheme}://" for scheme in schemes)):
            raise ValueError(words)
        urlsplit(text).port  # noqa: B018  # raises ValueError where it is no number
        return text

    return parse


def num_bytes(text: str) -> int:
    """`512MiB` as 536870912. Raises ValueError."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]+)\s*", text)
    unit_bytes = _UNIT_BYTES.get(match[2].upper()) if match else None
    if match is None or unit_bytes is None:
        raise ValueError(f"{text.strip()} is not a size such as 512MiB")
    return int(float(match[1]) * unit_bytes)
