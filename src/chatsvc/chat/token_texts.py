"""The bytes of single tokens, for log-probabilities. All bytes joined are the text.

Bytes, because a token of a byte-level vocabulary may be a part of a character. Knows nothing about engines.
"""

from __future__ import annotations

import json
import re
from typing import Any

from tokenizers import Tokenizer

from chatsvc.chat.types import ScoredToken
from chatsvc.engine.protocol import TokenLogprobs

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


class TokenTexts:
    """Looks up the bytes of tokens. Thread-safe; make one for each model."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._added: dict[int, str] = {
            id_: token.content for id_, token in tokenizer.get_added_tokens_decoder().items()
        }
        kinds = _kinds(json.loads(tokenizer.decoder.__getstate__())) if tokenizer.decoder is not None else set()
        self._bytes_of_letters = _bytes_of_letters() if "ByteLevel" in kinds else None
        self._is_spaced = bool(kinds & {"Metaspace", "Replace", "ByteFallback"})

    def bytes_of(self, token_id: int) -> bytes:
        """What the token adds to a text after its first token; empty for an unknown id."""
        if token_id in self._added:
            return self._added[token_id].encode()
        token: str | None = self._tokenizer.id_to_token(token_id)
        if token is None:
            return b""
        if self._bytes_of_letters is not None:
            return b"".join(self._bytes_of_letters.get(letter, letter.encode()) for letter in token)
        if self._is_spaced:
            if byte := _BYTE.fullmatch(token):
                return bytes.fromhex(byte[1])
            return token.replace("\N{LOWER ONE EIGHTH BLOCK}", " ").encode()
        text: str = self._tokenizer.decode([token_id], skip_special_tokens=False)
        return text.encode()

    def scored(self, token_id: int, logprobs: TokenLogprobs) -> ScoredToken:
        """The token with its log-probability and its alternatives."""
        alternatives = zip(logprobs.top_ids, logprobs.top_logprobs, strict=True)
        return ScoredToken(
            self.bytes_of(token_id),
            logprobs.logprob,
            tuple(ScoredToken(self.bytes_of(id_), logprob) for id_, logprob in alternatives),
        )


def _kinds(decoder: dict[str, Any]) -> set[str]:
    """The types of a decoder and of the decoders inside it."""
    return {decoder["type"]}.union(*(_kinds(part) for part in decoder.get("decoders", [])))


def _bytes_of_letters() -> dict[str, bytes]:
    """GPT-2's alphabet: bytes that are printable in Latin-1 stand for themselves, the others for U+0100 and on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [number for number in range(256) if number not in printable]
    letters = {chr(number): bytes([number]) for number in printable}
    return letters | {chr(0x100 + place): bytes([number]) for place, number in enumerate(others)}
