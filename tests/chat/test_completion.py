"""One completion: counts, and what is behind a stop string."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer

from chatsvc.chat.completion import Completion
from chatsvc.chat.detokenize import Detokenizer
from chatsvc.engine.web_side.client import EngineClient

from .test_detokenize import sentencepiece
from .test_prompt import byte_tokenizer

TOKENIZER = byte_tokenizer()


def ids(text):
    return TOKENIZER.encode(text, add_special_tokens=False).ids


def completion(*stop):
    return Completion(Detokenizer(TOKENIZER), stop)


def test_what_comes_behind_a_stop_string_in_one_batch_is_neither_shown_nor_counted():
    one = completion("STOP")
    assert one.feed(ids("Hello STOP and more")) == "Hello "
    assert one.is_stopped
    assert one.num_tokens == len("Hello STOP")
    assert one.flush() == ""
    assert one.text == "Hello "


def test_the_batches_do_not_matter():
    whole, single = completion("\n\n"), completion("\n\n")
    text = ids("Grüße\n\nnicht mehr")
    whole.feed(text)
    for id_ in text:
        single.feed([id_])
    assert (whole.text, whole.num_tokens) == (single.text, single.num_tokens) == ("Grüße", len("Grüße\n\n".encode()))


def test_a_character_that_was_cut_off_is_neither_text_nor_a_stop_string():
    for stop in ("a你b", "x"):
        one = completion(stop)
        one.feed(ids("a你")[:-1])
        one.flush()
        assert (one.is_stopped, one.text) == (False, "a")


def test_a_stop_string_right_behind_broken_bytes_leaves_them_out():
    one = completion("b")
    one.feed([*ids("a你")[:-1], *ids("b and more")])
    assert one.is_stopped
    assert one.text == "a"


TEXT = "Grüße, 你好世界! 🗼👩‍👩‍👧 é\u0301 ∑ नमस्ते"


@pytest.fixture(scope="module")
def tokenizers(engine_socket, wait_until) -> dict[str, tuple[Tokenizer, list[int]]]:
    """The embedded model's own tokenizer, one of bytes, and one with words and bytes; with the ids of a text."""
    client = EngineClient(engine_socket, stall_timeout_s=60)
    client.start()
    wait_until(lambda: client.status().ready)
    own = Tokenizer.from_buffer(client.card().tokenizer_json)
    client.close()
    return {
        "SmolLM2": (own, own.encode(TEXT, add_special_tokens=False).ids),
        "bytes": (TOKENIZER, ids(TEXT)),
        "SentencePiece": (sentencepiece(), [sentencepiece().token_to_id(f"<0x{byte:02X}>") for byte in TEXT.encode()]),
    }


@pytest.mark.parametrize("stop", [(), ("never", "🗼x", "\n")])
@pytest.mark.parametrize("name", ["SmolLM2", "bytes", "SentencePiece"])
def test_a_text_cut_at_any_token_drops_the_character_that_was_cut_off(tokenizers, name, stop):
    tokenizer, given = tokenizers[name]
    assert tokenizer.decode(given) == TEXT
    texts = []
    for length in range(len(given) + 1):
        one = Completion(Detokenizer(tokenizer), stop)
        pieces = [*(one.feed([id_]) for id_ in given[:length]), one.flush()]
        assert one.text == "".join(pieces)
        texts.append(one.text)
    assert all(TEXT.startswith(text) for text in texts)
    assert texts == sorted(texts, key=len)  # one more token takes nothing away
    assert set(texts) >= {TEXT, TEXT[:-2], "Grüße, ", "Grüße, 你好世界! "}


def test_bytes_that_are_no_character_are_replaced_in_the_middle_only():
    broken = ids("你")[:2]
    one = completion()
    pieces = [one.feed([id_]) for id_ in [*ids("a"), *broken, *broken, *ids("b"), *broken]]
    assert [piece for piece in [*pieces, one.flush()] if piece] == ["a", "\N{REPLACEMENT CHARACTER}" * 2 + "b"]


def test_a_part_of_a_stop_string_behind_broken_bytes_leaves_nothing_of_them():
    one = completion("bc")
    for id_ in [*ids("a你")[:-1], *ids("bcd")]:
        one.feed([id_])
    assert (one.is_stopped, one.text) == (True, "a")


def test_what_was_held_back_comes_at_the_end():
    one = completion("abc")
    assert one.feed(ids("xab")) == "x"
    assert one.flush() == "ab"
    assert one.text == "xab"
