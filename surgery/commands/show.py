"""`surgery show`: one figure of one fact, other than a causal trace, with its numbers."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

import locate
from surgery.commands.options import MaybeFacts, Run, facts_from
from surgery.errors import SurgeryError
from surgery.fact import Fact
from surgery.figures import save
from surgery.files import check_writable, written_whole
from surgery.model import Model

VIEWS: dict[str, Callable[[Model, Fact], Any]] = {
    "lens": locate.logit_lens,
    "layers": partial(locate.direct_logit_attribution, by="layer"),
    "heads": partial(locate.direct_logit_attribution, by="head"),
    "knockout": locate.attention_knockout,
    "neurons": locate.attribute_neurons,
    "screen": locate.screen,
}
ENDINGS = (".png", ".pdf", ".svg")


def show(
    run: Run,
    view: Annotated[str, typer.Argument(help=f"What to show: {', '.join(VIEWS)}.")],
    out: Annotated[Path, typer.Option("--out", help="Figure to write, .png, .pdf or .svg; numbers go beside it.")],
    facts: MaybeFacts = None,
    subject: Annotated[str | None, typer.Option(help="The subject, as it stands in the prompt.")] = None,
    template: Annotated[str | None, typer.Option(help="The prompt with {} in the subject's place.")] = None,
    target: Annotated[str | None, typer.Option(help="The answer.")] = None,
) -> None:
    """Draw the logit lens, logit attribution, attention knockout, neurons or a gradient screen of the first fact."""
    fact = facts_from(facts, subject, template, target)[0]
    if view not in VIEWS:
        raise SurgeryError(f"there is nothing called {view!r} to show; choose {', '.join(VIEWS)}")
    if out.suffix not in ENDINGS:
        raise SurgeryError(f"cannot write a figure as {out.name!r}; end it in {', '.join(ENDINGS)}")
    check_writable(out)
    found = VIEWS[view](run.load(), fact)
    save(found.plot(), out)
    numbers = out.with_suffix(".json")
    with written_whole(numbers) as temporary:
        temporary.write_text(json.dumps(found.as_record(), ensure_ascii=False), encoding="utf-8")
    run.say(f"{out}, {numbers}")
    run.result({"figure": str(out), "numbers": str(numbers)})
