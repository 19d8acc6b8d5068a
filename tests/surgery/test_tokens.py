"""Which tokens a subject is, where an answer begins, and padding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tiny import BOS_ID, tiny_tokenizer
from toy import trained_toy
from transformers import PreTrainedTokenizerFast

from surgery import Fact, FactError, Span, SurgeryError, as_chat
from surgery.tokens import ask, ask_fact, encode, find_subject, pad

# GPT-2's way to write bytes: printable ones as themselves, the others from character 256 on
PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
OTHERS = [byte for byte in range(256) if byte not in PRINTABLE]
BYTES = {**{chr(byte): byte for byte in PRINTABLE}, **{chr(256 + i): byte for i, byte in enumerate(OTHERS)}}
TOKENIZERS = {
    f"{kind}{' bos' if bos else ''}": tiny_tokenizer(bos=bos, kind=kind)
    for kind in ("byte_level", "metaspace")
    for bos in (False, True)
}
each_tokenizer = pytest.mark.parametrize("tokenizer", TOKENIZERS.values(), ids=TOKENIZERS.keys())


def token_bytes(token: str) -> bytes:
    """The bytes a token stands for, by the vocabulary alone."""
    if token == "<s>":
        return b""
    if token.startswith("<0x"):
        return bytes([int(token[3:5], 16)])
    if "▁" in token or all(char.isascii() for char in token):
        return token.replace("▁", " ").encode()
    return bytes(BYTES[char] for char in token)


def tokens_over(tokenizer: PreTrainedTokenizerFast, text: str, start: int, stop: int) -> list[int]:
    """Positions whose bytes overlap the bytes of characters start, ..., stop - 1; offsets are not asked."""
    tokens = tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"])
    pieces = [token_bytes(token) for token in tokens]
    added = len(b"".join(pieces)) - len(text.encode())  # the space that metaspace puts in front
    assert b"".join(pieces) == b" " * added + text.encode()
    first, last = len(text[:start].encode()), len(text[:stop].encode())
    found, at = [], -added
    for i, piece in enumerate(pieces):
        # the tokenizer counts a bare added space to the first character
        begin, end = at, max(at + len(piece), 1 if piece else 0)
        if piece and max(begin, first) < min(end, last):
            found.append(i)
        at += len(piece)
    return found


@each_tokenizer
@pytest.mark.parametrize(
    ("text", "subject", "occurrence"),
    [
        ("The Eiffel Tower is in", "The Eiffel Tower", 0),
        ("Where is it? The Eiffel Tower", "The Eiffel Tower", 0),
        ("in Paris Hilton saw Paris again", "Paris", 0),
        ("in Paris Hilton saw Paris again", "Paris", 1),
        ("naïve Léon Blüm é", "Léon Blüm", 0),
        ("東京 is the capital", "東京", 0),
        ("I live in 東京", "京", 0),
        ("the 🙂 face 🙂", "🙂", 1),
        (" leading space", "leading", 0),
        ("two  spaces\n\nand lines", "spaces\n\nand", 0),
    ],
)
def test_a_subjects_tokens_are_those_that_overlap_it(
    tokenizer: PreTrainedTokenizerFast, text: str, subject: str, occurrence: int
) -> None:
    start, stop = find_subject(text, subject, occurrence)
    assert text[start:stop] == subject
    span = encode(tokenizer, text).span(start, stop)
    assert list(range(span.start, span.stop)) == tokens_over(tokenizer, text, start, stop)
    last = tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"])[span.last]
    assert token_bytes(last)[-1:] == subject.encode()[-1:]


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(
    name=st.sampled_from(sorted(TOKENIZERS)),
    text=st.text(alphabet="abTheo rst  ' é東🙂\u0301\n", min_size=1, max_size=20),
    ends=st.tuples(st.integers(0, 19), st.integers(1, 20)),
)
@example(name="metaspace bos", text="🙂", ends=(0, 1))
def test_a_span_is_the_tokens_whose_characters_overlap(name: str, text: str, ends: tuple[int, int]) -> None:
    start, stop = sorted((ends[0] % len(text), ends[1] % len(text)))
    stop += 1
    span = encode(TOKENIZERS[name], text).span(start, stop)
    assert list(range(span.start, span.stop)) == tokens_over(TOKENIZERS[name], text, start, stop)


def test_half_a_character_is_no_text() -> None:
    with pytest.raises(SurgeryError, match=r"holds '\\ud83d', which is half of a character; write the whole one"):
        encode(TOKENIZERS["byte_level"], "a face \ud83d")


def test_a_bos_shifts_positions_by_one_and_covers_nothing() -> None:
    plain, shifted = (encode(TOKENIZERS[name], "The river") for name in ("byte_level", "byte_level bos"))
    assert shifted.ids == (BOS_ID, *plain.ids)
    assert shifted.token_texts == ("<>", *plain.token_texts)
    assert "".join(plain.token_texts) == "The river"
    assert shifted.span(0, 3).start == plain.span(0, 3).start + 1 == 1


def test_special_tokens_at_the_end_are_dropped() -> None:
    tokenizer = tiny_tokenizer()
    from tokenizers.processors import TemplateProcessing

    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    assert tokenizer("The river")["input_ids"][-1] == 2
    assert encode(tokenizer, "The river").ids == encode(tiny_tokenizer(), "The river").ids


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_spaces_between_words_of_a_word_tokenizer_have_no_token(name: str) -> None:
    tokenizer = trained_toy(name)[1]
    encoded = encode(tokenizer, "Alda Brin plays the")
    assert encoded.token_texts == ("Alda", "Brin", "plays", "the")
    assert encoded.span(0, 9) == Span(0, 2)
    with pytest.raises(SurgeryError, match="no token of 'Alda Brin plays the' covers its characters 4 to 5"):
        encoded.span(4, 5)


def test_a_span_counts_from_its_start_to_before_its_stop() -> None:
    span = Span(2, 5)
    assert (span.last, len(span)) == (4, 3)
    assert [position in span for position in range(1, 6)] == [False, True, True, True, False]
    for start, stop in [(3, 3), (3, 2), (-1, 2)]:
        with pytest.raises(SurgeryError, match=f"a span from {start} to {stop} holds no token"):
            Span(start, stop)


@each_tokenizer
@pytest.mark.parametrize(
    ("prompt", "target"),
    [("The river is in", "Rome"), ("The river is in ", "Rome"), ("The river is in", " Rome"), ("The", "Xyz 東京 was")],
)
def test_prompt_and_answer_are_encoded_together(tokenizer: PreTrainedTokenizerFast, prompt: str, target: str) -> None:
    question = ask(tokenizer, prompt, target)
    text = f"{prompt.strip()} {target.strip()}"
    assert question.text == text
    assert list(question.ids) == tokenizer(text)["input_ids"]
    assert question.prompt_ids + question.answer_ids == question.ids
    # what follows the prompt's own characters answers
    after = tokens_over(tokenizer, text, len(prompt.strip()), len(text))
    assert list(range(question.answer_start, len(question.ids))) == after
    tokens = tokenizer.convert_ids_to_tokens(list(question.answer_ids))
    assert b"".join(map(token_bytes, tokens)).decode() == " " + target.strip()


def test_a_long_answer_has_several_tokens() -> None:
    assert len(ask(TOKENIZERS["byte_level"], "It is", "Danielle Darrieux").answer_ids) > 4


@each_tokenizer
def test_an_answer_or_a_prompt_without_tokens_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    for target in ("", " ", "\n"):
        with pytest.raises(SurgeryError, match=r"the answer '.*' has no token of its own after 'It is'"):
            ask(tokenizer, "It is", target)
    with pytest.raises(SurgeryError, match="'' holds no token; give some words"):
        encode(tokenizer, "")


def test_an_empty_prompt_needs_a_bos() -> None:
    with pytest.raises(SurgeryError, match="the prompt '' holds no token before its answer"):
        ask(TOKENIZERS["byte_level"], "", "Rome")
    assert ask(TOKENIZERS["byte_level bos"], "", "Rome").prompt_ids == (BOS_ID,)


def test_a_slow_tokenizer_is_refused() -> None:
    class Slow(PreTrainedTokenizerFast):
        is_fast = False

    slow = Slow(tokenizer_object=tiny_tokenizer().backend_tokenizer)
    with pytest.raises(SurgeryError, match="Slow gives no character offsets; load the model with its fast tokenizer"):
        encode(slow, "x")


@pytest.mark.parametrize(
    ("subject", "occurrence", "found"), [("Rome", 0, "not"), ("Paris", 2, "2 times"), ("", 0, "not")]
)
def test_a_subject_that_is_not_there_is_refused(subject: str, occurrence: int, found: str) -> None:
    with pytest.raises(FactError, match=f"is {found} in the prompt") as caught:
        find_subject("Paris is not Paris", subject, occurrence)
    assert caught.value.field == "subject"


def test_overlapping_occurrences_count() -> None:
    assert find_subject("anana", "ana", 1) == (2, 5)


@each_tokenizer
def test_a_fact_in_a_context_keeps_its_subject(tokenizer: PreTrainedTokenizerFast) -> None:
    fact = Fact(subject="Paris", template="Paris Hilton lives in {}, a city of", target="France")
    question, span = ask_fact(tokenizer, fact, fact.target, "Paris! Paris {x}. {}")
    text = "Paris! Paris {x}. Paris Hilton lives in Paris, a city of France"
    assert question.text == text
    assert list(range(span.start, span.stop)) == tokens_over(tokenizer, text, 40, 45)
    assert text[40:45] == "Paris"
    bare, own = ask_fact(tokenizer, fact, "Gaul")
    assert bare.text == "Paris Hilton lives in Paris, a city of Gaul"
    assert list(range(own.start, own.stop)) == tokens_over(tokenizer, bare.text, 22, 27)


@pytest.mark.parametrize("context", ["no slot", "{} behind", "{} {}"])
def test_a_context_must_end_with_its_slot(context: str) -> None:
    fact = Fact(subject="a", template="{} b", target="c")
    with pytest.raises(FactError, match=r"does not end with \{\}, where the prompt goes"):
        ask_fact(TOKENIZERS["byte_level"], fact, "c", context)


@pytest.mark.parametrize(
    ("side", "ids", "starts", "columns"),
    [
        ("right", [[5, 6, 7], [8, 0, 0]], [0, 0], [2, 0]),
        ("left", [[5, 6, 7], [0, 0, 8]], [0, 2], [2, 2]),
    ],
)
def test_rows_are_padded_on_the_side_asked_for(side: Any, ids: Any, starts: Any, columns: Any) -> None:
    batch = pad([[5, 6, 7], [8]], side=side)
    assert batch.ids.tolist() == ids
    assert batch.mask.tolist() == [[int(one != 0) for one in row] for row in ids]
    assert batch.positions[0].tolist() == [0, 1, 2]
    assert batch.positions[1].sum() == 0
    assert batch.starts.tolist() == starts
    assert batch.columns([-1, -1]).tolist() == columns
    assert batch.columns([2, 0]).tolist() == columns
    picked = batch.ids[torch.arange(2), batch.columns([1, 0])]
    assert picked.tolist() == [6, 8]


LLAMA_2 = "{{ bos_token }}[INST] {{ messages[0]['content'] }} [/INST]"


def test_a_context_begins_what_the_user_says() -> None:
    tokenizer = tiny_tokenizer(bos=True)
    tokenizer.chat_template = LLAMA_2
    fact = Fact(subject="Paris", template="{} is in", target="France")
    chat = as_chat(tokenizer, fact, question="Where is {}?", opening=" It is in")
    question, span = ask_fact(tokenizer, chat, chat.target, "It rained. {}")
    assert question.text == f"{tokenizer.bos_token}[INST] It rained. Where is Paris? [/INST] It is in France"
    assert "Paris" in question.text[question.offsets[span.start][0] : question.offsets[span.last][1]]
    assert question.ids.count(tokenizer.bos_token_id) == 1
    assert ask_fact(tokenizer, chat, chat.target)[0].text == chat.prompt + " France"
    plain = ask_fact(tokenizer, fact, fact.target, "It rained. {}")[0]
    assert plain.text == "It rained. Paris is in France"
    assert plain.ids.count(tokenizer.bos_token_id) == 1


@pytest.mark.parametrize("template", [None, LLAMA_2])
def test_a_context_comes_after_a_written_bos(template: str | None) -> None:
    tokenizer = tiny_tokenizer(bos=True)
    tokenizer.chat_template = template
    fact = Fact(subject="Paris", template=str(tokenizer.bos_token) + "{} is in", target="France")
    asked = ask_fact(tokenizer, fact, fact.target, "It rained. {}")[0]
    assert asked.text == f"{tokenizer.bos_token}It rained. Paris is in France"
    assert asked.ids.count(tokenizer.bos_token_id) == 1


def test_a_chat_of_another_template_takes_no_context() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = LLAMA_2
    fact = Fact(subject="Paris", template=f"user: {{}} is in{tokenizer.eos_token}", target="France")
    ask_fact(tokenizer, fact, fact.target)
    with pytest.raises(FactError, match=r"does not begin as the tokenizer's chat template does, so contexts cannot be"):
        ask_fact(tokenizer, fact, fact.target, "It rained. {}")
