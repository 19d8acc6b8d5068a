"""Where the default model keeps facts it knows: averaged traces over a facts file, severed paths, swap beside noise.

Prints tables and writes figures; holds no assertions. Each fact's traces are kept in the output folder, so a run that
was stopped goes on: `python benchmarks/known_facts.py --facts known_facts.json --limit 100 --out figures`.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy import stats

import locate
import surgery
from locate.figures import effect_lines, panels, role_map, severed_bars
from locate.profile import ROLES
from surgery.figures import save


def main() -> None:
    """Run what the options ask for."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--facts", type=Path, required=True, help="a facts file, such as known_facts.json")
    options.add_argument("--limit", type=int, default=100, help="how many known facts")
    options.add_argument("--samples", type=int, default=3, help="draws of noise a fact")
    options.add_argument("--out", type=Path, default=Path("known-facts"), help="folder for figures and traces")
    given = options.parse_args()
    console = Console(width=120)
    model = surgery.load()
    facts = tuple(surgery.read_facts(given.facts))
    common: dict[str, Any] = {"limit": given.limit, "cache": given.out / "traces"}
    noise = locate.average_trace(model, facts, samples=given.samples, **common)
    shown(console, "Gaussian noise", noise)
    save(panels(noise, role_map), given.out / "map.png")
    save(panels(noise, effect_lines), given.out / "lines.png")
    held = {
        path: locate.average_trace(
            model, facts, kinds=("state",), severed=path, positions="last-subject", samples=given.samples, **common
        )
        for path in ("mlp", "attention")
    }
    save(severed_bars(noise, held["mlp"], held["attention"]), given.out / "severed.png")
    console.print(severed(noise, held))
    swap = locate.average_trace(model, facts, corruption=locate.SwapSubject(among=facts), **common)
    shown(console, "swapped subject", swap)
    save(panels(swap, role_map), given.out / "map-swap.png")
    save(panels(swap, effect_lines), given.out / "lines-swap.png")
    console.print(compared(noise, swap))


def shown(console: Console, title: str, average: locate.AverageTrace) -> None:
    """Print an average's findings, and the strongest layer of every role."""
    console.print(f"[bold]{title}[/bold]")
    for line in average.told():
        console.print(line)
    table = Table("role", "facts", *(f"{kind}: effect at layer" for kind in average.profiles))
    for i, role in enumerate(ROLES):
        cells = []
        for profile in average.profiles.values():
            if np.isnan(profile.mean[i]).all():
                cells.append("-")
                continue
            at = int(np.nanargmax(profile.mean[i]))
            cells.append(f"{profile.mean[i, at]:+.3f} ± {profile.margin[i, at]:.3f} at {at}")
        table.add_row(role, str(next(iter(average.profiles.values())).count[i]), *cells)
    console.print(table)


def severed(noise: locate.AverageTrace, held: dict[str, locate.AverageTrace]) -> Table:
    """The last subject token's mean effect by layer, with either path held."""
    row = ROLES.index("last subject")
    table = Table("layers", "state", "mlp held", "attention held", title="Mean effect at the last subject token")
    layers = noise.profiles["state"].mean.shape[1]
    for start in range(0, layers, 5):
        part = slice(start, min(start + 5, layers))
        columns = [one.profiles["state"].mean[row, part].mean() for one in (noise, held["mlp"], held["attention"])]
        table.add_row(f"{part.start}-{part.stop - 1}", *(f"{one:+.4f}" for one in columns))
    return table


def compared(noise: locate.AverageTrace, swap: locate.AverageTrace) -> Table:
    """Rank correlation over layers of the two corruptions' mean effects, by role and kind."""
    table = Table("role", *noise.profiles, title="Spearman correlation over layers, noise against swapped subjects")
    for i, role in enumerate(ROLES):
        cells = []
        for kind, profile in noise.profiles.items():
            one, other = profile.mean[i], swap.profiles[kind].mean[i]
            constant = np.isnan(one).any() or np.isnan(other).any() or np.ptp(one) == 0 or np.ptp(other) == 0
            cells.append("-" if constant else f"{stats.spearmanr(one, other).statistic:.2f}")
        table.add_row(role, *cells)
    return table


if __name__ == "__main__":
    main()
