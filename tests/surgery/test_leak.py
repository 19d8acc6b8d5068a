"""Can the subject be read off an edit? One written at a key can; one that has nothing to do with keys cannot."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from by_hand import Toy, edit_of
from torch import Tensor

from surgery import Certificate, Delta, Edit, Fact, Leak, Model, SurgeryError, WrongWeights, delta_leak, redact, verify
from surgery.hooks import Trace, hidden
from surgery.tokens import ask_fact, pad
from surgery.verification.leak import UNREAD, Reading


def key_of(model: Model, fact: Fact, layer: int) -> Tensor:
    """The input of a layer's down-projection at the subject's last token, read plainly."""
    question, span = ask_fact(model.tokenizer, fact, fact.target)
    with Trace(model.hf, model.anatomy.names("mlp")[layer], retain_input=True) as trace, torch.no_grad():
        model.hf(**model.inputs(pad([question.ids])))
    return hidden(trace.input, 1)[0, span.last]


def written_at(toy: Toy, facts: list[Fact], layers: tuple[int, ...] = (1,), spoil: float = 0.0) -> Edit:
    """An edit whose right factors are the facts' keys, with as much noise as asked."""
    model, _ = toy
    draw, deltas = torch.Generator().manual_seed(0), []
    for layer in layers:
        keys = torch.stack([key_of(model, fact, layer) for fact in facts], 1)
        noise = torch.randn(keys.shape, generator=draw)
        left = torch.randn(model.anatomy.d_model, len(facts), generator=draw)
        right = keys / keys.norm(dim=0) + spoil * noise / noise.norm(dim=0)
        deltas.append(Delta(model.anatomy.names("mlp")[layer], left, right))
    return edit_of(model, *deltas, facts=tuple(facts))


def names(toy: Toy) -> list[str]:
    return list(dict.fromkeys(fact.subject for fact in toy[1]))


def test_a_subject_whose_key_was_written_comes_first(toy: Toy, unchanged: Callable[[Model], None]) -> None:
    model, facts = toy
    unchanged(model)
    leak = delta_leak(model, written_at(toy, facts[:1]), names=names(toy))
    (reading,) = leak.readings
    assert (reading.subject, reading.rank, leak.rank, leak.first) == (facts[0].subject, 1, 1, 1)
    assert reading.of == leak.names + 1 == len(reading.controls) + 1 == len(names(toy))
    assert reading.score == pytest.approx(1, abs=1e-5)
    assert list(reading.controls) == sorted(reading.controls, reverse=True)
    # the cosine of two keys, computed by hand
    other = facts[0].replace(subject=reading.nearest)
    cosine = torch.cosine_similarity(key_of(model, facts[0], 1), key_of(model, other, 1), dim=0)
    assert reading.controls[0] == pytest.approx(abs(float(cosine)), abs=1e-4)
    assert "1 of 1 subjects come first" in leak.told


def test_every_subject_of_a_batch_comes_first_over_several_layers(toy: Toy) -> None:
    facts = list({fact.subject: fact for fact in toy[1]}.values())[:4]
    leak = delta_leak(toy[0], written_at(toy, facts, (0, 2)), names=names(toy))
    assert [one.subject for one in leak.readings] == [fact.subject for fact in facts]
    assert (leak.first, leak.names) == (4, len(names(toy)) - 4)
    assert leak.modules == (toy[0].anatomy.names("mlp")[0], toy[0].anatomy.names("mlp")[2])


def test_noise_hides_it(toy: Toy) -> None:
    model, facts = toy
    ranks, scores = [], []
    for spoil in (0.0, 1.0, 1e6):
        leak = delta_leak(model, written_at(toy, facts[5:6], spoil=spoil), names=names(toy))
        ranks.append(leak.rank)
        scores.append(leak.readings[0].score)
    assert ranks[0] == 1
    assert ranks[2] > 1
    assert scores == sorted(scores, reverse=True)
    assert scores[2] < 0.5


def test_the_factors_do_not_matter_only_the_change(toy: Toy) -> None:
    model, facts = toy
    made = written_at(toy, facts[:1])
    twice = dataclasses.replace(made, deltas=tuple(delta + delta for delta in made.deltas))
    one, other = (delta_leak(model, edit, names=names(toy)).readings[0] for edit in (made, twice))
    assert one.controls == pytest.approx(other.controls, abs=1e-6)


def test_an_edit_without_words_leaks_the_same(toy: Toy) -> None:
    model, facts = toy
    made = written_at(toy, facts[:1])
    bare = redact(made, "none")
    with pytest.raises(SurgeryError, match="does not say what it is about; give its facts, as --facts FILE"):
        delta_leak(model, bare)
    assert delta_leak(model, bare, facts[0]) == delta_leak(model, made)


def test_what_cannot_be_tried_is_refused(toy: Toy) -> None:
    model, facts = toy
    made = written_at(toy, facts[:1])
    with pytest.raises(WrongWeights, match="made for other weights"):
        delta_leak(model, dataclasses.replace(made, base="0" * 64))
    with pytest.raises(SurgeryError, match="none of the facts has a subject"):
        delta_leak(model, made, Fact(subject="", template="It rains in", target="Paris"))
    subject = facts[0].subject
    with pytest.raises(SurgeryError, match="2 names are too few to rank a subject among; give at least 20"):
        delta_leak(model, made, names=["Xx", "Yy", subject, f"{subject} the Second", subject.split()[0]])
    nothing = Delta(made.deltas[0].module, 0 * made.deltas[0].left, made.deltas[0].right)
    with pytest.raises(SurgeryError, match="every change of the edit is zero"):
        delta_leak(model, dataclasses.replace(made, deltas=(nothing,)))
    with pytest.raises(SurgeryError, match="without an edit there is none to leak"):
        verify(model, None, facts[0], leak=True)
    with pytest.raises(SurgeryError, match="is not that of 'A' among its controls"):
        Reading("A", 2, 3, 0.9, (0.5, 0.1), "B")
    with pytest.raises(SurgeryError, match="no subject that an edit could leak"):
        Leak((), ("m",), 3)


def test_a_report_holds_it(toy: Toy, tmp_path: object) -> None:
    model, facts = toy
    made = dataclasses.replace(written_at(toy, facts[:1]), claim="removed")
    report = verify(model, made, leak=True)
    assert report.leak == delta_leak(model, made)
    assert report.as_record()["leak"]["readings"][0]["rank"] == 1
    assert "subjects come first" in str(report.table().caption)
    page = (report.save(str(tmp_path)) / "report.html").read_text()
    assert "Read off the edit itself" in page
    bare, full = (
        verify(model, made),
        verify(model, made, profile="full", attacks=(), beside=True, texts=["They went home"]),
    )
    assert (bare.leak, UNREAD in bare.not_tested) == (None, True)
    assert (full.leak, UNREAD in full.not_tested) == (report.leak, False)
    (reading,) = report.leak.readings
    assert Certificate.of(full, model, made).content["beside"]["leak"] == {
        "names": report.leak.names,
        "first": 1,
        "readings": [
            {
                "rank": 1,
                "response": float(f"{reading.score:.6g}"),
                "highest other": float(f"{reading.controls[0]:.6g}"),
            }
        ],
    }


def test_a_subject_too_long_to_be_tried_leaves_the_others_theirs(toy: Toy) -> None:
    model, facts = toy
    made = written_at(toy, facts[:1])
    long = facts[0].replace(subject="Falk Brin", template="was " * 63 + "{} lives in")
    alone, both = (delta_leak(model, made, some, names=names(toy)) for some in (facts[:1], [facts[0], long]))
    assert (both.left_out, alone.left_out, len(both.readings)) == (1, 0, 1)
    assert both.readings[0].rank == 1
    with pytest.raises(SurgeryError, match="the model cannot read the subjects and all the names in the facts' words"):
        delta_leak(model, made, long, names=names(toy))
    quiet = dataclasses.replace(made, claim="removed", facts=(facts[0], long))
    report = verify(model, quiet, profile="full", attacks=(), beside=True, leak=True, texts=["They went home"])
    assert report.leak is not None
    # only what can be asked is tried at all
    assert (report.leak.left_out, report.verdicts[1].overall) == (0, "inconclusive")
    near = facts[0].replace(subject="", template=facts[0].prompt)
    none = verify(model, quiet, [near], profile="full", attacks=(), beside=True, texts=["They went home"])
    assert (none.leak, f"{UNREAD}: none of the facts has a subject" in none.not_tested) == (None, True)
