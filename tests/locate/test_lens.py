"""The logit lens: the model's own output at the last layer, the plain formula below it, bounded memory."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from tiny import tiny_model, tiny_tokenizer

import locate.lens
from locate.figures.lens import Colour, lens_table, short
from locate.lens import EMBEDDING, Lens, logit_lens
from surgery import Fact, Model, SurgeryError, load
from surgery.hooks import TraceDict, hidden
from surgery.tokens import ask_fact

FACT = Fact(subject="Paris", template="See {} in the", target="city")


def test_the_last_layer_is_the_models_output(tiny: Model, tiny_fact: Fact, unchanged: Callable[[Model], None]) -> None:
    unchanged(tiny)
    lens = logit_lens(tiny, tiny_fact)
    question, span = ask_fact(tiny.tokenizer, tiny_fact, tiny_fact.target)
    answer = question.answer_ids[0]
    with torch.no_grad():
        logits = tiny.hf(torch.tensor([question.prompt_ids])).logits[0].double()
    p = logits.softmax(-1)
    np.testing.assert_allclose(lens.probability[-1], p[:, answer], rtol=1e-4)
    np.testing.assert_allclose(lens.confidence[-1], p.max(-1).values, rtol=1e-4)
    np.testing.assert_allclose(lens.entropy[-1], -(p * p.log()).sum(-1), rtol=1e-4)
    assert lens.rank[-1].tolist() == ((logits > logits[:, answer, None]).sum(-1) + 1).tolist()
    assert [tiny.tokenizer.decode([i]) for i in p.argmax(-1)] == list(lens.likeliest[-1])
    assert lens.subject == span
    assert lens.tokens == question.token_texts[: question.answer_start]
    # a positive control: the layers below read otherwise
    assert np.abs(lens.probability[:-1] - lens.probability[-1]).max() > 1e-3


def test_every_layer_is_the_plain_formula(toy: tuple[Model, list[Fact]]) -> None:
    model, facts = toy
    lens = logit_lens(model, facts[0])
    question, _ = ask_fact(model.tokenizer, facts[0], facts[0].target)
    ids, answer = torch.tensor([question.prompt_ids]), question.answer_ids[0]
    names = model.anatomy.names("state")
    with torch.no_grad(), TraceDict(model.hf, names, retain_input=True) as seen:
        model.hf(ids)
        states = [hidden(seen[name].input, 1) for name in names]
        norm = model.hf.get_submodule(model.anatomy.final_norm)
        p = [model.hf.get_output_embeddings()(norm(one))[0].double().softmax(-1) for one in states]
    assert lens.layers == (EMBEDDING, 0, 1, 2, 3)
    np.testing.assert_allclose(lens.probability[:-1], torch.stack(p)[..., answer], rtol=1e-4)
    np.testing.assert_allclose(lens.entropy[:-1], [torch.special.entr(one).sum(-1) for one in p], rtol=1e-4)


def test_what_is_read_does_not_depend_on_how_much_at_a_time(
    toy: tuple[Model, list[Fact]], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, facts = toy
    whole = logit_lens(model, facts[0])
    unembed, sizes = type(model.anatomy).unembed, []

    def counting(self: object, states: torch.Tensor) -> torch.Tensor:
        sizes.append(len(states))
        return unembed(self, states)

    monkeypatch.setattr(type(model.anatomy), "unembed", counting)
    monkeypatch.setattr(locate.lens, "MOST_LOGITS", 3 * model.anatomy.vocab)
    split = logit_lens(model, facts[0])
    assert max(sizes) == 3
    assert sum(sizes) == whole.rank.size
    assert split.likeliest == whole.likeliest
    assert np.array_equal(split.rank, whole.rank)
    np.testing.assert_allclose(split.entropy, whole.entropy, rtol=1e-5)


def test_positions_are_picked(toy: tuple[Model, list[Fact]]) -> None:
    model, facts = toy
    whole, part = logit_lens(model, facts[0]), logit_lens(model, facts[0], positions=[-1, 1])
    last = len(whole.tokens) - 1
    assert part.positions == (last, 1)
    assert part.tokens == (whole.tokens[last], whole.tokens[1])
    np.testing.assert_allclose(part.probability, whole.probability[:, [last, 1]], rtol=1e-5)
    for wrong in ([], [last + 1], [-last - 2]):
        with pytest.raises(SurgeryError, match=rf"the prompt has {last + 1} tokens"):
            logit_lens(model, facts[0], positions=wrong)


def test_a_bare_prompt_looks_for_the_models_own_answer(toy: tuple[Model, list[Fact]]) -> None:
    model, facts = toy
    lens, of_fact = logit_lens(model, facts[0].prompt), logit_lens(model, facts[0])
    assert lens.subject is None
    assert lens.rank[-1, -1] == 1
    assert lens.target == lens.likeliest[-1][-1]
    assert lens.target.strip() == facts[0].target  # the toy knows its facts
    assert np.array_equal(lens.rank, of_fact.rank)
    other = next(fact.target for fact in facts if fact.target != facts[0].target)
    assert logit_lens(model, facts[0].prompt, target=other).target.strip() == other
    assert np.array_equal(
        logit_lens(model, facts[0].prompt, target=other).probability,
        logit_lens(model, facts[0], target=other).probability,
    )


def _lens(rank: list[int]) -> Lens:
    shape = (len(rank), 1)
    half = np.full(shape, 0.5)
    return Lens(
        layers=tuple(range(-1, len(rank) - 1)),
        positions=(0,),
        tokens=("a",),
        likeliest=(("b",),) * len(rank),
        confidence=half,
        probability=half / 2,
        rank=np.array(rank).reshape(shape),
        entropy=half,
        target="c",
        prompt="a",
        subject=None,
        vocab=9,
        model="m",
    )


def test_settling_is_for_good() -> None:
    assert _lens([5, 1, 3, 1, 1]).settles() == 2
    assert _lens([5, 1, 3, 1, 1]).settles(rank=3) == 0
    assert _lens([1, 1, 1]).settles() == -1
    assert _lens([1, 1, 2]).settles() is None


def test_a_lens_checks_itself() -> None:
    with pytest.raises(ValueError, match="ranks go from 1 to 9"):
        _lens([1, 0])
    with pytest.raises(ValueError, match="ranks go from 1 to 9"):
        _lens([1, 10])


@pytest.fixture(scope="module")
def lens() -> Lens:
    return logit_lens(load((tiny_model("gpt2"), tiny_tokenizer())), FACT)


def test_a_record_is_json(lens: Lens) -> None:
    record = json.loads(json.dumps(lens.as_record()))
    assert np.array_equal(record["probability"], lens.probability)
    assert record["likeliest"] == [list(row) for row in lens.likeliest]


@pytest.mark.parametrize("colour", ["probability", "entropy", "rank"])
def test_the_table_shows_the_lens_late_layers_on_top(lens: Lens, colour: Colour) -> None:
    figure, ax = plt.subplots()
    assert lens_table(lens, ax, colour=colour, stride=2) is ax
    assert [label.get_text() for label in ax.get_yticklabels()] == ["3", "1", "emb."]
    assert np.array_equal(ax.images[0].get_array(), getattr(lens, colour)[[4, 2, 0]])
    texts = [text.get_text() for text in ax.texts]
    assert texts == [short(token) for row in (4, 2, 0) for token in lens.likeliest[row]]
    ticks = [label.get_text() for label in ax.get_xticklabels()]
    assert [i for i, tick in enumerate(ticks) if tick.endswith("*")] == list(
        range(lens.subject.start, lens.subject.stop)  # type: ignore[union-attr]
    )
    figure.canvas.draw()


def test_numbers_are_written_on_demand(lens: Lens) -> None:
    texts = [text.get_text() for text in lens.plot(colour="rank", numbers=True).texts]
    assert texts[0].endswith(f"\n{lens.rank[-1, 0]}")


@pytest.mark.parametrize(
    "token", ["$x$", "\n", "\t", "", " ", "\ufffd", "日本", "🙂", "\x00", "a very long token", "\\frac{"]
)
def test_any_token_fits_a_cell(lens: Lens, token: str) -> None:
    assert 1 <= len(short(token)) <= 6
    hostile = dataclasses.replace(
        lens,
        likeliest=tuple((token,) * len(row) for row in lens.likeliest),
        tokens=(token,) * len(lens.tokens),
        target=token,
    )
    hostile.plot(numbers=True).figure.canvas.draw()


def test_wrong_drawing_options_name_the_remedy(lens: Lens) -> None:
    with pytest.raises(SurgeryError, match="a stride from 1"):
        lens_table(lens, stride=0)


def test_the_real_models_last_layer(smol: Model) -> None:
    fact = Fact(subject="The Eiffel Tower", template="{} is located in the city of", target="Paris")
    lens = logit_lens(smol, fact)
    with torch.no_grad(), TraceDict(smol.hf, smol.anatomy.names("state")[-1:]) as seen:
        p = smol.hf(torch.tensor([ask_fact(smol.tokenizer, fact, "Paris")[0].prompt_ids])).logits[0].softmax(-1)
    assert hidden(seen[smol.anatomy.names("state")[-1]].output, 1).shape[1] == len(lens.tokens)
    np.testing.assert_allclose(lens.confidence[-1], p.max(-1).values, rtol=1e-3)
    assert lens.settles() == max(i for i in lens.layers if lens.rank[i + 1, -1] > 1) + 1
