"""Editing a model of eight billion parameters on a GPU: seconds, memory and the size of its files.

Prints one table and holds no assertions. The weights are random, in the shape of Llama 3 8B: nothing is said of
quality. What a step costs does not depend on what weights say, but how many steps there are does; so values are
searched to the last one, whatever the loss, once as many as facts of the default model take on average, once the
published 25. The published search is timed beside ours, on the same model:

    python benchmarks/wide.py --corpus passages.txt

Smaller shapes try the script itself: `--layers 6 --d-model 64 --d-ff 160 --device cpu --dtype float32`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

import edits
import locate
import surgery
from edits.keys import sample_contexts
from edits.sample import with_new_answers
from surgery.commands.corpus import corpus_texts

HEADS, KEY_HEADS, VOCAB, WIDTH = 32, 8, 128_256, 512
STEPS = (7, 25)
PUBLISHED = edits.ValueSearch(steps=25, stop=0.0, rule="adam", step=1 / 60, decay=0.033, clamp=2.9, method="plain")
"""Full runs as published, and its rule; of the published step see `editing.py`."""


class Clock:
    """Seconds and most memory of what is run, a row each."""

    def __init__(self, device: torch.device) -> None:
        self._gpu = device if device.type == "cuda" else None
        self.rows: dict[str, dict[str, float]] = {}

    def __call__(self, name: str, run: Callable[[], Any], facts: int = 0) -> Any:
        """What `run` gives; `facts` is how many it serves."""
        if self._gpu:
            torch.cuda.reset_peak_memory_stats(self._gpu)
        started = self._now()
        result = run()
        row = {"seconds": self._now() - started}
        row |= {"facts a second": facts / row["seconds"]} if facts else {}
        row |= {"GB": torch.cuda.max_memory_allocated(self._gpu) / 1e9} if self._gpu else {}
        self.rows[name] = row
        print(f"{name}: " + ", ".join(f"{value:.3g} {unit}" for unit, value in row.items()), flush=True)
        return result

    def _now(self) -> float:
        if self._gpu:
            torch.cuda.synchronize(self._gpu)
        return time.perf_counter()


def main() -> None:
    """Draw the weights, fit their statistics, edit, and compare."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--corpus", type=Path, required=True, help="ordinary text, some 10 tokens a neuron")
    options.add_argument("--facts", type=int, default=100, help="in one batch")
    options.add_argument("--apart", type=int, default=3, help="facts searched alone, both ways")
    options.add_argument("--tokenizer", help="a folder with one; the default model's otherwise")
    options.add_argument("--layers", type=int, default=32)
    options.add_argument("--d-model", type=int, default=4096)
    options.add_argument("--d-ff", type=int, default=14336)
    options.add_argument("--device", default="cuda")
    options.add_argument("--dtype", default="bfloat16")
    options.add_argument("--out", type=Path, help="a file for the numbers, JSON")
    given = options.parse_args()
    clock = Clock(torch.device(given.device))
    model = clock("random weights", lambda: random_model(given))
    clock("their fingerprint", lambda: model.fingerprint)
    known = with_new_answers([one for one in surgery.example_facts() if one.neighbours], seed=1)
    record = {"given": {key: str(value) for key, value in vars(given).items()}}
    record |= edited(model, known[: given.facts], corpus_texts(given.corpus, "text", 1), clock)
    record["cosines"] = both_ways(model, known[: given.apart], clock)
    clock("a trace of states, 10 samples", lambda: locate.causal_trace(model, known[0]))
    table = Table("what", "seconds", "facts a second", "GB", title=f"{given.d_model} wide, {given.layers} layers")
    for name, row in clock.rows.items():
        table.add_row(
            name, *(f"{row[unit]:.2f}" if unit in row else "" for unit in ("seconds", "facts a second", "GB"))
        )
    Console(width=120).print(table)
    print(record)
    if given.out:
        given.out.write_text(json.dumps({**record, "rows": clock.rows}, indent=1), encoding="utf-8")


def random_model(given: argparse.Namespace) -> surgery.Model:
    """A Llama of the shape asked for, which is cut into tokens as the default model is."""
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=given.d_model,
        intermediate_size=given.d_ff,
        num_hidden_layers=given.layers,
        num_attention_heads=HEADS,
        num_key_value_heads=KEY_HEADS,
        max_position_embeddings=8192,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(getattr(torch, given.dtype))
        with torch.device(given.device):
            hf = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    tokenizer = AutoTokenizer.from_pretrained(given.tokenizer) if given.tokenizer else surgery.load().tokenizer
    return surgery.load((hf.eval().requires_grad_(False), tokenizer))


def edited(model: surgery.Model, facts: Sequence[surgery.Fact], texts: list[str], clock: Clock) -> dict[str, Any]:
    """Fits statistics, edits all facts at once and one alone; what the files weigh."""
    sites, tokens = edits.recommended_sites(model, 3), 10 * model.anatomy.d_ff
    layers = sorted({site.layer for site in [*sites, edits.recommended_site(model)]})
    statistics = clock(
        f"key statistics of layers {', '.join(map(str, layers))}",
        lambda: edits.fit_statistics(model, texts, layers, tokens=tokens, width=WIDTH, progress=False),
    )
    contexts = clock("contexts", lambda: sample_contexts(model, count=4, length=8))
    # random weights are no language model, so that its collapse is none
    limits = edits.Limits(relative_change=1e6, value_norm=1e6, perplexity=1e6)
    batch = edits.Mass(statistics=statistics, contexts=contexts, limits=limits, passes=1, progress=False)
    alone = edits.RankOne(statistics=statistics, contexts=contexts, limits=limits, progress=False)
    edit = clock("the first edit of a process", lambda: alone(model, facts[-1]))
    for steps in STEPS:
        search = edits.ValueSearch(steps=steps, stop=0.0)
        method = dataclasses.replace(batch, search=search)
        values = clock(f"{steps} steps: values of {len(facts)}", lambda m=method: m.find(model, facts), len(facts))
        clock(f"{steps} steps: keys and solve", lambda m=method, v=values: m.solve(model, v), len(facts))
        edit = clock(f"{steps} steps: {len(facts)} facts by memit", lambda m=method: m(model, facts), len(facts))
        method = dataclasses.replace(alone, search=search)
        clock(f"{steps} steps: one by rank-one", lambda m=method: m(model, facts[0]), 1)
    with tempfile.TemporaryDirectory() as folder:
        sizes = {
            "statistics, MB a layer": statistics.save(Path(folder, "s")).stat().st_size / 1e6 / len(layers),
            "edit, MB a fact": edit.save(Path(folder, "e")).stat().st_size / 1e6 / len(facts),
        }
    return {"tokens": statistics.tokens, "met": sum(one["met"] for one in edit.log), **sizes}


def both_ways(model: surgery.Model, facts: Sequence[surgery.Fact], clock: Clock) -> list[float]:
    """Times the published search by full runs and by replay; the cosines between what they find."""
    site, contexts, found = edits.recommended_site(model), sample_contexts(model, count=5, length=10), []
    for way in ("fast", "plain"):
        search = dataclasses.replace(PUBLISHED, method=way)

        def each(search: edits.ValueSearch = search) -> list[Any]:
            return [edits.find_values(model, [fact], site, edits.Replace(), contexts, search)[0] for fact in facts]

        found.append(clock(f"values of {len(facts)} alone, 25 steps of Adam, {way}", each, len(facts)))
    return [float(torch.cosine_similarity(a.shift, b.shift, dim=0)) for a, b in zip(*found, strict=True)]


if __name__ == "__main__":
    main()
