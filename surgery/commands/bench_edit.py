"""`surgery bench edit`: the value search by replay against the plain one, and many facts at once."""

from __future__ import annotations

import time
from typing import Any

import torch
from rich.table import Table

import edits
import surgery
from edits.keys import sample_contexts
from edits.sample import with_new_answers
from surgery.commands.options import Run
from surgery.errors import SurgeryError


def bench_edit(run: Run, facts: int, published: bool) -> None:
    """One fact both ways with the same settings, to the last step; then many facts with keys and solve."""
    known = with_new_answers([fact for fact in surgery.example_facts() if fact.neighbours], seed=run.seed)
    if not 1 <= facts <= len(known):
        raise SurgeryError(f"--facts is {facts}; there are 1 to {len(known)} shipped facts to time")
    model = run.load()
    site = edits.recommended_site(model)
    # the first products of a process are slow for reasons of neither method
    edits.find_values(model, known[:1], site, edits.Replace(), ("{}",), edits.ValueSearch(steps=1))
    record: dict[str, Any] = {"site": site.name, "threads": torch.get_num_threads()}
    table = Table("what", "fast s", "plain s", "times faster", "cosine of the values", title=f"{site}, values")
    settings = {"as default": (4, 8)} | ({"as published": (20, 10)} if published else {})
    for name, (count, length) in settings.items():
        contexts = sample_contexts(model, count=count, length=length, seed=run.seed)
        took, found = {}, {}
        for way in ("fast", "plain"):
            search = edits.ValueSearch(stop=0.0, method=way)
            clock = time.perf_counter()
            (found[way],) = edits.find_values(model, known[:1], site, edits.Replace(), contexts, search)
            took[way] = time.perf_counter() - clock
        cosine = float(torch.cosine_similarity(found["fast"].shift, found["plain"].shift, dim=0))
        record[name] = {**took, "contexts": count + 1, "steps": search.steps, "cosine": cosine}
        label = f"one fact, {count + 1} contexts, {search.steps} steps"
        factor = took["plain"] / took["fast"]
        table.add_row(label, f"{took['fast']:.1f}", f"{took['plain']:.1f}", f"{factor:.1f}", f"{cosine:.6f}")
    clock = time.perf_counter()
    edit = edits.Mass(seed=run.seed, progress=run.talks)(model, known[:facts])
    seconds = time.perf_counter() - clock
    steps = [one["steps"] for one in edit.log]
    record["many"] = {
        "facts": facts,
        "seconds": seconds,
        "facts_per_second": facts / seconds,
        "mean_steps": sum(steps) / len(steps),
        "mean_loss": sum(one["loss"] for one in edit.log) / len(steps),
    }
    table.add_row(f"{facts} facts, contexts, keys, values and solve ({edit.method})", f"{seconds:.1f}", "", "", "")
    run.say(table)
    run.say(f"{facts / seconds:.2f} facts a second, {sum(steps) / len(steps):.1f} steps each on average")
    run.result(record)
