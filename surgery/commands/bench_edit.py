"""`surgery bench edit`: the value search by replay against the plain one, and many facts at once."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from rich.table import Table

import edits
import surgery
from edits.keys import sample_contexts
from edits.sample import with_new_answers
from surgery.commands.options import Run
from surgery.errors import SurgeryError
from surgery.numbers import counted

APART = 5
"""Facts that are searched alone; how much a replay spares depends on where in the prompt the subject stands."""
STEPS = 25


def bench_edit(run: Run, facts: int, published: bool) -> None:
    """Some facts alone, both ways with the same settings to the last step; then many facts with keys and solve."""
    known = with_new_answers([fact for fact in surgery.example_facts() if fact.neighbours], seed=run.seed)
    if not 1 <= facts <= len(known):
        raise SurgeryError(f"--facts is {facts}; there are 1 to {len(known)} shipped facts to time")
    model = run.load()
    site = edits.recommended_site(model)
    relations = list(dict.fromkeys(fact.template for fact in known))
    apart = [next(fact for fact in known if fact.template == template) for template in relations[:APART]]
    # the first products of a process are slow for reasons of neither method, and the blocks are looked at but once
    edits.find_values(model, known[:1], site, edits.Replace(), ("{}",), edits.ValueSearch(steps=1))
    record: dict[str, Any] = {"site": site.name, "threads": torch.get_num_threads()}
    title = f"{site}, values of {counted(len(apart), 'fact')}, each of another relation and searched alone; means"
    table = Table("what", "fast s", "plain s", "times faster", "cosine of the values", title=title)
    settings = {"as default": (4, 8)} | ({"as published": (20, 10)} if published else {})
    for name, (count, length) in settings.items():
        contexts = sample_contexts(model, count=count, length=length, seed=run.seed)
        one: dict[str, Any] = {
            "contexts": count + 1,
            "steps": STEPS,
            "facts": [_both(model, f, site, contexts) for f in apart],
        }
        fast, plain = (sum(each[way] for each in one["facts"]) / len(apart) for way in ("fast", "plain"))
        cosine = min(each["cosine"] for each in one["facts"])
        record[name] = one | {"fast": fast, "plain": plain, "cosine": cosine}
        factors = [each["plain"] / each["fast"] for each in one["facts"]]
        told = f"{plain / fast:.1f} ({min(factors):.1f} to {max(factors):.1f})"
        label = f"one fact, {count + 1} contexts, {STEPS} steps"
        table.add_row(label, f"{fast:.1f}", f"{plain:.1f}", told, f"{cosine:.6f} or more")
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
    table.add_row(
        f"{counted(facts, 'fact')}, contexts, keys, values and solve ({edit.method})", f"{seconds:.1f}", "", "", ""
    )
    run.say(table)
    run.say(f"{facts / seconds:.2f} facts a second, {sum(steps) / len(steps):.1f} steps each on average")
    run.result(record)


def _both(model: surgery.Model, fact: surgery.Fact, site: surgery.Site, contexts: Sequence[str]) -> dict[str, Any]:
    """Seconds both ways, to the last step, and the cosine between what they find."""
    record: dict[str, Any] = {"fact": fact.label}
    found = {}
    for way in ("fast", "plain"):
        search = edits.ValueSearch(steps=STEPS, stop=0.0, method=way)
        clock = time.perf_counter()
        (found[way],) = edits.find_values(model, [fact], site, edits.Replace(), contexts, search)
        record[way] = time.perf_counter() - clock
    record["cosine"] = float(torch.cosine_similarity(found["fast"].shift, found["plain"].shift, dim=0))
    return record
