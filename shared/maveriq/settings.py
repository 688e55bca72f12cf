"""Reads environment variables once, at the start: a bad value stops it with the variable's name."""

from collections.abc import Callable, Mapping
from typing import TypeVar

T = TypeVar("T")


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
