"""Finds a vocabulary's markers: role boundaries and other tokens that only the template may write.

Token types do not decide: the same marker is a control token in one file, user-defined or ordinary in another. A token
is a marker because the template writes it. Knows nothing about requests.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterable, Mapping
from typing import Any

from tokenizers import AddedToken, Tokenizer

# The usual shapes of markers. An ordinary token that merging can produce counts as a marker only with such a shape:
# else "assistant" would be one.
_SHAPE = re.compile(r"<[|｜].+[|｜]>|\[/?[A-Z]+(_[A-Z]+)*\]|</?[a-z]+(_[a-z0-9]+)+>|<</?[A-Z]+>>")
# Some vocabularies have runs of spaces and words as added tokens. Spaces are text even where a template writes them.
_SPACES = re.compile(r"[\s▁]+")
_WORDS = re.compile(r"[\w\s▁]+")
_MAX_MARKER_CHARS = 100


def markers_of(tokenizer: Tokenizer, texts: Iterable[str], stated: Iterable[str]) -> dict[str, int]:
    """The markers' texts and ids.

    Args:
        tokenizer: as read from its file.
        texts: what the template writes, see ``probing``.
        stated: the beginning- and end-of-sequence tokens.
    """
    written = "\0".join(texts)
    found = {
        token.content: id_
        for id_, token in tokenizer.get_added_tokens_decoder().items()
        if token.special or not (_SPACES if token.content in written else _WORDS).fullmatch(token.content)
    }
    for text in stated:
        if text and (id_ := tokenizer.token_to_id(text)) is not None:
            found[text] = id_
    added = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    for text, id_ in tokenizer.get_vocab(with_added_tokens=False).items():
        # Shorter ones are part of ordinary text: "<", "ss".
        if not 2 < len(text) <= _MAX_MARKER_CHARS or text in added or text not in written:
            continue
        if _SHAPE.fullmatch(text) or (_is_apart(text, written) and not _can_be_made(tokenizer, text, id_)):
            found[text] = id_
    return found


def _is_apart(text: str, written: str) -> bool:
    """Whether it is a separate word in the template; a part of a longer word is not a marker."""
    before = r"(?<!\w)" if text[0].isalnum() else ""
    behind = r"(?!\w)" if text[-1].isalnum() else ""
    return re.search(f"{before}{re.escape(text)}{behind}", written) is not None


def _can_be_made(tokenizer: Tokenizer, text: str, id_: int) -> bool:
    """Whether encoding ordinary text can produce this token, as a word or inside one."""
    try:
        as_word = tokenizer.encode(text, add_special_tokens=False).ids
        inside = [token.id for token in tokenizer.model.tokenize(text)]
    except Exception:  # noqa: BLE001  (the library raises nothing narrower where a part is unknown)
        return False
    return id_ in as_word or inside == [id_]


def declare(tokenizer: Tokenizer, markers: Mapping[str, int]) -> None:
    """Make every marker a single token wherever it stands in a text.

    The file's own flags for surrounding spaces, and for being shown in an answer, are kept.
    """
    known = {token.content: token for token in tokenizer.get_added_tokens_decoder().values()}
    tokenizer.add_tokens([_added(text, known.get(text)) for text in markers])


def _added(text: str, known: AddedToken | None, *, alias: str | None = None) -> AddedToken:
    return AddedToken(
        alias or text,
        single_word=False,
        normalized=False,
        lstrip=known is not None and known.lstrip,
        rstrip=known is not None and known.rstrip,
        special=known is not None and known.special,
    )


class SeparateTokenizer:
    """Encodes a text in which the template's markers are distinct from a caller's text that looks the same.

    In its vocabulary each marker has an unguessable alias, and only the alias produces it: no merge does, and neither
    does its own text.
    """

    def __init__(self, tokenizer: Tokenizer, markers: Mapping[str, int]) -> None:
        secret = secrets.token_hex(16)
        self.aliases = {text: f"{secret}:{number};" for number, text in enumerate(markers)}
        added = tokenizer.get_added_tokens_decoder()
        known = {token.content: token for token in added.values()}
        self._ids = {self.aliases[text]: id_ for text, id_ in markers.items()}
        self._ids |= {token.content: id_ for id_, token in added.items() if token.content not in markers}
        description = json.loads(tokenizer.to_str())
        description["added_tokens"] = []
        _hide(description["model"], {text: f"{secret}.{number};" for number, text in enumerate(markers)})
        self._tokenizer = Tokenizer.from_str(json.dumps(description))
        aliases = [_added(text, known.get(text), alias=alias) for text, alias in self.aliases.items()]
        others = [token for _, token in sorted(added.items()) if token.content not in markers]
        self._tokenizer.add_tokens([*aliases, *others])

    def encode(self, text: str) -> list[int]:
        """The ids of a text in which markers are written by their aliases."""
        encoded = self._tokenizer.encode(text, add_special_tokens=False)
        # Looked up by text: in a vocabulary with holes, ids of tokens added here may be those of other tokens.
        return [self._ids.get(token, id_) for token, id_ in zip(encoded.tokens, encoded.ids, strict=True)]


def _hide(model: dict[str, Any], names: Mapping[str, str]) -> None:
    """Rename the markers inside a tokenizer's model, and drop the merges that make or use them."""
    vocabulary = model["vocab"]
    if isinstance(vocabulary, dict):
        model["vocab"] = {names.get(text, text): id_ for text, id_ in vocabulary.items()}
    else:
        model["vocab"] = [[names.get(text, text), score] for text, score in vocabulary]
    if "merges" in model:
        model["merges"] = [merge for merge in model["merges"] if not _uses(merge, names)]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]


def _uses(merge: str | list[str], names: Mapping[str, str]) -> bool:
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left in names or right in names or left + right in names
