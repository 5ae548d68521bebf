"""Reads a model's small files: tokenizer, chat template, end-of-sequence ids, context length.

From a folder as Hugging Face's tools write it, or from a GGUF head. Knows nothing about weights.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from tokenizers import Tokenizer

from chatsvc.errors import ModelRefused, OperatorError
from chatsvc.models.card import SamplingDefaults
from chatsvc.models.description import TEMPLATE_FILE, TOKENIZER_FILE
from chatsvc.models.formats.gguf import GgufHead
from chatsvc.models.manifest import read_bounded
from chatsvc.models.text import sampling_defaults
from chatsvc.models.text import tokenizer as tokenizers_
from chatsvc.models.text.added_tokens import DECODER_KEY, complete, special_texts, token_text

# The tokenizer is sent to the web process in one frame of at most 64 MiB.
MAX_TOKENIZER_BYTES = 48 << 20
MAX_SMALL_BYTES = 4 << 20
_KNOWN_SPECIAL = frozenset({tokenizers_.CHATML_START, tokenizers_.CHATML_END, "<|endoftext|>"})


@dataclass(frozen=True, slots=True)
class Texts:
    """The result; ``tokenizer_json`` marks every control token as special."""

    tokenizer_json: bytes
    chat_template: str
    context_length: int
    eos_token_ids: list[int]
    bos_token: str
    eos_token: str
    sampling: SamplingDefaults


def texts_of_gguf(head: GgufHead, architecture: str) -> Texts:
    """From a GGUF file's metadata.

    Raises:
        OperatorError: something is missing.
    """
    made = tokenizers_.from_gguf(head)
    template = head.metadata.get("tokenizer.chat_template")
    eos = head.metadata.get("tokenizer.ggml.eos_token_id")
    ends = [head.metadata.get(f"tokenizer.ggml.{kind}_token_id") for kind in ("eos", "eot", "eom")]
    return Texts(
        tokenizer_json=made.to_str().encode(),
        chat_template=_template(template if isinstance(template, str) else None, made),
        context_length=head.get(f"{architecture}.context_length", int),
        eos_token_ids=_eos(made, [number for number in ends if isinstance(number, int)]),
        bos_token=_token_text(made, head.metadata.get("tokenizer.ggml.bos_token_id")),
        eos_token=_token_text(made, eos),
        sampling=sampling_defaults.from_gguf(head.metadata),
    )


def read_texts(folder: Path) -> Texts:
    """From a folder with ``tokenizer.json`` and ``config.json``.

    Raises:
        OperatorError: one is missing or damaged.
    """
    config = config_of(folder)
    generation = _json(folder, "generation_config.json") or {}
    settings = _json(folder, "tokenizer_config.json") or {}
    raw = _bytes(folder, TOKENIZER_FILE, MAX_TOKENIZER_BYTES)
    if raw is None:
        raise OperatorError(f"{folder}: tokenizer.json is missing; fetch the model with its fast tokenizer")
    if DECODER_KEY not in settings:  # as transformers does: without this list the older file is read
        settings |= _json(folder, "special_tokens_map.json") or {}
    content = _with_special(raw, special_texts(settings) | _KNOWN_SPECIAL)
    made = tokenizers_.parse(content)
    if complete(made, settings, _json(folder, "added_tokens.json") or {}):
        content = made.to_str().encode()
    bos, eos = token_text(settings.get("bos_token")), token_text(settings.get("eos_token"))
    context = config.get("max_position_embeddings")
    if not isinstance(context, int) or context < 1:
        raise OperatorError(f"{folder}: config.json does not say max_position_embeddings; fetch the model again")
    stated = [*_ids(generation.get("eos_token_id")), *_ids(config.get("eos_token_id")), *_ids(made.token_to_id(eos))]
    return Texts(
        tokenizer_json=content,
        chat_template=_template(_template_text(folder, settings), made),
        context_length=context,
        eos_token_ids=_eos(made, stated),
        bos_token=bos,
        eos_token=eos,
        sampling=sampling_defaults.from_generation_config(generation),
    )


def config_of(folder: Path) -> dict[str, Any]:
    """``config.json``; empty where it is missing.

    Raises:
        OperatorError: it is damaged.
    """
    return _json(folder, "config.json") or {}


def with_recommended(texts: Texts, folder: Path) -> Texts:
    """Fill in sampling values that the GGUF file lacks from a ``generation_config.json`` in its folder."""
    stated = msgspec.structs.asdict(
        sampling_defaults.from_generation_config(_json(folder, "generation_config.json") or {})
    )
    stated |= {name: value for name, value in msgspec.structs.asdict(texts.sampling).items() if value is not None}
    return dataclasses.replace(texts, sampling=SamplingDefaults(**stated))


def _template_text(folder: Path, settings: dict[str, Any]) -> str | None:
    """``chat_template.jinja``, else the one in tokenizer_config.json: a text, or a list of named texts."""
    if (content := _bytes(folder, TEMPLATE_FILE, MAX_SMALL_BYTES)) is not None:
        return content.decode("utf-8", errors="strict")
    template = settings.get("chat_template")
    if isinstance(template, list):
        named = {item.get("name"): item.get("template") for item in template if isinstance(item, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None


def _template(found: str | None, made: Tokenizer) -> str:
    template = found or tokenizers_.default_template(made)
    if template is None:
        raise OperatorError("the model has no chat template; put a chat_template.jinja beside its weights")
    return template


def _eos(made: Tokenizer, stated: list[int]) -> list[int]:
    ids = tokenizers_.eos_token_ids(made, stated)
    if not ids:
        raise OperatorError("the model does not say which token ends a completion; add eos_token_id to its config.json")
    return ids


def _with_special(raw: bytes, texts: AbstractSet[str]) -> bytes:
    """Mark the added tokens with these texts as special where the file does not."""
    try:
        document = msgspec.json.decode(raw, type=dict[str, Any])
        forgotten = [item for item in document["added_tokens"] if item["content"] in texts and not item["special"]]
    except (msgspec.DecodeError, KeyError, TypeError) as error:
        raise OperatorError("tokenizer.json cannot be read; fetch the model again") from error
    for item in forgotten:
        item["special"] = True
    return msgspec.json.encode(document) if forgotten else raw


def _json(folder: Path, name: str) -> dict[str, Any] | None:
    content = _bytes(folder, name, MAX_SMALL_BYTES)
    if content is None:
        return None
    try:
        return msgspec.json.decode(content, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise OperatorError(f"{folder / name}: is not a JSON object; fetch the model again") from error


def _bytes(folder: Path, name: str, max_bytes: int) -> bytes | None:
    if not (folder / name).exists():
        return None
    try:
        return read_bounded((folder / name).resolve(), max_bytes)
    except ModelRefused as error:
        raise OperatorError(f"{folder / name}: cannot be read, or is larger than {max_bytes} bytes") from error


def _ids(value: Any) -> list[int]:
    values = value if isinstance(value, list) else [value]
    return [number for number in values if isinstance(number, int) and not isinstance(number, bool)]


def _token_text(made: Tokenizer, number: Any) -> str:
    return (made.id_to_token(number) or "") if isinstance(number, int) else ""
