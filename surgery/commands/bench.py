"""`surgery bench` and `surgery selftest`: how fast and how right the tool is on one's own model and machine."""

from __future__ import annotations

import time
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.table import Table

import surgery
from locate.causal import causal_traces
from locate.corrupt import Gaussian, embed
from locate.selftest import selftest as run_selftest
from surgery.commands.bench_edit import bench_edit
from surgery.commands.bench_verify import DEFAULT_PROFILES, bench_verify
from surgery.commands.options import Run
from surgery.errors import SurgeryError
from surgery.fact import Fact
from surgery.hooks import Trace, TraceDict, hidden, with_hidden
from surgery.site import KINDS
from surgery.tokens import ask_fact, pad

STAGES = {"locate": ("samples", "half", "published"), "edit": ("facts", "published"), "verify": ("profiles",)}
"""Each with the options it takes."""


def bench(
    run: Run,
    stage: Annotated[str, typer.Argument(help=f"What to measure: {', '.join(STAGES)}.")],
    samples: Annotated[int | None, typer.Option(help="locate: draws of noise, 10 by default.")] = None,
    half: Annotated[bool, typer.Option("--half", help="locate: also in bfloat16, with its error.")] = False,
    facts: Annotated[int | None, typer.Option(help="edit: how many facts at once, 100 by default.")] = None,
    published: Annotated[
        bool,
        typer.Option(
            "--published",
            help="locate: also as the published code does it, the state grid alone. edit: also with as many contexts.",
        ),
    ] = False,
    profiles: Annotated[
        str | None,
        typer.Option(help=f"verify: which profiles, NAME,NAME; {','.join(DEFAULT_PROFILES)} by default."),
    ] = None,
) -> None:
    """Time the fast way against the plain one in one process, alone on the machine; or the parts of verification."""
    if stage not in STAGES:
        raise SurgeryError(f"there is no benchmark {stage!r}; choose {', '.join(STAGES)}")
    given = {"samples": samples, "half": half, "facts": facts, "published": published, "profiles": profiles}
    _check_options(stage, [name for name, value in given.items() if value not in (None, False)])
    if stage == "edit":
        return bench_edit(run, 100 if facts is None else facts, published)
    if stage == "verify":
        return bench_verify(run, DEFAULT_PROFILES if profiles is None else profiles.split(","))
    return _bench_locate(run, 10 if samples is None else samples, half, published)


def _check_options(stage: str, given: list[str]) -> None:
    """Refuse options of other stages.

    Raises:
        SurgeryError: one was given.
    """
    for name in given:
        if name not in STAGES[stage]:
            others = " or ".join(f"'surgery bench {one}'" for one, taken in STAGES.items() if name in taken)
            raise SurgeryError(f"--{name} is for {others}; leave it away")


def _bench_locate(run: Run, samples: int, half: bool, published: bool) -> None:
    model = run.load()
    fact = next(one for one in surgery.example_facts("landmark in city") if one.subject == "The Eiffel Tower")
    options: dict[str, Any] = {"samples": samples, "seed": run.seed, "progress": run.talks}
    # the first products of a process are slow for reasons of neither method
    causal_traces(model, fact, samples=1, progress=False)
    fast = causal_traces(model, fact, **options)
    plain = [causal_traces(model, fact, kinds=(kind,), method="plain", **options)[0] for kind in KINDS]
    seconds = sum(one.cost.seconds for one in plain)
    record: dict[str, Any] = {
        "prompt": fact.prompt,
        "samples": samples,
        "threads": torch.get_num_threads(),
        "plain": {"seconds": seconds, "token_layers": sum(one.cost.token_layers for one in plain)},
        "fast": {
            "seconds": fast[0].cost.seconds,
            "token_layers": fast[0].cost.token_layers,
            "largest_difference": _largest(fast, plain),
        },
    }
    if half:
        rough = causal_traces(model.astype("bfloat16"), fact, **options)
        record["fast bfloat16"] = {
            "seconds": rough[0].cost.seconds,
            "token_layers": rough[0].cost.token_layers,
            "largest_difference": _largest(rough, plain),
        }
    if published:
        clock = time.perf_counter()
        grid = _as_published(model, fact, samples, run.seed)
        record["published, states alone"] = {
            "seconds": time.perf_counter() - clock,
            "largest_difference": float(np.abs(grid - plain[0].scores).max()),
        }
    table = Table("method", "seconds", "times faster", "token-layers", "largest difference", title=fact.prompt)
    for name in [one for one in record if isinstance(record[one], dict)]:
        entry = record[name]
        whole = plain[0].cost.seconds if "states" in name else seconds
        table.add_row(
            name,
            f"{entry['seconds']:.1f}",
            f"{whole / entry['seconds']:.1f}",
            str(entry.get("token_layers", "")),
            f"{entry['largest_difference']:.1e}" if "largest_difference" in entry else "",
        )
    run.say(table)
    run.result(record)


def selftest(
    run: Run,
    stage: Annotated[str, typer.Argument(help="What to test: locate.")],
    facts: Annotated[int, typer.Option(help="How many invented facts to plant, one after the other.")] = 1,
    share: Annotated[float, typer.Option(help="Share of each layer's neurons a fact is planted in.")] = 0.01,
) -> None:
    """Plant invented facts in known neurons of the model and measure which locators find them. The model stays."""
    if stage != "locate":
        raise SurgeryError(f"there is no self-test {stage!r}; choose locate")
    found = run_selftest(run.load(), facts=facts, share=share, seed=run.seed, progress=run.talks)
    run.say(found.table())
    run.result(found.as_record())


def _largest(traces: Any, plain: Any) -> float:
    return max(float(np.abs(one.scores - other.scores).max()) for one, other in zip(traces, plain, strict=True))


@torch.no_grad()
def _as_published(model: surgery.Model, fact: Fact, samples: int, seed: int) -> np.ndarray:
    """The state grid as the published code computes it: the clean row in every batch, logits of every position."""
    question, span = ask_fact(model.tokenizer, fact, fact.target)
    noised = Gaussian()(model, fact, embed(model, question, span), samples, seed)
    rows, names = samples + 1, model.anatomy.names("state")
    batch = pad([question.prompt_ids] * rows, device=model.device)

    def noise(output: Any, name: str) -> Any:
        states = hidden(output, rows).clone()
        states[1:, span.start : span.stop] = noised
        return with_hidden(output, states)

    grid = np.zeros((len(question.prompt_ids), len(names)))
    for position, layer in np.ndindex(*grid.shape):

        def restore(output: Any, name: str, position: int = position) -> Any:
            states = hidden(output, rows).clone()
            states[1:, position] = states[0, position]
            return with_hidden(output, states)

        with (
            Trace(model.hf, model.anatomy.embedding, retain_output=False, edit_output=noise),
            TraceDict(model.hf, [names[layer]], retain_output=False, edit_output=restore),
        ):
            logits = model.hf(**model.inputs(batch)).logits
        grid[position, layer] = logits[1:, -1].float().softmax(-1)[:, question.answer_ids[0]].mean()
    return grid
