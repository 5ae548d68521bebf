"""Reads tokens that a Hugging Face folder declares outside ``tokenizer.json``: in up to three more files.

Source: transformers, ``PreTrainedTokenizerBase.from_pretrained`` and ``TokenizersBackend``. Knows nothing about
    templates.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tokenizers import AddedToken, Tokenizer

from chatsvc.errors import OperatorError

DECODER_KEY = "added_tokens_decoder"  # in tokenizer_config.json: id -> token
_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_LISTS = ("additional_special_tokens", "extra_special_tokens")
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


def token_text(token: Any) -> str:
    """A token's text: it is given as a text, an object with ``content``, or null."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else ""


def special_texts(settings: Mapping[str, Any]) -> set[str]:
    """The tokens that tokenizer_config.json (merged with special_tokens_map.json) declares special."""
    listed = [one for key in _LISTS if isinstance(settings.get(key), list) for one in settings[key]]
    texts = {token_text(settings.get(key)) for key in _NAMED} | {token_text(one) for one in listed}
    return texts - {""}


def complete(tokenizer: Tokenizer, settings: Mapping[str, Any], legacy: Mapping[str, Any]) -> bool:
    """Add tokens that only the other files declare. Returns whether the tokenizer changed.

    Args:
        tokenizer: parsed from ``tokenizer.json``; changed in place.
        settings: tokenizer_config.json, merged with special_tokens_map.json.
        legacy: added_tokens.json, text -> id.

    Raises:
        OperatorError: a file gives a token an id that contradicts tokenizer.json.
    """
    before = _flags(tokenizer)
    special = special_texts(settings)
    for token, id_ in _declared(settings, legacy, special):
        if token.content in before and before[token.content] == _flags_of(token):
            continue
        tokenizer.add_tokens([token])
        if token.content not in before and tokenizer.token_to_id(token.content) != id_:
            raise OperatorError(
                f"the model's tokenizer_config.json gives the token {token.content!r} the id {id_}, which its "
                "tokenizer.json does not; fetch the model again"
            )
    # A token without an id has an embedding row only if the vocabulary holds it.
    missing = [text for text in sorted(special - set(_flags(tokenizer))) if tokenizer.token_to_id(text) is not None]
    tokenizer.add_tokens([AddedToken(text, normalized=False, special=True) for text in missing])
    return _flags(tokenizer) != before


def _declared(
    settings: Mapping[str, Any], legacy: Mapping[str, Any], special: set[str]
) -> Iterator[tuple[AddedToken, int]]:
    decoder = settings.get(DECODER_KEY)
    if isinstance(decoder, dict):
        numbered = [(int(id_), token) for id_, token in decoder.items() if id_.isascii() and id_.isdigit()]
        for number, token in sorted(numbered, key=lambda pair: pair[0]):
            if text := token_text(token):
                flags = {flag: token[flag] is True for flag in _FLAGS if isinstance(token, dict) and flag in token}
                yield AddedToken(text, **flags), number
        return
    numbered = [(id_, text) for text, id_ in legacy.items() if isinstance(id_, int)]
    for number, text in sorted(numbered):
        yield AddedToken(text, normalized=text not in special, special=text in special), number


def _flags(tokenizer: Tokenizer) -> dict[str, tuple[bool, ...]]:
    return {token.content: _flags_of(token) for token in tokenizer.get_added_tokens_decoder().values()}


def _flags_of(token: AddedToken) -> tuple[bool, ...]:
    return tuple(getattr(token, flag) for flag in _FLAGS)
