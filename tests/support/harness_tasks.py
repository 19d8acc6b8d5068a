"""A folder of tasks of lm-evaluation-harness about the toy's facts, with their documents in a file beside them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from surgery import Fact


def documents(facts: Sequence[Fact]) -> list[dict[str, Any]]:
    """Each fact's prompt with three answers to choose from, the right one in the middle."""
    others = [list(dict.fromkeys(near.target for near in one.neighbours))[:2] for one in facts]
    return [
        {"prompt": one.prompt, "answers": [other[0], one.target, other[1]], "right": 1}
        for one, other in zip(facts, others, strict=True)
    ]


def task_folder(folder: Path, facts: Sequence[Fact]) -> Path:
    """`choose` asks for the right answer, `say` lets it be said, `read` measures perplexity, and more."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(one) for one in documents(facts)]
    (folder / "documents.jsonl").write_text("\n".join(lines))
    (folder / "few.jsonl").write_text("\n".join(lines[1:4]))
    choose = {
        "output_type": "multiple_choice",
        "doc_to_text": "{{prompt}}",
        "doc_to_choice": "{{answers}}",
        "doc_to_target": "{{right}}",
        "metric_list": [{"metric": "acc"}],
    }
    say = {
        "output_type": "generate_until",
        "doc_to_text": "{{prompt}}",
        "doc_to_target": "{{answers[right]}}",
        "generation_kwargs": {"max_gen_toks": 1, "until": ["."]},
        "filter_list": [{"name": "bare", "filter": [{"function": "remove_whitespace"}, {"function": "take_first"}]}],
        "metric_list": [{"metric": "exact_match"}, {"metric": "bleu"}],
    }
    read = {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{prompt}} {{answers[right]}}",
        "metric_list": [{"metric": "word_perplexity"}],
    }
    _write(folder, "choose", choose)
    _write(folder, "say", say)
    _write(folder, "read", read)
    _write(folder, "choose_few", choose, data="few.jsonl")
    _write(folder, "choose_after", {**choose, "num_fewshot": 2, "fewshot_split": "test"})
    _write(folder, "choose_again", choose)
    _write(folder, "choose_few_again", choose, data="few.jsonl")
    _write(folder, "by_size", _group("by_size", ["choose", "choose_few"], weighted=True), data=None)
    _write(folder, "alike", _group("alike", ["choose_again", "choose_few_again"], weighted=False), data=None)
    _write(folder, "far", {**choose, "dataset_path": "nobody-there/nothing", "test_split": "test"}, data=None)
    _write(folder, "unsafe", {**choose, "unsafe_code": True})
    _write(folder, "wordy", {**say, "generation_kwargs": {"max_gen_toks": 1000}})
    return folder


def _group(name: str, tasks: list[str], *, weighted: bool) -> dict[str, Any]:
    mean = {"metric": "acc", "weight_by_size": weighted}
    return {"group": name, "task": tasks, "aggregate_metric_list": [mean]}


def _write(folder: Path, name: str, task: Mapping[str, Any], *, data: str | None = "documents.jsonl") -> None:
    where = {}
    if data is not None:
        files = {"test": str(folder / data)}
        where = {"dataset_path": "json", "dataset_kwargs": {"data_files": files}, "test_split": "test"}
    named = {} if "group" in task else {"task": name}
    (folder / f"{name}.yaml").write_text(yaml.safe_dump({**named, **task, **where}))
