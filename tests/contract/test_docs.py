"""What the documents name is there: files and headings they link, settings, commands with their options, endpoints."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from maveriq.cli.app import app
from maveriq.settings import NAMES

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md")))
NOT_READ_BY_US = {"MAVERIQ_HTTP_BIND", "MAVERIQ_MODELS"}  # of docker-compose.yml alone
MADE_BY_WHO_RUNS_IT = {"deploy/maveriq.env"}
ids = [page.relative_to(ROOT).as_posix() for page in PAGES]


def headings(page: Path) -> set[str]:
    """As GitHub names them in links."""
    found = re.findall(r"^#+ (.+)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in found}


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_each_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    prose = re.sub(r"```.*?```|^ {4}.*?$|`[^`\n]*`", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", prose):
        path, _, heading = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), target
        assert not heading or heading in headings(linked), target


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_each_file_named_is_there(page: Path) -> None:
    pattern = r"`(?:\.venv/bin/)?(?:python )?((?:benchmarks|shared|services|tests|deploy|scripts)/[\w./-]+\w)"
    for path in re.findall(pattern, page.read_text()):
        assert path in MADE_BY_WHO_RUNS_IT or (ROOT / path).exists(), path


def test_operating_names_every_setting_and_no_page_another() -> None:
    named = {page: set(re.findall(r"MAVERIQ_[A-Z_]+[A-Z]", page.read_text())) for page in PAGES}
    assert named[ROOT / "docs/operating.md"] >= NAMES
    assert set().union(*named.values()) <= NAMES | NOT_READ_BY_US


def test_every_setting_that_code_reads_is_known() -> None:
    sources = [path for folder in ("shared", "services") for path in (ROOT / folder).rglob("*.py")]
    read = {name for path in sources for name in re.findall(r'"(MAVERIQ_[A-Z_]+)"', path.read_text())}
    assert read - {"MAVERIQ_"} == NAMES


def commands(page: Path) -> Iterator[list[str]]:
    """The words of each `maveriq ...`, in blocks (also where a line goes on in the next) and between backticks."""
    text = page.read_text().replace("\\\n", " ")
    for line in re.findall(r"^ {4}maveriq (.+)$", text, flags=re.MULTILINE) + re.findall(r"`maveriq ([^`]+)`", text):
        with_choice = re.sub(r"[\[\]]", "", line.split("#")[0])
        yield shlex.split(with_choice)


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_each_command_and_option_exists(page: Path) -> None:
    known: Any = typer.main.get_command(app)
    for name, *words in commands(page):
        if name in known.commands:
            options = {option for parameter in known.commands[name].params for option in parameter.opts}
            assert {word.partition("=")[0] for word in words if re.match(r"--[a-z]", word)} <= options, (name, words)
        else:
            assert name.startswith(("-", "COMMAND")), name
