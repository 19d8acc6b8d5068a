"""Options of the command line's commands, those that all of them take, and how a function becomes a command."""

from __future__ import annotations

import functools
import inspect
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

import edits
import surgery
from surgery.commands.terminal import Printer, as_json, complain, listen
from surgery.errors import SurgeryError, check_choice
from surgery.fact import Fact, check_characters
from surgery.model import Model, load
from surgery.privacy import KEEPS
from surgery.verification.attack import PROFILES
from surgery.verification.attacks import ATTACKS
from surgery.verification.verify import MOST_SEED

FactsFile = Annotated[
    Path, typer.Option("--facts", help="Facts file: JSONL, CounterFact, known facts, relations or TOFU.")
]
MaybeFacts = Annotated[Path | None, typer.Option("--facts", help="Facts file, of any layout that can be read.")]
Method = Annotated[str, typer.Option(help=f"How: {', '.join(edits.METHODS)}.")]
Layer = Annotated[
    str | None, typer.Option(help="Which layer, such as 5, or layers, 4-8; default: those the method recommends.")
]
Corpus = Annotated[
    Path | None, typer.Option(help="Text to fit key statistics on, for a model that has none; read as stats reads it.")
]
LIMITS = {"relative-change": "relative_change", "value-norm": "value_norm", "perplexity": "perplexity"}
RAISING = f"--limits NAME=NUMBER, NAME one of {', '.join(LIMITS)}"
LimitsGiven = Annotated[
    str | None,
    typer.Option(
        "--limits",
        help="Where to stop before the model collapses, NAME=NUMBER,NAME=NUMBER: relative-change of a weight (1 by "
        "default), value-norm in units of the first values' (4), perplexity in units of the model's own (1.5).",
    ),
]
Names = Annotated[
    float | None,
    typer.Option(
        "--names",
        help="What nearly the same names weigh, which should keep their own answers: 0 is the published way, and the "
        "default of removals; 30 the default of rewrites, over the fourth root of how many subjects there are.",
    ),
]
OutFile = Annotated[Path, typer.Option("--out", help="File to write.")]
OutFolder = Annotated[Path, typer.Option("--out", help="Folder to write into.")]
ReportFolder = Annotated[Path, typer.Option("--report", help="Folder for report.html and report.json.")]
KeepFacts = Annotated[
    str, typer.Option("--keep-facts", help=f"How the file written keeps the facts: {', '.join(KEEPS)}.")
]
MaybeKeepFacts = Annotated[
    str | None, typer.Option("--keep-facts", help=f"peft: as what facts go along: {', '.join(KEEPS)}; default: as is.")
]
Profile = Annotated[str, typer.Option(help=f"How much verification tries: {', '.join(PROFILES)}.")]
Attacks = Annotated[
    str | None, typer.Option(help=f"These attacks, NAME,NAME, instead of the profile's: {', '.join(ATTACKS)}.")
]
DEFAULT = "default"
"""Names the default model where leaving --model away means none."""


@dataclass(frozen=True)
class Run:
    """The options every command takes."""

    model: Annotated[str | None, typer.Option(help="Hub id, folder or .gguf file; default: SmolLM2-135M-Instruct.")] = (
        None
    )
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1; default: a GPU if there is one.")] = None
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16, float16; default: float32 on the CPU.")] = None
    given_seed: Annotated[
        int | None, typer.Option("--seed", min=0, max=MOST_SEED, help="Of every random draw; default: 1, to verify 0.")
    ] = None
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")] = False

    @property
    def seed(self) -> int:
        """Of every random draw."""
        return 1 if self.given_seed is None else self.given_seed

    @property
    def verify_seed(self) -> int:
        """Of what a verification draws; its default is that of `surgery.verify`."""
        return 0 if self.given_seed is None else self.given_seed

    def load(self) -> Model:
        """The model the options name."""
        started = time.perf_counter()
        model = load(None if self.model == DEFAULT else self.model, device=self.device, dtype=self.dtype)
        self.say(f"{model.source} on {model.device} in {model.dtype}, {time.perf_counter() - started:.1f} s", dim=True)
        return model

    @property
    def talks(self) -> bool:
        """Somebody reads along."""
        return not (self.quiet or self.json)

    def say(self, what: Any, *, dim: bool = False) -> None:
        """Print for somebody who reads along."""
        if self.talks:
            Printer(soft_wrap=isinstance(what, str), emoji=False).print(
                what, style="dim" if dim else None, markup=not isinstance(what, str), highlight=False
            )

    def complain(self, what: str) -> None:
        """Print what did not go as asked, also for somebody who reads nothing else."""
        complain(what)

    def result(self, record: dict[str, Any]) -> None:
        """Print for a program."""
        if self.json and not self.quiet:
            print(as_json(record))


def command(app: typer.Typer, function: Callable[..., int | None]) -> None:
    """Make a function of `run: Run` and its own options a command that takes the common options too."""
    hints = get_type_hints(function, include_extras=True)
    common = get_type_hints(Run, include_extras=True)
    own = [one for one in inspect.signature(function).parameters.values() if one.name != "run"]
    defaults = {name: getattr(Run, name) for name in common}

    @functools.wraps(function)
    def called(**given: Any) -> None:
        run = Run(**{name: given.pop(name) for name in common})
        listen(logging.ERROR if run.quiet or run.json else logging.WARNING)
        raise typer.Exit(function(run, **given) or 0)

    keyword = inspect.Parameter.KEYWORD_ONLY
    kept = [one.replace(kind=keyword, annotation=hints[one.name]) for one in own]
    added = [inspect.Parameter(n, keyword, default=defaults[n], annotation=kind) for n, kind in common.items()]
    called.__signature__ = inspect.Signature(kept + added)  # type: ignore[attr-defined]
    app.command(name=function.__name__.removesuffix("_"))(called)


def facts_from(file: Path | None, subject: str | None, template: str | None, target: str | None) -> list[Fact]:
    """The facts of a file, or the one given by its parts."""
    inline = (subject, template, target)
    if file is not None and any(one is not None for one in inline):
        raise SurgeryError("give --facts, or --subject, --template and --target, not both")
    if file is not None:
        return surgery.read_facts(file)
    if subject is None or template is None or target is None:
        raise SurgeryError("give --facts, or all of --subject, --template and --target")
    return [check_characters(Fact(subject=subject, template=template, target=target))]


def lines_of(file: Path) -> list[str]:
    """The lines of a text file."""
    try:
        return file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SurgeryError(
            f"cannot read the text file {file}: {getattr(error, 'strerror', None) or 'not UTF-8'}"
        ) from error


def layers_of(text: str) -> list[int]:
    """Layers written as 4, 4-8 or 4,6,9."""
    try:
        parts = [[int(n) for n in part.split("-")] for part in text.split(",")]
        return [layer for part in parts for layer in range(part[0], part[-1] + 1)]
    except ValueError:
        raise SurgeryError(f"{text!r} names no layers; write 4, 4-8 or 4,6,9") from None


def limits_of(text: str) -> edits.Limits:
    """Limits written as relative-change=2 or relative-change=2,perplexity=3; those not named keep their defaults.

    Raises:
        SurgeryError: there is no such limit, or no number above 0 for it.
    """
    given: dict[str, Any] = {}
    for part in text.split(","):
        name, _, number = (one.strip() for one in part.partition("="))
        check_choice("limit", name, LIMITS)
        try:
            given[LIMITS[name]] = float(number)
        except ValueError:
            raise SurgeryError(f"{part.strip()!r} sets no limit; write a number, as {name}=2") from None
    return edits.Limits(**given)


def limits_told(limits: edits.Limits) -> str:
    """Limits as an option writes them."""
    return ",".join(f"{name}={getattr(limits, field):g}" for name, field in LIMITS.items())
