"""The oracle: the pieces joined are the text of all ids together, and no piece ends inside a character."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from chatsvc.chat.detokenize import Detokenizer

ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())


def byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(vocab={char: index for index, char in enumerate(ALPHABET)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|end|>"])
    return tokenizer


def sentencepiece() -> Tokenizer:
    """Words that bring their space along, and bytes for what has no word: as Llama's."""
    vocab = {"<unk>": 0, "▁Hello": 1, "▁world": 2, "!": 3, "▁": 4, **{f"<0x{b:02X}>": 5 + b for b in range(256)}}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>", byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


def pieces(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    detokenizer = Detokenizer(tokenizer)
    return [*(detokenizer.feed(id_) for id_ in ids), detokenizer.flush()]


BYTE_LEVEL, SENTENCEPIECE = byte_level(), sentencepiece()


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=30))
def test_every_piece_of_a_text_ends_between_characters(text):
    ids = BYTE_LEVEL.encode(text, add_special_tokens=False).ids
    parts = pieces(BYTE_LEVEL, ids)
    assert "".join(parts) == text
    if "\N{REPLACEMENT CHARACTER}" not in text:
        assert "\N{REPLACEMENT CHARACTER}" not in "".join(parts)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(0, 256), max_size=30))
def test_joined_pieces_are_the_whole_also_for_ids_that_are_no_utf_8(ids):
    assert "".join(pieces(BYTE_LEVEL, ids)) == BYTE_LEVEL.decode(ids, skip_special_tokens=True)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(["▁Hello", "▁world", "!", "▁", "<0xE4> <0xBD> <0xA0>", "<0xC3> <0xA9>"]), max_size=12))
def test_joined_pieces_are_the_whole_for_words_with_their_space(tokens):
    # (Broken bytes are left out: this decoder makes U+FFFD of the good bytes beside them too, after the fact.)
    ids = [SENTENCEPIECE.token_to_id(token) for token in " ".join(tokens).split()]
    assert "".join(pieces(SENTENCEPIECE, ids)) == SENTENCEPIECE.decode(ids)


def test_a_character_of_four_bytes_comes_out_with_its_last_byte():
    ids = BYTE_LEVEL.encode("🗼").ids
    assert pieces(BYTE_LEVEL, ids) == ["", "", "", "🗼", ""]


def test_half_a_character_at_the_end_is_a_replacement_character():
    ids = BYTE_LEVEL.encode("a你").ids[:-1]
    assert pieces(BYTE_LEVEL, ids) == ["a", "", "", "\N{REPLACEMENT CHARACTER}"]


def test_special_tokens_have_no_text():
    assert pieces(BYTE_LEVEL, [BYTE_LEVEL.token_to_id("<|end|>"), BYTE_LEVEL.encode("a").ids[0]]) == ["", "a", ""]
