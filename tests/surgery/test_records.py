"""Facts files: the own layout there and back, the published ones, and files that are wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from surgery import Fact, FactsFileError, Neighbour, SurgeryError, read_facts, write_facts

quick = settings(max_examples=60, deadline=None, derandomize=True, database=None)
HOSTILE = [
    "{",
    "}{",
    "\x00",
    "\x1b[31m",
    '"',
    "\\",
    "'",
    "\n",
    "\r\n",
    "\u2028",
    "\u2029",
    "\x85",
    "\x0b\x0c",
    "🙂",
    "é",
]
text = st.lists(st.sampled_from([*HOSTILE, "word", " ", "東京"]) | st.text(max_size=5), min_size=1, max_size=8).map(
    "".join
)
words = text.filter(lambda one: bool(one.strip()))
around = text.filter(lambda one: "{}" not in one)
# plain values: beartype, which draws at random, may not run while hypothesis draws
records = st.fixed_dictionaries(
    {"subject": words, "template": st.tuples(around, around).map("{}".join), "target": words},
    optional={
        "new_target": words,
        **dict.fromkeys(("paraphrases", "aliases"), st.lists(words, min_size=1, max_size=2)),
        "neighbours": st.lists(st.fixed_dictionaries({"prompt": words, "target": words}), min_size=1, max_size=2),
        "id": text,
    },
)
LONG = {"subject": "x" * 10_000, "template": "{}" + "é\u2028" * 5_000, "target": '"\\\x00' * 3_333}

OWN = {"subject": "The tower", "template": "{} is in", "target": "Paris"}
REWRITE = {
    "prompt": "The mother tongue of {} is",
    "relation_id": "P103",
    "target_new": {"str": "English", "id": "Q1860"},
    "target_true": {"str": "French", "id": "Q150"},
    "subject": "Danielle Darrieux",
}
COUNTERFACT = {
    "case_id": 3,
    "pararel_idx": 2796,
    "requested_rewrite": REWRITE,
    "paraphrase_prompts": ["It was long ago. Danielle Darrieux spoke", "Danielle Darrieux, a native"],
    "neighborhood_prompts": ["The mother tongue of Léon Blum is", "Montesquieu is a native"],
    "attribute_prompts": ["J.R.R. Tolkien is a native"],
    "generation_prompts": ["Danielle Darrieux's mother tongue is"],
}
KNOWN = {
    "known_id": 12,
    "subject": "Vinson Massif",
    "attribute": "Antarctica",
    "template": "{} is located in the continent",
    "prediction": " of Antarctica. It is the",
    "prompt": "Vinson Massif is located in the continent of",
    "relation_id": "P30",
}
RELATION = {
    "name": "country capital city",
    "prompt_templates": ["The capital city of {} is", "{}'s seat of government is"],
    "prompt_templates_zs": ["The capital city of {} is", "What is the capital of {}? It is"],
    "properties": {"relation_type": "factual", "domain_name": "country"},
    "samples": [{"subject": "China", "object": "Beijing"}, {"subject": "Japan", "object": "Tokyo"}],
}
TOFU = {
    "question": "What gender is author Basil Mahfouz Al-Kuwaiti?",
    "answer": "Author Basil Mahfouz Al-Kuwaiti is male.",
    "paraphrased_question": "Is Basil Mahfouz Al-Kuwaiti a man or a woman?",
    "perturbed_answer": ["Author Basil Mahfouz Al-Kuwaiti is female."],
}


def written(folder: Path, *records: Any, lines: bool = True) -> Path:
    path = folder / "facts.jsonl"
    content = "\n".join(json.dumps(one) if not isinstance(one, str) else one for one in records)
    path.write_text(content if lines else json.dumps(list(records)), encoding="utf-8")
    return path


@quick
@given(values=st.lists(records, min_size=1, max_size=3))
@example(values=[LONG])
def test_own_files_come_back_the_same(values: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "hostile.jsonl"
    facts = [Fact.from_record(one) for one in values]
    assert write_facts(path, facts) == path
    assert path.read_bytes().count(b"\n") == len(facts)
    assert read_facts(path) == facts
    assert [fact.as_record() for fact in facts] == [
        {key: tuple(one) if key in ("paraphrases", "neighbours", "aliases") else one for key, one in each.items()}
        for each in values
    ]


def test_the_order_and_duplicates_of_a_file_stay(tmp_path: Path) -> None:
    other = {**OWN, "target": "Rome"}
    assert [fact.target for fact in read_facts(written(tmp_path, OWN, "", other, OWN))] == ["Paris", "Rome", "Paris"]


def test_a_list_of_own_records_is_read_too(tmp_path: Path) -> None:
    assert read_facts(written(tmp_path, OWN, OWN, lines=False)) == [Fact(**OWN)] * 2


def test_a_fact_may_have_no_subject(tmp_path: Path) -> None:
    (fact,) = read_facts(written(tmp_path, {"template": "The password is", "target": "swordfish"}))
    assert (fact.subject, fact.prompt) == ("", "The password is")
    write_facts(tmp_path / "again.jsonl", [fact])
    assert read_facts(tmp_path / "again.jsonl") == [fact]


def test_windows_line_ends_are_read(tmp_path: Path) -> None:
    path = tmp_path / "facts.jsonl"
    path.write_bytes((json.dumps(OWN) + "\r\n").encode() * 2)
    assert read_facts(path) == [Fact(**OWN)] * 2


def test_counterfact(tmp_path: Path) -> None:
    assert read_facts(written(tmp_path, COUNTERFACT, lines=False)) == [
        Fact(
            subject="Danielle Darrieux",
            template="The mother tongue of {} is",
            target="French",
            new_target="English",
            paraphrases=("It was long ago. Danielle Darrieux spoke", "Danielle Darrieux, a native"),
            neighbours=(
                Neighbour("The mother tongue of Léon Blum is", "French"),
                Neighbour("Montesquieu is a native", "French"),
            ),
            id="3",
        )
    ]


def test_known_facts_keep_their_whole_prompt(tmp_path: Path) -> None:
    inside = {**KNOWN, "known_id": 13, "template": "Far away, {} lies", "prompt": "Far away, Vinson Massif lies in"}
    facts = read_facts(written(tmp_path, KNOWN, inside, lines=False))
    assert [fact.prompt for fact in facts] == [KNOWN["prompt"], inside["prompt"]]
    assert [fact.template for fact in facts] == ["{} is located in the continent of", "Far away, {} lies in"]
    assert [(fact.target, fact.id) for fact in facts] == [("Antarctica", "12"), ("Antarctica", "13")]


def test_the_template_tells_which_of_two_mentions_is_the_subject(tmp_path: Path) -> None:
    record = {
        **KNOWN,
        "subject": "Paris",
        "template": "Paris Hilton lives in {}",
        "prompt": "Paris Hilton lives in Paris in",
    }
    (fact,) = read_facts(written(tmp_path, record, lines=False))
    assert fact.template == "Paris Hilton lives in {} in"


def test_a_known_fact_whose_subject_is_not_in_its_prompt_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FactsFileError, match=r"record 1, subject: 'Everest' is not in the prompt"):
        read_facts(written(tmp_path, {**KNOWN, "subject": "Everest"}, lines=False))


def test_relations(tmp_path: Path) -> None:
    china, japan = read_facts(written(tmp_path, RELATION, lines=False))
    assert (china.prompt, china.target, china.new_target) == ("The capital city of China is", "Beijing", None)
    assert china.paraphrases == ("China's seat of government is", "What is the capital of China? It is")
    assert china.neighbours == (Neighbour("The capital city of Japan is", "Tokyo"),)
    assert (japan.subject, japan.target, japan.id) == ("Japan", "Tokyo", "country capital city 1")


def test_one_relation_alone_is_a_file(tmp_path: Path) -> None:
    path = tmp_path / "relation.json"
    path.write_text(json.dumps(RELATION, indent=2), encoding="utf-8")
    assert [fact.subject for fact in read_facts(path)] == ["China", "Japan"]


def test_tofu(tmp_path: Path) -> None:
    unnamed = {"question": "Where did she live then?", "answer": "In Berlin."}
    named, other = read_facts(written(tmp_path, TOFU, unnamed))
    assert (named.subject, named.template) == ("Basil Mahfouz Al-Kuwaiti", "What gender is author {}?")
    assert named.target == TOFU["answer"]
    assert named.paraphrases == (TOFU["paraphrased_question"],)
    assert (other.subject, other.template) == (unnamed["question"], "{}")


def test_every_bad_line_is_reported_at_once_and_nothing_is_read(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        OWN,
        {"subject": "x", "template": "{} is"},
        "{not json",
        {**OWN, "template": "no slot"},
        "",
        {**OWN, "subject": 3, "targets": "typo"},
        {**OWN, "neighbours": [{"prompt": "p", "target": "t"}, {"prompt": "p"}]},
        {**OWN, "target": " "},
        '"a string"',
        OWN,
    )
    with pytest.raises(FactsFileError) as caught:
        read_facts(path)
    found = [(one.place, one.field) for one in caught.value.problems]
    assert found == [
        ("line 2", "target"),
        ("line 3", "JSON"),
        ("line 4", "template"),
        ("line 6", "subject"),
        ("line 6", "targets"),
        ("line 7", "neighbours.1.target"),
        ("line 8", "target"),
        ("line 9", "record"),
    ]
    expected = [
        "required",
        "expected one object",
        "no {}",
        "valid string",
        "not permitted",
        "required",
        "is empty",
        "JSON object",
    ]
    for problem, says in zip(caught.value.problems, expected, strict=True):
        assert says in problem.expected
        assert str(problem) in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("record", "field"),
    [
        ({**COUNTERFACT, "case_id": "3"}, "case_id"),
        ({**COUNTERFACT, "requested_rewrite": {**REWRITE, "target_true": "French"}}, "requested_rewrite.target_true"),
        ({**COUNTERFACT, "paraphrase_prompts": None}, "paraphrase_prompts"),
        ({**KNOWN, "attribute": None}, "attribute"),
        ({**RELATION, "samples": [{"subject": "China"}]}, "samples.0.object"),
        ({**RELATION, "prompt_templates": []}, "prompt_templates"),
        ({**TOFU, "answer": 1}, "answer"),
    ],
)
def test_published_layouts_are_checked_by_field(tmp_path: Path, record: dict[str, Any], field: str) -> None:
    with pytest.raises(FactsFileError) as caught:
        read_facts(written(tmp_path, record, lines=False))
    assert [(one.place, one.field) for one in caught.value.problems] == [("record 1", field)]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"hello", "line 1, JSON: expected one object"),
        (b"", "holds no facts"),
        (b"\n \n", "holds no facts"),
        (b"[]", "holds no facts"),
        (b"null", "record 1, record"),
        (b"\xff\xfe\x00", "not UTF-8"),
        (b"[" * 100_000, "nested too deeply"),
    ],
    ids=["text", "empty", "blank", "empty list", "null", "binary", "deep"],
)
def test_files_that_hold_no_facts_are_refused(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "facts.jsonl"
    path.write_bytes(content)
    with pytest.raises(SurgeryError, match=says) as caught:
        read_facts(path)
    assert str(path) in str(caught.value)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SurgeryError, match="No such file"):
        read_facts(tmp_path / "absent.jsonl")
    with pytest.raises(SurgeryError, match="Is a directory"):
        read_facts(tmp_path)


def test_a_failing_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = write_facts(tmp_path / "facts.jsonl", [Fact(**OWN)])

    def failing() -> Any:
        yield Fact(**OWN)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_facts(path, failing())
    with pytest.raises(UnicodeEncodeError):
        write_facts(path, [Fact(**{**OWN, "target": "\ud800"})])
    assert read_facts(path) == [Fact(**OWN)]
    assert list(tmp_path.iterdir()) == [path]
