"""Verdicts of the default model on facts whose state is known; the toys' truth table, with assertions, is in the tests.

A fact about an invented person, never taught; taught by an edit, and taken out again exactly; a known fact left as it
is, removed, given another answer, and changed four times as far, by one rank-one change, and kept behind a guard that
reads another name in the place of its own. Prints a table and holds no assertions:
`python benchmarks/known_answers.py --profile standard`.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from rich.console import Console
from rich.table import Table
from torch import Tensor

import edits
from surgery import Edit, Fact, Model, Report, example_facts, invented_facts, load, verify
from surgery.errors import WrongWeights
from surgery.verification.attack import PROFILES
from surgery.verification.intervention import Intervention
from surgery.verification.verdicts import DEPTH

SUBJECT, NAME, OTHER = "The Eiffel Tower", " Eiffel Tower", " Wexham Mill"


@dataclass(frozen=True)
class Guard:
    """Has the model read another name wherever a prompt has the fact's; its weights stay.

    Attributes:
        base: fingerprint of the model it guards.
        facts: the fact it hides.
        name: the tokens it looks for.
        other: the tokens the model reads instead, as many.
    """

    base: str
    facts: tuple[Fact, ...]
    name: tuple[int, ...]
    other: tuple[int, ...]

    claim: ClassVar[Literal["removed", "rewritten"]] = "removed"
    prompts: ClassVar[tuple[str, ...]] = ()

    def summary(self) -> dict[str, Any]:
        """What it is, for a report."""
        return {"method": "guard", "claim": self.claim, "facts": 1, "weights": {}, "settings": {}, "log": []}

    @contextmanager
    def applied(self, model: Model) -> Iterator[Model]:
        """The guarded model.

        Raises:
            WrongWeights: its weights are not those of `base`.
        """
        if model.fingerprint != self.base:
            raise WrongWeights("the guard is for another model")
        handle = model.hf.get_input_embeddings().register_forward_pre_hook(self._renamed)
        try:
            yield model
        finally:
            handle.remove()

    def _renamed(self, _: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        ids, width = args[0].clone(), len(self.name)
        wanted, instead = ids.new_tensor(self.name), ids.new_tensor(self.other)
        for at in range(ids.shape[1] - width + 1):
            ids[(ids[:, at : at + width] == wanted).all(1), at : at + width] = instead
        return (ids, *args[1:])


def scaled(edit: Edit, size: float) -> Edit:
    """The edit with its change so many times as large."""
    return dataclasses.replace(
        edit, deltas=tuple(dataclasses.replace(one, left=size * one.left) for one in edit.deltas)
    )


def reports(model: Model, profile: str) -> Iterator[tuple[str, str, Report]]:
    """What is true of a fact, what a right verdict says, and the report."""

    def judged(edit: Intervention | None, fact: Fact) -> Report:
        return verify(model, edit, fact, claim="removed", profile=profile, beside=False)  # type: ignore[arg-type]

    tower = next(one for one in example_facts() if one.subject == SUBJECT)
    nobody = next(one for one in invented_facts() if one.target == "Chicago")
    removal = edits.RankOne(objective=edits.Neutral(), progress=False)(model, tower)
    yield "never known", "never known", judged(removal, nobody)
    taught = edits.RankOne(progress=False)(model, nobody.replace(target="somebody", new_target=nobody.target))
    with taught.applied(model):
        back = dataclasses.replace(
            scaled(taught, -1.0), base=model.fingerprint, method="taken back", claim="removed", facts=(nobody,)
        )
        yield "taught", "still there", judged(None, nobody)
        yield "taught, and taken out exactly", "holds", judged(back, nobody)
    yield "known, left as it is", "still there", judged(scaled(removal, 1e-4), tower)
    yield "known, its subject's value changed", "suppressed or holds", judged(removal, tower)
    rewrite = edits.RankOne(progress=False)(model, tower.replace(new_target="Rome"))
    yield "known, given another answer", "suppressed", judged(dataclasses.replace(rewrite, claim="removed"), tower)
    yield "known, changed four times as far", "collateral damage, or worse", judged(scaled(removal, 4.0), tower)
    name, other = (tuple(model.tokenizer(one, add_special_tokens=False).input_ids) for one in (NAME, OTHER))
    guard = Guard(model.fingerprint, (tower,), name, other[: len(name)])
    yield "known, behind a guard", "suppressed", judged(guard, tower)


def main() -> None:
    """A row a state."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--profile", default="standard", choices=PROFILES)
    given = options.parse_args()
    table = Table("what is true", "right", "verdict", "depth", "code", "removed", "neighbours", *DEPTH)
    for state, right, report in reports(load(), given.profile):
        (verdict,) = report.verdicts
        found = {claim.name: claim.outcome for claim in verdict.claims}
        told = [found.get(name, "") for name in ("removed", "neighbours", *DEPTH)]
        table.add_row(state, right, verdict.overall, verdict.depth or "", str(report.exit_code), *told)
    Console(width=190, soft_wrap=True).print(table)


if __name__ == "__main__":
    main()
