"""Which removals survive which attack: every method on facts the model knows, a battery on each.

Facts are shipped ones whose answer is the model's likeliest, drawn by a seed; each is removed alone. Prints a table
and writes a figure of the shares of facts that withstand each attack; holds no assertions. Each fact's findings are
kept in the folder, so a run that was stopped goes on, and `--part 1/2` does every second fact for a second process:
`python benchmarks/league.py --facts 30 --out league`.

`--never-known 50` instead counts false alarms on facts that no model can know, asked of the unedited model: 60 about
invented people, and then invented subjects in the place of known ones; `--skip` leaves out those that floors were set
by. By chance one attack's largest lift is the fact's in one case of 21.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from rich.console import Console
from rich.table import Table

import edits
from surgery import Fact, Model, load, verify
from surgery.shipped import invented_facts
from surgery.store import kept
from surgery.verification import Baseline
from surgery.verification.attack import Attack
from surgery.verification.attacks import ATTACKS, attacks_named
from surgery.verification.controls import never_known

METHODS: dict[str, edits.Method | None] = {
    "no edit": None,
    "memit, neutral": edits.Mass(objective=edits.Neutral(), progress=False),
    "memit, suppress": edits.Mass(objective=edits.Suppress(), progress=False),
    "rank-one, neutral": edits.RankOne(objective=edits.Neutral(), progress=False),
    "ft-m, suppress": edits.FineTune(objective=edits.Suppress(), progress=False),
    "lora, suppress": edits.LoRA(objective=edits.Suppress(), progress=False),
    "zero-neurons": edits.ZeroNeurons(progress=False),
}
WIDE = ("memit, neutral", "rank-one, neutral")
"""Methods that are tried by more attacks than the others."""
TRIED = (
    "paraphrases",
    "reversed",
    "logit lens",
    "probability delta",
    "answer prefixes",
    "int4",
    "related relearning",
)
MORE = tuple(name for name in ATTACKS if name not in (*TRIED, "unrelated relearning", "sampling", "stray spaces"))
"""What they are tried by besides: all but three slow ones, the last of which has no power on nearly any fact."""


def judged(
    model: Model, baseline: Baseline, method: edits.Method | None, fact: Fact, attacks: Sequence[Attack]
) -> dict[str, Any]:
    """One fact removed alone, and what the battery says of it."""
    clock = time.perf_counter()
    edit = None if method is None else method(model, [fact])
    seconds = time.perf_counter() - clock
    clock = time.perf_counter()
    report = verify(model, edit, [fact], attacks=attacks, claim="removed", beside=False, baseline=baseline)
    (verdict,) = report.verdicts
    findings = report.battery.findings
    return {
        "findings": {one.attack: one.outcome for one in findings},
        "lifts": {one.attack: [lift and vars(lift) for lift in (one.before, one.after)] for one in findings},
        "claims": {claim.name: claim.outcome for claim in verdict.claims},
        "overall": verdict.overall,
        "depth": verdict.depth,
        "drift": report.drift.divergence if report.drift else 0.0,
        "seconds": seconds,
        "battery": time.perf_counter() - clock,
        "parts": dict(report.battery.seconds),
    }


def share(rows: Sequence[dict[str, Any]], attack: str) -> tuple[int, int]:
    """How many facts withstood an attack, of those it could be tried on with power."""
    found = [row["findings"].get(attack, "not applicable") for row in rows]
    tried = [one for one in found if one in ("succeeds", "resisted")]
    return tried.count("resisted"), len(tried)


def plot_league(league: dict[str, list[dict[str, Any]]], attacks: Sequence[str], ax: Axes | None = None) -> Axes:
    """Share of facts that withstand each attack, by method."""
    if ax is None:
        _, ax = plt.subplots(figsize=(1.6 + 0.62 * len(attacks), 2.2 + 0.42 * len(league)), layout="constrained")
    grid = np.full((len(league), len(attacks)), np.nan)
    for i, rows in enumerate(league.values()):
        for j, attack in enumerate(attacks):
            held, tried = share(rows, attack)
            grid[i, j] = held / tried if tried else np.nan
            ax.text(j, i, f"{held}/{tried}" if tried else "–", ha="center", va="center", fontsize=8)
    image = ax.imshow(np.ma.masked_invalid(grid), cmap="RdYlGn", vmin=0, vmax=1, aspect="auto", alpha=0.75)
    ax.set_xticks(range(len(attacks)), attacks, rotation=45, ha="right", fontsize=8)
    ax.set_yticks(range(len(league)), list(league), fontsize=8)
    ax.figure.colorbar(image, ax=ax, label="share that withstand", fraction=0.03)
    ax.set_title("Removals and the attacks they withstand")
    return ax


def print_league(console: Console, league: dict[str, list[dict[str, Any]]], attacks: Sequence[str]) -> None:
    """The league as a table, a method a row."""
    columns = ("held out", "suppressed", "removed", "collateral", "drift", "s a fact", "s judged", "verdicts")
    table = Table("method", *attacks, *columns, title="Withstood, of those tried with power")
    for name, rows in league.items():
        shares = [share(rows, attack) for attack in attacks]
        counts = [
            sum(row["claims"]["removed"] == "holds" for row in rows),
            sum(row["depth"] == "suppressed" for row in rows),
            sum(row["depth"] == "removed under this battery" for row in rows),
            sum(row["claims"]["neighbours"] == "fails" for row in rows),
        ]
        means = [statistics.fmean(row[one] for row in rows) for one in ("drift", "seconds", "battery")]
        table.add_row(
            name,
            *(f"{held}/{tried}" if tried else "-" for held, tried in shares),
            *(f"{count}/{len(rows)}" for count in counts),
            f"{means[0]:.4f}",
            *(f"{one:.1f}" for one in means[1:]),
            ", ".join(f"{count} {told}" for told, count in Counter(row["overall"] for row in rows).most_common()),
        )
    console.print(table)


def print_beyond(console: Console, league: dict[str, list[dict[str, Any]]], attacks: Sequence[str]) -> None:
    """What an attack brings back of the facts that no other wording brings back."""
    others = [attack for attack in attacks if attack != "paraphrases"]
    table = Table("method", *others, title="Brought back, of those that withstand paraphrases")
    for name, rows in league.items():
        hidden = [row for row in rows if row["findings"].get("paraphrases") == "resisted"]
        shares = [share(hidden, attack) for attack in others]
        table.add_row(name, *(f"{tried - held}/{tried}" if tried else "-" for held, tried in shares))
    console.print(table)


def false_alarms(console: Console, rows: Sequence[dict[str, Any]], attacks: Sequence[str]) -> None:
    """How many never-known facts each attack, and any of them, points at."""
    table = Table("attack", "raised", "of", "share", title="False alarms on facts nobody can know")
    for attack in attacks:
        found = [row["findings"].get(attack) for row in rows]
        tried = [one for one in found if one not in (None, "not applicable")]
        raised = tried.count("succeeds")
        table.add_row(attack, str(raised), str(len(tried)), f"{raised / len(tried):.1%}" if tried else "-")
    every = [one for row in rows for one in row["findings"].values() if one != "not applicable"]
    table.add_row(
        "all attacks, each counted",
        str(every.count("succeeds")),
        str(len(every)),
        f"{every.count('succeeds') / len(every):.1%}",
    )
    some = sum("succeeds" in row["findings"].values() for row in rows)
    table.add_row("facts that any attack points at", str(some), str(len(rows)), f"{some / len(rows):.1%}")
    wrong = sum(row["overall"] not in ("never known", "holds", "inconclusive") for row in rows)
    table.add_row("facts whose verdict points at them", str(wrong), str(len(rows)), f"{wrong / len(rows):.1%}")
    console.print(table)


def nobody_knows(model: Model, count: int, seed: int) -> list[Fact]:
    """Facts that no model can know: about invented people, and then invented subjects in the place of known ones."""
    invented = invented_facts()
    if count <= len(invented):
        return invented[:count]
    known = edits.sample_facts(model, count - len(invented), seed=seed)
    others = [never_known(model, fact.replace(new_target=None), 23)[20 + i % 3] for i, fact in enumerate(known)]
    return invented + others


def main() -> None:
    """Every method on every fact."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--facts", type=int, default=30, help="how many known facts")
    options.add_argument("--never-known", type=int, default=0, help="count false alarms on so many facts instead")
    options.add_argument("--skip", type=int, default=0, help="how many never-known facts not to ask, the first ones")
    options.add_argument("--seed", type=int, default=0, help="of the facts drawn")
    options.add_argument("--attacks", default=",".join(TRIED), help=f"which, of {', '.join(ATTACKS)}")
    options.add_argument("--more", default=",".join(MORE), help="attacks that some methods are tried by besides")
    options.add_argument("--wide", default=";".join(WIDE), help="those methods, with semicolons between them")
    options.add_argument("--part", default="0/1", help="which share of the facts, such as 1/2; the table is of these")
    options.add_argument("--methods", default=";".join(METHODS), help="which, by name, with semicolons between them")
    options.add_argument("--out", type=Path, default=Path("league"), help="folder of figure and findings")
    given = options.parse_args()
    model, console = load(), Console(width=240, soft_wrap=True)
    baseline = Baseline(model)
    usual = attacks_named(given.attacks.split(","))
    more = attacks_named([one for one in given.more.split(",") if one])
    wide = given.wide.split(";") if more else []
    part, parts = (int(one) for one in given.part.split("/"))

    def row(method: edits.Method | None, fact: Fact, chosen: Sequence[Attack]) -> dict[str, Any]:
        key = f"league 5 {model.fingerprint} {chosen} {method} {fact}"
        compute = functools.partial(judged, model, baseline, method, fact, chosen)
        return dict(kept(given.out, key, compute))

    if given.never_known:
        unknown = nobody_knows(model, given.skip + given.never_known, given.seed)[given.skip :]
        rows = [row(None, fact, usual) for fact in unknown[part::parts]]
        false_alarms(console, rows, [one.name for one in usual])
        return
    known = [fact.replace(new_target=None) for fact in edits.sample_facts(model, given.facts, seed=given.seed)]
    league: dict[str, list[dict[str, Any]]] = {name: [] for name in given.methods.split(";")}
    for fact in known[part::parts]:
        for name, rows in league.items():
            rows.append(row(METHODS[name], fact, [*usual, *more] if name in wide else usual))
        console.print(fact.label, {name: rows[-1]["overall"] for name, rows in league.items()})
    attacks = [one.name for one in dict.fromkeys([*usual, *(more if set(wide) & set(league) else ())])]
    print_league(console, league, attacks)
    print_beyond(console, league, attacks)
    plot_league(league, attacks)
    plt.savefig(given.out / "league.png", dpi=150)


if __name__ == "__main__":
    main()
