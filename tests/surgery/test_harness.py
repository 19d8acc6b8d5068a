"""Tasks of lm-evaluation-harness: numbers as by hand, on a model that stays as it is, with honest intervals."""

from __future__ import annotations

import copy
import json
import logging
import math
import random
import sys
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from by_hand import Toy, toy_edit
from harness_tasks import documents, task_folder
from scipy import stats

from surgery import Certificate, Edit, Fact, Model, SurgeryError, WrongWeights, load, rate, verify
from surgery.numbers import Interval, student
from surgery.predict import generate
from surgery.verification import Tasks
from surgery.verification.beside import ABOUT
from surgery.verification.verify import Intervention

TOYS = ("llama",)
ASKED = 30


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No hub is asked, and what datasets keeps of the documents goes with the test."""
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")


@pytest.fixture
def folder(tmp_path: Path, toy: Toy) -> Path:
    return task_folder(tmp_path / "tasks", toy[1][:ASKED])


@pytest.fixture
def edit(toy: Toy) -> Edit:
    """Strong enough that some answers change."""
    return toy_edit(toy, size=STRONG)


STRONG = 100.0


def right_by_hand(model: Model, facts: list[Fact]) -> list[float]:
    """For each document, whether the right answer is the likeliest of its three."""
    found = []
    for one in documents(facts):
        rated = [answer.probability for answer in rate(model, [(one["prompt"], text) for text in one["answers"]])]
        found.append(float(max(range(3), key=rated.__getitem__) == one["right"]))
    return found


def test_choices_are_those_of_the_models_own_probabilities(
    toy: Toy, edit: Edit, folder: Path, unchanged: Callable[[Model], None]
) -> None:
    model, facts = toy
    unchanged(model)
    found = Tasks(names=("choose",), path=folder)(model, edit)
    was = right_by_hand(model, facts[:ASKED])
    with edit.applied(model):
        now = right_by_hand(model, facts[:ASKED])
    assert was != now
    (one,) = found.effects
    assert (one.task, one.metric, one.documents, one.higher_is_better) == ("choose", "acc", ASKED, True)
    assert (one.before, one.after) == (pytest.approx(np.mean(was)), pytest.approx(np.mean(now)))
    changes = np.subtract(now, was)
    half = stats.t.ppf(0.975, ASKED - 1) * changes.std(ddof=1) / math.sqrt(ASKED)
    assert one.change is not None
    assert (one.change.mean, one.change.cases) == (pytest.approx(changes.mean()), ASKED)
    assert (one.change.low, one.change.high) == pytest.approx((changes.mean() - half, changes.mean() + half))


def test_what_is_no_mean_over_documents_has_two_numbers_and_no_interval(
    toy: Toy, edit: Edit, folder: Path, unchanged: Callable[[Model], None]
) -> None:
    model, facts = toy
    unchanged(model)
    found = Tasks(names=("read", "say"), path=folder)(model, edit)
    assert [(one.task, one.metric) for one in found.effects] == [
        ("read", "word_perplexity"), ("say", "exact_match,bare"), ("say", "bleu,bare"),
    ]  # fmt: skip

    def by_hand() -> tuple[float, float]:
        loss, words, said = 0.0, 0, []
        for one in documents(facts[:ASKED]):
            text = f"{one['prompt']} {one['answers'][1]}"
            ids = model.tokenizer(text, return_tensors="pt")["input_ids"]
            ids = torch.cat([torch.tensor([[model.tokenizer.bos_token_id]]), ids], 1)
            with torch.no_grad():
                logits = model.hf(ids).logits.log_softmax(-1)
            loss -= float(logits[0, :-1].gather(1, ids[0, 1:, None]).sum())
            words += len(text.split())
            said.append(generate(model, [one["prompt"]], 1) == [one["answers"][1]])
        return math.exp(loss / words), float(np.mean(said))

    was = by_hand()
    with edit.applied(model):
        now = by_hand()
    read, exact, bleu = found.effects
    assert (read.before, read.after) == pytest.approx((was[0], now[0]), rel=1e-4)
    assert read.higher_is_better is False
    assert (exact.before, exact.after) == pytest.approx((was[1], now[1]))
    assert was[1] > now[1]
    assert exact.change is not None
    assert (read.change, bleu.change) == (None, None)
    assert "no interval, as it is no mean over documents" in read.told
    assert "no interval" not in exact.told


def test_a_group_has_an_interval_where_each_document_counts_alike(toy: Toy, edit: Edit, folder: Path) -> None:
    model, facts = toy
    found = Tasks(names=("by_size", "alike"), path=folder)(model, edit)
    first, few, group = found["choose", "acc"], found["choose_few", "acc"], found["by_size", "acc"]
    assert len(found.effects) == 6
    assert (first.documents, few.documents, group.documents) == (ASKED, 3, ASKED + 3)
    was = right_by_hand(model, facts[:ASKED])
    with edit.applied(model):
        now = right_by_hand(model, facts[:ASKED])
    changes = np.subtract(now, was).tolist()
    assert group.change == student(changes + changes[1:4])
    alike = found["alike", "acc"]
    assert alike.after == pytest.approx((first.after + few.after) / 2)
    assert alike.after != pytest.approx(group.after)
    assert alike.change is None


def test_the_first_documents_are_asked_with_the_same_examples_in_front(toy: Toy, folder: Path) -> None:
    nothing = toy_edit(toy, size=0.0)
    found = {seed: Tasks(names=("choose_after",), path=folder, limit=5, seed=seed) for seed in range(6)}
    effects = {seed: one(toy[0], nothing).effects[0] for seed, one in found.items()}
    for one in effects.values():
        assert one.documents == 5
        assert one.change == Interval(0.0, 0.0, 0.0, 5)
    prompts = []
    for one in found.values():
        (task,) = one.loaded["tasks"].values()
        assert [asked.doc_id for asked in task.instances] == [i for i in range(5) for _ in range(3)]
        prompts.append(tuple(asked.args[0] for asked in task.instances))
    assert len(set(prompts)) > 1
    again = Tasks(names=("choose_after",), path=folder, limit=5, seed=0)
    again(toy[0], nothing)
    (task,) = again.loaded["tasks"].values()
    assert tuple(asked.args[0] for asked in task.instances) == prompts[0]


def draws_between(before: tuple[object, ...], after: tuple[object, ...], most: int = 20_000) -> int | None:
    """How many draws lead from one state to the other; in tests, checks of types draw from Python's generator too."""
    generator = random.Random()
    generator.setstate(before)
    for i in range(most):
        if generator.getstate()[1] == after[1]:
            return i
        generator.getrandbits(32)
    return None


def test_it_keeps_to_itself(
    toy: Toy, edit: Edit, folder: Path, capfd: pytest.CaptureFixture[str], unchanged: Callable[[Model], None]
) -> None:
    model = toy[0]
    unchanged(model)
    logger = logging.getLogger("lm_eval")
    tokenizer, training, level = copy.deepcopy(vars(model.tokenizer)), model.hf.training, logger.level
    python, states = random.getstate(), (np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    Tasks(names=("choose", "say"), path=folder, limit=3)(model, edit)
    assert (np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == states
    assert draws_between(python, random.getstate()) is not None
    kept = vars(model.tokenizer)
    assert {key: one for key, one in kept.items() if key != "_tokenizer"} == {
        key: one for key, one in tokenizer.items() if key != "_tokenizer"
    }
    assert kept["_tokenizer"].to_str() == tokenizer["_tokenizer"].to_str()
    assert (model.hf.training, logger.level, "tie_weights" in vars(model.hf)) == (training, level, False)
    assert capfd.readouterr() == ("", "")


def test_weights_that_were_untied_stay_so(toy: Toy, folder: Path, unchanged: Callable[[Model], None]) -> None:
    hf = copy.deepcopy(toy[0].hf)
    hf.config.tie_word_embeddings = True
    model = load((hf, toy[0].tokenizer))
    unchanged(model)
    Tasks(names=("choose",), path=folder, limit=2)(model, toy_edit((model, toy[1]), size=1.0))
    assert hf.lm_head.weight is not hf.get_input_embeddings().weight
    # what it is kept from
    hf.all_tied_weights_keys = hf.get_expanded_tied_weights_keys(all_submodels=True)
    tied = copy.deepcopy(hf)
    tied.tie_weights()
    assert tied.lm_head.weight is tied.get_input_embeddings().weight


def test_a_report_shows_tasks_and_they_judge_nothing(
    toy: Toy, edit: Edit, folder: Path, tmp_path: Path, unchanged: Callable[[Model], None]
) -> None:
    model = toy[0]
    unchanged(model)
    tasks = Tasks(names=("choose", "read"), path=folder)
    how = {"texts": ["They went home in summer", "It was a long day"], "attacks": ()}
    report = verify(model, edit, tasks=tasks, **how)  # type: ignore[arg-type]
    bare = verify(model, edit, **how)  # type: ignore[arg-type]
    assert (report.verdicts, report.exit_code) == (bare.verdicts, bare.exit_code)
    assert report.beside.tasks is not None
    assert report.beside.tasks.effects == tasks(model, edit).effects
    assert set(bare.not_tested) - set(report.not_tested) == {ABOUT["tasks"]}
    assert report.costs.seconds["lm-eval tasks"] > 0
    assert report.costs.tokens > bare.costs.tokens
    page = report.save(tmp_path / "report") / "report.html"
    record = json.loads((tmp_path / "report/report.json").read_text())["beside"]["tasks"]
    assert record == json.loads(json.dumps(report.beside.tasks.as_record(), allow_nan=False))
    first, second = record["effects"]
    assert (first["task"], first["change"]["cases"], second["change"]) == ("choose", ASKED, None)
    text = page.read_text(encoding="utf-8")
    assert text.count("<h2>Side effects</h2>") == 1
    assert "at most the first 100 documents of each task" in text
    assert f"{report.beside.tasks.effects[0].change.mean:+.3g}" in text
    assert report.table().caption.splitlines()[-2:] == [one.told for one in report.beside.tasks.effects]  # type: ignore[union-attr]
    assert bare.beside.as_record()["tasks"] is None
    with_tasks, without = (Certificate.of(one, model, edit).content["beside"] for one in (report, bare))
    assert [one["after"] for one in with_tasks["tasks"]["scored"]] == pytest.approx([first["after"], second["after"]])
    assert "tasks" not in without
    assert "Side effects" not in bare.save(tmp_path / "bare").joinpath("report.html").read_text(encoding="utf-8")


def test_tasks_compare_by_an_edit_of_these_weights(toy: Toy, gpt2: Model, edit: Edit, folder: Path) -> None:
    tasks = Tasks(names=("choose",), path=folder)
    with pytest.raises(SurgeryError, match="tasks compare a model before and after an edit; give one, as --edit"):
        verify(toy[0], None, toy[1][0], tasks=tasks)

    class Guard:
        base, claim, facts, prompts = edit.base, edit.claim, edit.facts, edit.prompts
        applied, summary = edit.applied, edit.summary

    guard = Guard()
    assert isinstance(guard, Intervention)
    with pytest.raises(SurgeryError, match="tasks compare a model before and after an edit"):
        verify(toy[0], guard, tasks=tasks)
    with pytest.raises(WrongWeights):
        tasks(gpt2, edit)


def test_without_the_package_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(SurgeryError, match=r"install it by pip install 'knowledge-surgery\[harness\]'$"):
        Tasks(names=("choose",))


def test_it_is_imported_by_nothing_else() -> None:
    root = Path(__file__).parents[2]
    files = [path for name in ("surgery", "locate", "edits") for path in (root / name).rglob("*.py")]
    naming = {path.name for path in files if "import lm_eval" in path.read_text() or "from lm_eval" in path.read_text()}
    assert naming == set()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_task", "lm-evaluation-harness knows no task no_such_task; .*--tasks-path DIR"),
        ("far", "cannot load the tasks far: .*nobody-there/nothing.*; where their data have to be downloaded, do it"),
        ("unsafe", "the task unsafe runs code that the model writes; choose another task"),
        ("wordy", "cannot ask wordy of .*1000.*; choose other tasks"),
    ],
)
def test_tasks_that_cannot_be_asked(toy: Toy, edit: Edit, folder: Path, name: str, message: str) -> None:
    with pytest.raises(SurgeryError, match=message):
        Tasks(names=(name,), path=folder)(toy[0], edit)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"names": ()}, "'' names no tasks; give each once, such as arc_easy,piqa"),
        ({"names": ("piqa", "")}, "'piqa,' names no tasks"),
        ({"names": ("piqa", "piqa")}, "'piqa,piqa' names no tasks"),
        ({"path": Path("nowhere")}, "there is no folder nowhere; give one that holds the tasks' YAML files"),
        ({"limit": 0}, "a task asks at least 1 document, 1 row at a time, not 0, 8"),
        ({"rows": 0}, "a task asks at least 1 document, 1 row at a time, not 100, 0"),
    ],
)
def test_wrong_values(given: dict[str, object], message: str) -> None:
    with pytest.raises(SurgeryError, match=message):
        Tasks(**{"names": ("piqa",), **given})  # type: ignore[arg-type]
