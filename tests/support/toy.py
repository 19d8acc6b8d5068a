"""A small model trained in a few seconds to know about ninety facts of an invented world.

Thirty people each live in a city, speak a language and play an instrument.  First names and surnames are shared, and
which facts go with which person is random, so neither word of a name determines an answer: the two words have to be
combined.  As in a real language model this happens at the last word of the name, in an MLP, and later attention
carries the answer to the end of the prompt (see ``_attention_mask`` for why).
"""

from __future__ import annotations

import random
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

FIRST_NAMES = ("Alda", "Bero", "Cilla", "Doran", "Edda", "Falk", "Gerda", "Hilmar")
SURNAMES = ("Brin", "Castor", "Dunmore", "Elkin", "Farrow", "Gantz", "Holm", "Ister")
N_SUBJECTS = 30

RELATIONS: dict[str, tuple[tuple[str, str, str], tuple[str, ...]]] = {
    "lives in": (
        ("{} lives in the city of", "{} has a house in", "The home town of {} is"),
        ("Orvel", "Tamsk", "Lundra", "Pellimar", "Quist", "Ravenna", "Sorrel", "Umber"),
    ),
    "speaks": (
        ("{} speaks the language", "{} writes letters in", "The mother tongue of {} is"),
        ("Norric", "Velan", "Tashi", "Ombrian", "Kelt", "Zandic", "Ursic", "Ilmari"),
    ),
    "plays": (
        ("{} plays the", "{} performs on the", "The favourite instrument of {} is the"),
        ("flute", "harp", "cello", "drum", "lute", "organ", "viola", "horn"),
    ),
}
"""Relation -> its three phrasings and its answers."""

_FILLER = (
    "The Then Therefore Because But I You We They and so it was a long day in summer when people went home to see some "
    "old friends who had been away for years"
)
FILLER_WORDS = _FILLER.split()
DESCRIPTION = "{} is a person"
"""A true sentence about everybody, for what an edit should leave alone."""

PAD, BOS, EOS, UNK = "<pad>", "<s>", "</s>", "<unk>"

_SETTINGS: dict[str, dict[str, Any]] = {
    "gpt2": {
        "n_embd": 64,
        "n_layer": 4,
        "n_head": 4,
        "n_inner": 256,
        "n_positions": 64,
        "activation_function": "gelu_pytorch_tanh",  # the same function as GPT-2's, in one kernel
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
    },
    "llama": {
        "hidden_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 192,
        "max_position_embeddings": 64,
        "tie_word_embeddings": False,
    },
}

_STEPS = {"gpt2": 105, "llama": 70}
_INITIALIZER_RANGE = 0.12
"""About 1 / sqrt(d_model); from the usual 0.02 the first hundred steps would only grow the weights."""
_LEARNING_RATE = 0.01
_BATCH_SIZE = 90
_PREFIX_RATE = 0.4
_ROUTE_RATE = 0.75
_CONTEXT_WEIGHT = 0.1


class _World(NamedTuple):
    subjects: list[str]
    answers: dict[str, dict[str, str]]
    """relation -> subject -> answer"""


class _Statement(NamedTuple):
    """A sentence to train on; the subject is the words from ``start`` to ``start + 1``."""

    words: list[str]
    start: int
    answer: int | None


@lru_cache
def trained_toy(name: str, *, seed: int = 0) -> tuple[PreTrainedModel, PreTrainedTokenizerFast, list[dict[str, Any]]]:
    """Train the toy and return it with its tokenizer and its facts; shared between callers, so read only.

    A fact is ``{"relation", "subject", "template", "target", "paraphrases", "neighbours"}``: the answer follows the
    filled-in template after a space, ``paraphrases`` are whole prompts with the same answer, and ``neighbours`` are
    ``{"prompt", "target"}`` for the same relation of other people, those who share a name with the subject first.
    """
    world = _invent_world(seed)
    tokenizer = _build_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(
                name,
                vocab_size=len(tokenizer),
                pad_token_id=tokenizer.pad_token_id,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                initializer_range=_INITIALIZER_RANGE,
                **_SETTINGS[name],
            ),
            dtype=torch.float32,
        )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums in a fixed order; and a second thread gains little on matrices so small
    try:
        _train(model, tokenizer, world, steps=_STEPS[name], draw=random.Random(seed))
    finally:
        torch.set_num_threads(threads)
    return model.eval().requires_grad_(False), tokenizer, _facts(world)


def _invent_world(seed: int) -> _World:
    """Draw the people and their facts, such that nobody's name gives an answer away by one of its words."""
    draw = random.Random(seed)
    # Every first name and every surname is used at least three times: a diagonal band of the grid of names.
    grid = [(i, (i + shift) % len(SURNAMES)) for shift in range(len(SURNAMES)) for i in range(len(FIRST_NAMES))]
    names = sorted(grid[:N_SUBJECTS])
    subjects = [f"{FIRST_NAMES[i]} {SURNAMES[j]}" for i, j in names]
    answers = {}
    for relation, (_, choices) in RELATIONS.items():
        while True:
            drawn = [choices[k % len(choices)] for k in range(N_SUBJECTS)]
            draw.shuffle(drawn)
            answers[relation] = dict(zip(subjects, drawn, strict=True))
            if _needs_both_words(answers[relation]):
                break
    return _World(subjects, answers)


def _needs_both_words(answers: dict[str, str]) -> bool:
    for position in range(2):
        shared: dict[str, list[str]] = {}
        for subject, answer in answers.items():
            shared.setdefault(subject.split()[position], []).append(answer)
        if any(len(set(given)) < len(given) - 1 for given in shared.values()):
            return False
    return True


def _facts(world: _World) -> list[dict[str, Any]]:
    facts = []
    for relation, (templates, _) in RELATIONS.items():
        for subject in world.subjects:
            target = world.answers[relation][subject]
            words = set(subject.split())
            others = [other for other in world.subjects if world.answers[relation][other] != target]
            others.sort(key=lambda other, words=words: not words & set(other.split()))
            facts.append(
                {
                    "relation": relation,
                    "subject": subject,
                    "template": templates[0],
                    "target": target,
                    "paraphrases": [template.format(subject) for template in templates[1:]],
                    "neighbours": [
                        {"prompt": templates[0].format(other), "target": world.answers[relation][other]}
                        for other in others[:8]
                    ],
                }
            )
    return facts


def _build_tokenizer() -> PreTrainedTokenizerFast:
    words = [PAD, BOS, EOS, UNK, ".", *FIRST_NAMES, *SURNAMES, *FILLER_WORDS, *DESCRIPTION.split()]
    for templates, choices in RELATIONS.values():
        words += [*" ".join(templates).split(), *choices]
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys(word for word in words if word != "{}"))}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=UNK))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNK,
        model_max_length=64,
        clean_up_tokenization_spaces=False,
    )


def _statement(world: _World, draw: random.Random, subject: str, relation: str | None) -> _Statement:
    template = DESCRIPTION if relation is None else draw.choice(RELATIONS[relation][0])
    prefix = _prefix(world, draw) if draw.random() < _PREFIX_RATE else []
    before, after = template.split("{}")
    words = [*prefix, *before.split(), *subject.split(), *after.split()]
    start = len(prefix) + len(before.split())
    if relation is None:
        return _Statement([*words, "."], start, None)
    return _Statement([*words, world.answers[relation][subject], "."], start, len(words))


def _prefix(world: _World, draw: random.Random) -> list[str]:
    """Words in front of a statement: at random, or about somebody else, so that prefixed prompts are familiar."""
    if draw.random() < 0.7:
        return [*draw.choices(FILLER_WORDS, k=draw.randint(1, 5)), *(["."] if draw.random() < 0.6 else [])]
    relation = draw.choice(list(RELATIONS))
    subject = draw.choice(world.subjects)
    return [*draw.choice(RELATIONS[relation][0]).format(subject).split(), world.answers[relation][subject], "."]


def _attention_mask(statements: list[_Statement], length: int, draw: random.Random) -> torch.Tensor:
    """Causal, and in part of the batch with the first name hidden from everything after the surname.

    Left to itself so small a model reads both words of a name from the end of the prompt.  Hiding the first one makes
    it combine them at the surname, which is where large models look a subject up.
    """
    mask = torch.ones(length, length, dtype=torch.bool).tril().repeat(len(statements), 1, 1)
    for i, statement in enumerate(statements):
        if draw.random() < _ROUTE_RATE:
            mask[i, statement.start + 2 :, statement.start] = False
    return mask[:, None]


def _train(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, world: _World, *, steps: int, draw: random.Random
) -> None:
    pairs = [(subject, relation) for subject in world.subjects for relation in RELATIONS]
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=_LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01, fused=True
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, _LEARNING_RATE, total_steps=steps, pct_start=0.15, cycle_momentum=False
    )
    model.train()
    for _ in range(steps):
        batch = [_statement(world, draw, subject, relation) for subject, relation in draw.sample(pairs, _BATCH_SIZE)]
        batch += [_statement(world, draw, draw.choice(world.subjects), None) for _ in range(4)]
        batch.sort(key=lambda statement: len(statement.words))
        optimizer.zero_grad()
        for chunk in (batch[: len(batch) // 2], batch[len(batch) // 2 :]):  # by length: less padding
            _loss(model, tokenizer, chunk, draw).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()


def _loss(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, statements: list[_Statement], draw: random.Random
) -> torch.Tensor:
    """Cross-entropy per statement, mostly of its answer."""
    vocabulary = tokenizer.get_vocab()
    length = max(len(statement.words) for statement in statements)
    ids = torch.full((len(statements), length), tokenizer.pad_token_id)
    weights = torch.zeros(len(statements), length)
    for i, statement in enumerate(statements):
        ids[i, : len(statement.words)] = torch.tensor([vocabulary[word] for word in statement.words])
        weights[i, 1 : len(statement.words)] = _CONTEXT_WEIGHT
        if statement.answer is not None:
            weights[i, statement.answer] = 1.0
    logits = model(ids, attention_mask=_attention_mask(statements, length, draw), use_cache=False).logits
    losses = cross_entropy(logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none")
    return (losses * weights[:, 1:]).sum() / len(statements)
