"""What reaches a terminal: texts of facts and models as text, so that none of them moves the cursor or clears lines."""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

from rich.console import Console
from rich.text import Text

from surgery.visible import visible


class Printer(Console):
    """A console that shows what is unseen in every text it is given, in cells, titles and captions too."""

    def render_str(self, text: str, **options: Any) -> Text:
        """As rich does it, of the text made visible."""
        return super().render_str(visible(text), **options)


class Formatter(logging.Formatter):
    """Messages on one terminal with everything else."""

    def format(self, record: logging.LogRecord) -> str:
        """The message, made visible."""
        return visible(super().format(record))


def complain(what: object) -> None:
    """Print what went wrong, also for somebody who reads nothing else."""
    print(f"surgery: {visible(str(what))}", file=sys.stderr)


def as_json(record: dict[str, Any]) -> str:
    """A record on one line; what is unseen is escaped, which JSON reads as the same text."""
    return visible(json.dumps(record, ensure_ascii=False), r"\u{:04x}")


def listen(level: int) -> None:
    """Print messages of this level and above."""
    handler = logging.StreamHandler()
    handler.setFormatter(Formatter("%(message)s"))
    logging.basicConfig(level=level, handlers=[handler])
