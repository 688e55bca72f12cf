"""Reads what a command was given: files ('-' is standard input), and the installed package that answers it."""

import json
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from maveriq.cli.api import CommandFailed


def read_text(file: Path, field: str) -> str:
    """Raises CommandFailed, naming `field`, the option or argument that the file was given with."""
    try:
        return sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise CommandFailed(f"cannot read {file}: {error}", field=field, exit_code=2) from error


def read_json(file: Path, field: str) -> Any:
    """Raises CommandFailed, as `read_text`."""
    try:
        return json.loads(read_text(file, field))
    except ValueError as error:
        raise CommandFailed(f"{file} is no JSON: {error}", field=field, exit_code=2) from error


def planners(group: str) -> Any:
    """What the planner's distribution names under a group of entry points.

    Raises:
        CommandFailed: the planner is not installed here.
    """
    for point in entry_points(group=group):
        try:
            return point.load()
        except ImportError as error:
            raise CommandFailed(f"the planner cannot start: {error}", code="not_installed") from error
    raise CommandFailed("the planner works it out: pip install maveriq-planner", code="not_installed")
