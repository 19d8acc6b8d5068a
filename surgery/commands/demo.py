"""`surgery demo`: the three stages on one real fact of the default model."""

from __future__ import annotations

import time
from pathlib import Path

import edits
import locate
import surgery
from locate.figures import side_by_side
from surgery.commands.options import OutFolder, Run
from surgery.fact import Neighbour
from surgery.figures import save
from surgery.files import check_writable
from surgery.site import KINDS


def demo(run: Run, out: OutFolder = Path("demo")) -> int:
    """Find, rewrite and verify one fact of the default model: the Eiffel Tower is in Paris."""
    check_writable(out)
    started = time.perf_counter()
    model = run.load()
    fact = next(one for one in surgery.example_facts("landmark in city") if one.subject == "The Eiffel Tower")
    fact = fact.replace(
        new_target="Rome", neighbours=(*fact.neighbours, Neighbour("The capital of France is", "Paris"))
    )
    run.say(f"\n1. Where is it? Tracing {fact.prompt!r} through every token and layer.")
    traces = locate.causal_traces(model, fact, progress=run.talks)
    drawn = side_by_side(traces)
    figure = save(drawn, out / "trace.png")
    trace = traces[KINDS.index("mlp")]
    run.say(
        f"   p(Paris) is {trace.clean:.2f}, and {trace.corrupted:.2f} with the subject hidden by noise.\n"
        f"   Restoring mlp outputs around {trace.peak()} brings back {trace.scores.max():.2f}: "
        f"{figure} ({trace.cost.seconds:.0f} s)"
    )
    run.say("\n2. Rewrite it: one rank-one change of one matrix, Paris to Rome.")
    clock = time.perf_counter()
    edit = edits.RankOne(seed=run.seed)(model, fact)
    path = edit.save(out / "edit.safetensors")
    run.say(f"   {edit.deltas[0]}: {path} ({path.stat().st_size} bytes, {time.perf_counter() - clock:.0f} s)")
    run.say("\n3. Does it hold? Phrasings the edit has not seen, and neighbours that must stay.\n")
    report = surgery.verify(model, edit, seed=run.verify_seed)
    folder = report.save(out / "report", where={trace.heading: drawn})
    run.say(report.table())
    total = time.perf_counter() - started
    run.say(f"\n{report.meaning}: {folder / 'report.html'}; {total:.0f} s in all. The model on disk is as it was.")
    run.result(
        {
            "traces": [one.as_record() for one in traces],
            "edit": str(path),
            "report": report.as_record(),
            "seconds": total,
        }
    )
    return report.exit_code
