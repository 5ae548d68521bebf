"""One completion: counts, and what is behind a stop string."""

from __future__ import annotations

from chatsvc.chat.completion import Completion
from chatsvc.chat.detokenize import Detokenizer

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


def test_a_stop_string_that_is_complete_only_with_what_was_held_back_is_found():
    one = completion("\N{REPLACEMENT CHARACTER}")
    one.feed(ids("a你")[:-1])
    assert one.flush() == ""
    assert one.is_stopped
    assert one.text == "a"


def test_what_was_held_back_comes_at_the_end():
    one = completion("abc")
    assert one.feed(ids("xab")) == "x"
    assert one.flush() == "ab"
    assert one.text == "xab"
