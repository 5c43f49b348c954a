"""Texts between two tokenizers, trap by trap."""

from __future__ import annotations

import pytest
from drafters.tongues import TEXT, TONGUES, byte_level, characters, unigram, word_pieces
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from specdec.drafters.retokenise import Retokeniser
from specdec.drafters.shared_vocabulary import SharedVocabulary, special_pairs
from specdec.drafters.spelling import Spelling

PAIRS = [(a, b) for a in TONGUES for b in TONGUES if a != b]


def between(target: PreTrainedTokenizerFast, draft: PreTrainedTokenizerFast) -> Retokeniser:
    mine, other = Spelling(target), Spelling(draft)
    return Retokeniser(mine, other, special_pairs(mine, other))


def ids(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False).input_ids


@pytest.mark.parametrize(("target", "draft"), PAIRS)
def test_reads_what_the_draft_would_make_of_the_text(target: str, draft: str) -> None:
    """Whatever arrives in whatever portions, behind what the draft puts before a text."""
    mine, other = TONGUES[target](), TONGUES[draft]()
    # An unknown token carries no text, and BERT's tokenizer knows neither these characters nor this number.
    whole = ids(mine, TEXT if target != "word pieces" else TEXT.replace("中文 ß 12345", ""))
    text = Spelling(mine).decode(whole)
    row = between(mine, other)
    for end in (7, 8, 11, 20, 21, len(whole)):
        read = row.read(whole[:end])
    expected = ids(other, text)
    assert read == Spelling(other).prefix + expected


@pytest.mark.parametrize(("target", "draft"), PAIRS)
def test_continues_where_the_text_stands(target: str, draft: str) -> None:
    """Drafted text becomes the tokens that the target's tokenizer gives the whole text."""
    mine, other = TONGUES[target](), TONGUES[draft]()
    before, after = "def items in enumerate the lazy", " dog the end of the items"
    row = between(mine, other)
    row.read(ids(mine, before))
    drafted = ids(other, before + after)[len(ids(other, before)) :]
    whole = ids(mine, before + after)
    assert whole == ids(mine, before) + row.continuation(drafted)


@pytest.mark.parametrize("draft", ["bytes", "unigram", "unigram, first"])
def test_continues_within_a_word(draft: str) -> None:
    """No space is put before a continuation, and a token that would swallow the last committed one is not proposed."""
    mine, other = byte_level(100), TONGUES[draft]() if draft != "bytes" else byte_level(30, bos=True)
    committed = [*ids(mine, "the qui"), *ids(mine, "c")]
    row = between(mine, other)
    read = row.read(committed)
    whole = ids(other, "the quick brown")
    drafted = whole[len(read) - 1 :] if whole[: len(read) - 1] == read[1:] else ids(byte_level(30, bos=True), "k brown")
    if draft != "bytes":
        drafted = [other.convert_tokens_to_ids("k"), *ids(other, "brown")]
    proposed = row.continuation(drafted)
    assert mine.decode(committed + proposed) == "the quick brown"


def test_a_metaspace_target_gets_no_space_in_a_word() -> None:
    mine, other = unigram(), byte_level(100)
    row = between(mine, other)
    committed = ids(mine, "the wor")
    row.read(committed)
    proposed = row.continuation(ids(other, "ld end"))
    assert mine.decode(committed + proposed) == "the world end"


def test_bos_stands_once() -> None:
    """The draft's own BOS begins its text, whether the target's text begins with one of that name or not."""
    mine, other = unigram(), byte_level(30, bos=True)
    bos = other.bos_token_id
    assert between(mine, other).read(ids(mine, "the end")) == [bos, *ids(other, "the end")]
    assert between(mine, other).read([mine.bos_token_id, *ids(mine, "the end")]) == [bos, *ids(other, "the end")]
    assert between(other, byte_level(100)).read(other("the end").input_ids) == ids(byte_level(100), "the end")


def test_special_tokens() -> None:
    """Ends of a text correspond; what only one side has is left out; text that spells one stays text."""
    mine, other = byte_level(100), unigram()
    role, end = mine.convert_tokens_to_ids("<role>"), mine.eos_token_id
    row = between(mine, other)
    read = row.read([role, *ids(mine, "the end"), end, *ids(mine, "items")])
    assert read == [other.bos_token_id, *ids(other, "the end"), other.eos_token_id, *ids(other, "items")]
    assert row.continuation([*ids(other, " in"), other.eos_token_id, 7]) == [*ids(mine, " in"), end]
    assert row.continuation([*ids(other, " in"), other.bos_token_id, 7]) == ids(mine, " in")
    spelled, other = [t for c in "</s>" for t in ids(mine, c)], byte_level(30, bos=True)
    assert between(mine, other).read(spelled) == [
        other.bos_token_id,
        *(t for c in ("</", "s", ">") for t in ids(other, c)),
    ]


@pytest.mark.parametrize("cut", [1, 2])
@pytest.mark.parametrize("kind", ["bytes with BOS", "unigram"])
def test_a_token_that_ends_within_a_character(kind: str, cut: int) -> None:
    """Its bytes are held back from the draft, and a draft of the character completes them; another proposes nothing."""
    mine, other = (byte_level(0, bos=True), characters()) if kind == "bytes with BOS" else (unigram(), byte_level(100))
    other = byte_level(100)
    text, character = "the end ", "\u4e2d" if kind == "bytes with BOS" else "\u20ac"
    whole = ids(mine, text + character)
    committed = whole[: len(whole) - 3 + cut]
    assert mine.decode(committed).endswith("\ufffd")
    row = between(mine, other)
    assert other.decode(row.read(committed)) == text
    assert row.continuation(ids(other, character + "x"))[: 3 - cut] == whole[len(committed) :]
    assert row.continuation(ids(other, "x")) == []
    assert other.decode(row.read(whole)) == text + character


def test_a_draft_that_ends_within_a_character() -> None:
    """Only whole characters are proposed."""
    mine, other = unigram(), byte_level(0, bos=True)
    row = between(mine, other)
    row.read(ids(mine, "the end"))
    euro = ids(other, "\u20ac")
    assert len(euro) == 3
    assert row.continuation([*ids(other, " of"), *euro[:2]]) == ids(mine, " of")


def test_bytes_of_no_character_and_ids_of_nothing() -> None:
    """They do not stop a row for good."""
    mine, other = byte_level(0, bos=True), byte_level(100)
    broken = [mine.convert_tokens_to_ids("\u0100"), *[mine.convert_tokens_to_ids("\xff")] * 6, 5000, -1]
    row = between(mine, other)
    assert row.read([*broken, *ids(mine, "the end")])[-len(ids(other, "the end")) :] == ids(other, "the end")
    assert row.continuation(ids(other, " of")) == ids(mine, " of")


def test_a_draft_that_loses_information() -> None:
    """A lower-casing draft reads lower case and proposes it; committed tokens keep their case."""
    mine, other = byte_level(100), word_pieces()
    row = between(mine, other)
    assert other.convert_ids_to_tokens(row.read(ids(mine, "The Fox"))) == ["[CLS]", "the", "fox"]
    assert row.continuation(ids(other, "jumps over")) == ids(mine, " jumps over")


def test_long_texts_are_tokenised_at_their_end_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes is the same as from the whole text."""
    mine, other = byte_level(100), byte_level(30, bos=True)
    whole, row = ids(mine, TEXT * 40), between(mine, other)
    row.read(whole[:1500])
    lengths: list[int] = []
    encode = Spelling.encode
    monkeypatch.setattr(Spelling, "encode", lambda self, text: (lengths.append(len(text)), encode(self, text))[1])
    for end in range(1500, len(whole), 5):
        read = row.read(whole[:end])
    monkeypatch.undo()
    expected = ids(other, mine.decode(whole[:end]))
    assert read == [other.bos_token_id, *expected]
    assert max(lengths) < 500 < len(mine.decode(whole))


def test_a_tokenizer_without_a_fast_form() -> None:
    """Slow tokenizers and parts written in Python serve as well."""
    mine, other = Spelling(byte_level(100)), Spelling(unigram())
    mine._fast = other._fast = None
    row = Retokeniser(mine, other, special_pairs(mine, other))
    assert row.read(ids(byte_level(100), "the end")) == [1, *ids(unigram(), "the end")]
    assert row.continuation(ids(unigram(), "of")) == ids(byte_level(100), " of")


def test_settings_of_the_users_tokenizer_do_not_count() -> None:
    """A truncation that an earlier call left behind is not ours, and stays."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_level(100).backend_tokenizer, eos_token="</s>")
    tokenizer("the quick brown fox jumps over", truncation=True, max_length=2)
    before = tokenizer.backend_tokenizer.truncation
    assert len(Spelling(tokenizer).encode(TEXT) or []) > 2
    assert tokenizer.backend_tokenizer.truncation == before is not None


def test_shared_tokens_say_the_same() -> None:
    """Each pairs with one at most, and spells the same bytes, spaces and single bytes included."""
    for target, draft in PAIRS:
        mine, other = Spelling(TONGUES[target]()), Spelling(TONGUES[draft]())
        shared = SharedVocabulary(mine, other)
        assert len(set(shared.to_draft.values())) == len(shared.to_draft)
        for a, b in shared.to_draft.items():
            assert a in mine.special or mine.contents[a] == other.contents[b]
    shared = SharedVocabulary(Spelling(byte_level(100)), Spelling(unigram()))
    a, b = byte_level(100).convert_tokens_to_ids, unigram().convert_tokens_to_ids
    assert shared.to_draft[a("\u0120the")] == b("\u2581the")
    assert shared.to_draft[a("\u0120")] == b("\u2581")
    assert shared.to_draft[a("\xff")] == b("<0xFF>")
    assert shared.to_draft[a("e")] == b("e"), "not <0x65>"
    assert shared.to_draft[a("</s>")] == b("</s>")


@pytest.mark.parametrize(("target", "draft"), [p for p in PAIRS if "word pieces" not in p and "characters" not in p])
def test_pieces_spell_the_token(target: str, draft: str) -> None:
    """Every target token, also a part of a character, in draft tokens of the same bytes."""
    mine, other = Spelling(TONGUES[target]()), Spelling(TONGUES[draft]())
    shared = SharedVocabulary(mine, other)
    for token in mine.ordinary:
        assert b"".join(other.contents[p] for p in shared.pieces(token)) == mine.contents[token]
    assert shared.pieces(10**6) == shared.pieces(-1) == ()


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(PAIRS), st.data())
def test_whatever_is_committed(pair: tuple[str, str], data: st.DataObject) -> None:
    """No error, only ids that the tokenizers have, and the same whether tokens came at once or in portions."""
    mine, other = Spelling(TONGUES[pair[0]]()), Spelling(TONGUES[pair[1]]())
    special = special_pairs(mine, other)
    row, shared = Retokeniser(mine, other, special), SharedVocabulary(mine, other)
    anything, drafts = st.integers(-2, mine.size + 3), st.integers(-2, other.size + 3)
    tokens: list[int] = []
    for _ in range(data.draw(st.integers(1, 5))):
        tokens += data.draw(st.lists(anything, max_size=12))
        read = row.read(tokens)
        assert read is None or set(read) <= other.ordinary | set(other.special)
        proposed = row.continuation(data.draw(st.lists(drafts, max_size=8)))
        assert set(proposed) <= mine.ordinary | special.keys()
        assert {p for t in tokens for p in shared.pieces(t)} <= other.ordinary | set(other.special)
