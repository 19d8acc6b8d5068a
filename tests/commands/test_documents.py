"""Commands that the documents name: each is one, with these options, and none that it needs is missing."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer.main

from surgery.__main__ import app

ROOT = Path(__file__).parents[2]
LINE = re.compile(r"^\s*(?:- run: )?(surgery [a-z]+ .+)$", re.MULTILINE)
COMMANDS = [
    pytest.param(line, id=f"{path.name}: {line[:60]}")
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
    for line in LINE.findall(path.read_text(encoding="utf-8").replace("\\\n", " "))
]


def named(words: list[str]) -> tuple[Any, list[str]]:
    """The command that some words name, and the words after its name."""
    command: Any = typer.main.get_command(app)
    while hasattr(command, "commands"):
        command, words = command.commands[words[0]], words[1:]
    return command, words


def test_there_are_commands() -> None:
    assert len(COMMANDS) > 12


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_is_one(line: str) -> None:
    command, rest = named(shlex.split(line, comments=True)[1:])
    options = {name: one for one in command.params for name in one.opts if name.startswith("--")}
    assert {word for word in rest if word.startswith("--")} <= set(options)
    assert {name for name, one in options.items() if one.required} <= set(rest)
    values = {word: after for word, after in zip(rest, [*rest[1:], "--"], strict=True) if word in options}
    assert all(options[word].is_flag or not after.startswith("--") for word, after in values.items())
