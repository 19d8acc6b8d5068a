"""What the tests of commands have in common: a folder of files by name, and what a command printed."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Surgery = Callable[..., int]


@dataclasses.dataclass(frozen=True)
class Folder:
    """A folder with a model, facts and text."""

    path: Path

    def __getitem__(self, name: str) -> str:
        return str(self.path / name)


def printed(capsys: pytest.CaptureFixture[str]) -> tuple[dict[str, Any], str]:
    """The one JSON object on stdout, and stderr."""
    out, err = capsys.readouterr()
    assert out.count("\n") == 1, err
    record = json.loads(out)
    assert isinstance(record, dict)
    return record, err
