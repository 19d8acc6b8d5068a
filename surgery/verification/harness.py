"""Tasks of lm-evaluation-harness, asked of a model before and after an edit (https://github.com/EleutherAI/lm-evaluation-harness).

1. The tasks are found by name, in a folder of the user's own if there is one, else among those of the package, and
   their documents are loaded once.
2. The harness asks the model at hand, the same object with the same weights, first as it is and then with the edit
   applied: the same documents, with the same examples in front of each.
3. What it logs of each document is paired (`task_effect`).

Nothing is judged. The package is optional and imported only here. It seeds Python's, numpy's and torch's generators,
draws bars and talks: all that is as it was afterwards, and what goes with a run beside its numbers (its environment,
its date) is left out.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import io
import logging
import random
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import torch

from surgery.edit import Edit
from surgery.errors import SurgeryError
from surgery.model import Model
from surgery.verification.task_effect import DOCUMENT, Scored, TaskEffect, TaskEffects

ROWS = 8
LIMIT = 100
TALKING = ("lm_eval", "datasets", "huggingface_hub", "transformers")


@dataclass(frozen=True, kw_only=True)
class Tasks:
    """Which tasks of lm-evaluation-harness to ask, and how much of them.

    Attributes:
        names: of tasks, groups and tags, as the harness knows them.
        path: a folder with the user's own tasks, YAML files, whose code is run if they bring some; they come before
            the harness' own of the same name.
        limit: most documents a task asks, the first ones; None for all.
        seed: of examples in front of the questions, and of what is sampled.
        rows: how many texts go through the model at a time.

    Raises:
        SurgeryError: a value cannot be used, or the package is not installed.
    """

    names: tuple[str, ...]
    path: Path | None = None
    limit: int | None = LIMIT
    seed: int = 0
    rows: int = ROWS

    def __post_init__(self) -> None:
        if not self.names or not all(self.names) or len(set(self.names)) != len(self.names):
            raise SurgeryError(f"{','.join(self.names)!r} names no tasks; give each once, such as arc_easy,piqa")
        if self.path is not None and not self.path.is_dir():
            raise SurgeryError(f"there is no folder {self.path}; give one that holds the tasks' YAML files")
        if (self.limit is not None and self.limit < 1) or self.rows < 1:
            raise SurgeryError(f"a task asks at least 1 document, 1 row at a time, not {self.limit}, {self.rows}")
        package("lm_eval")

    def __call__(self, model: Model, edit: Edit) -> TaskEffects:
        """Ask the tasks of a model before and after an edit; the model is the same afterwards.

        Raises:
            SurgeryError: a task cannot be loaded, or not be asked of this model.
            WrongWeights: the edit was made for other weights.
        """
        started = time.perf_counter()
        before = self._run(model)
        with edit.applied(model):
            after = self._run(model)
        found = [TaskEffect.between(*name, was, after[name]) for name, was in before.items()]
        return TaskEffects(
            effects=tuple(found),
            limit=self.limit,
            seed=self.seed,
            version=version("lm_eval"),
            seconds=time.perf_counter() - started,
        )

    def check(self, edit: object) -> None:
        """Whether the tasks can be asked, to be known before anything that takes long.

        Raises:
            SurgeryError: there is no edit of weights to compare by, or a task cannot be loaded.
        """
        if not isinstance(edit, Edit):
            raise SurgeryError("tasks compare a model before and after an edit; give one, as --edit FILE")
        _ = self.loaded

    @cached_property
    def loaded(self) -> Mapping[str, Any]:
        """The harness' tasks and groups with their documents, by name; found once.

        Raises:
            SurgeryError: there is no such task, it cannot be loaded, or it wants more than a language model's answers.
        """
        with _kept_to_itself(self.seed):
            index = self._index()
            # what it raises depends on the task: its data, its templates, its own code
            try:
                found: Mapping[str, Any] = index.load(list(self.names))
            except Exception as error:
                raise SurgeryError(
                    f"cannot load the tasks {', '.join(self.names)}: {_reason(error)}; where their data have to be "
                    f"downloaded, do it once where the hub can be reached (they stay in HF_HOME), or give a folder "
                    f"of tasks whose data are local files (dataset_path: json, dataset_kwargs: data_files)"
                ) from error
        for name, task in found["tasks"].items():
            if getattr(task, "UNSAFE_CODE", False):
                raise SurgeryError(f"the task {name} runs code that the model writes; choose another task")
            if getattr(task, "MULTIMODAL", False):
                raise SurgeryError(f"the task {name} asks about more than text; choose another task")
            if task.get_config("num_fewshot") is None:
                task.set_config(key="num_fewshot", value=0)
        return found

    def _index(self) -> Any:
        """The harness' index of tasks: of the user's own folder if all are there, which takes no time, else of all."""
        indexed = package("lm_eval.tasks").TaskManager
        if self.path is not None:
            own = indexed(include_path=str(self.path), include_defaults=False)
            if set(self.names) <= set(own.all_subtasks):
                return own
        index = indexed(include_path=None if self.path is None else str(self.path))
        if unknown := [name for name in self.names if name not in index.all_tasks]:
            raise SurgeryError(
                f"lm-evaluation-harness knows no task {', '.join(unknown)}; `lm-eval ls tasks` lists its own, and "
                f"your own come from the folder of their YAML files (--tasks-path DIR, or Tasks(path=...))"
            )
        return index

    def _run(self, model: Model) -> dict[tuple[str, str], Scored]:
        """What each task's and group's metrics are, by task and metric."""
        loaded = self.loaded
        with _kept_to_itself(self.seed):
            asked = _wrapped(model, self.rows)
            for task in loaded["tasks"].values():
                task.set_fewshot_seed(seed=self.seed)
            try:
                run = package("lm_eval").evaluate(asked, loaded, limit=self.limit, bootstrap_iters=0)
            except (AssertionError, ValueError) as error:
                raise SurgeryError(
                    f"cannot ask {', '.join(self.names)} of {model.source}: {_reason(error)}; choose other tasks"
                ) from error
        return scored(run)


def scored(run: Mapping[str, Any]) -> dict[tuple[str, str], Scored]:
    """The metrics in the harness' record of a run, by task and metric."""
    found = {}
    for name, metrics in run["results"].items():
        documents = [(task, one) for task in _leaves(run, name) for one in run["samples"][task]]
        for key, value in metrics.items():
            metric, comma, filtered = key.partition(",")
            if not comma or metric.endswith("_stderr") or _number(value) is None:
                continue
            own = [(task, one) for task, one in documents if one["filter"] == filtered and metric in one]
            each: dict[DOCUMENT, float] = {}
            for task, one in own:
                if (number := _number(one[metric])) is not None:
                    each[task, one["doc_id"]] = number
            found[name, metric if filtered == "none" else key] = Scored(
                value=float(value),
                each=each,
                documents=len(own),
                higher_is_better=run["higher_is_better"].get(name, {}).get(metric),
            )
    return found


def _leaves(run: Mapping[str, Any], name: str) -> list[str]:
    """The tasks in a group, or the task itself."""
    below = run["group_subtasks"].get(name)
    return [name] if below is None else list(dict.fromkeys(leaf for one in below for leaf in _leaves(run, one)))


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (Real, np.bool_)) else None


def _wrapped(model: Model, rows: int) -> Any:
    """The model at hand as the harness asks one; it gets a tokenizer of its own, which it changes."""
    hf: Any = model.hf
    wrapper = package("lm_eval.models.huggingface").HFLM
    # it would tie weights that a model may have untied
    vars(hf)["tie_weights"] = lambda: None
    try:
        return wrapper(hf, tokenizer=copy.deepcopy(model.tokenizer), batch_size=rows, softmax_dtype="float32")
    finally:
        del vars(hf)["tie_weights"]


def package(name: str) -> Any:
    """A module of lm-evaluation-harness.

    Raises:
        SurgeryError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise SurgeryError(
            f"tasks need the package lm-eval ({error}); install it by pip install 'knowledge-surgery[harness]'"
        ) from error


@contextlib.contextmanager
def _kept_to_itself(seed: int) -> Iterator[None]:
    """Seeded generators, no bars, and nothing below an error said; all is as it was afterwards."""
    python, own = random.getstate(), np.random.get_state()
    levels = {logger: logger.level for logger in map(logging.getLogger, TALKING)}
    for logger in levels:
        logger.setLevel(logging.ERROR)
    devices = range(torch.cuda.device_count())
    try:
        with torch.random.fork_rng(devices), contextlib.redirect_stderr(io.StringIO()):
            random.seed(seed)
            np.random.seed(seed)
            torch.manual_seed(seed)
            yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)
        random.setstate(python)
        np.random.set_state(own)


def _reason(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
