"""Small tokenizers and templates as the well-known families have them, with markers typed as files type them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from chatsvc.models.card import ModelCard

# How a file may type a marker: as a special token, as an added one, or as any other entry of the vocabulary.
Typing = Literal["special", "added", "normal"]
WORDS = [
    "you",
    "are",
    "helpful",
    "user",
    "assistant",
    "system",
    "model",
    "tool",
    "Hello",
    "World",
    "hi",
    "ok",
    "What",
    "is",
    "the",
    "capital",
    "of",
    "France",
    "Paris",
    "你好",
    "é",
]


@dataclass(frozen=True)
class Family:
    """``markers`` are all that the template writes; the last of ``ends`` ends a turn."""

    name: str
    template: str
    markers: tuple[str, ...]
    bos: str = ""
    eos: str = ""
    kind: Literal["bytes", "metaspace", "spaces"] = "bytes"
    takes_system: bool = True

    def tokenizer(self, typing: Typing = "special") -> Tokenizer:
        """The same ids for every typing."""
        plain = {"bytes": _bytes, "metaspace": _metaspace, "spaces": _spaces}[self.kind](self.markers)
        tokens = [AddedToken(text, normalized=False, special=typing == "special") for text in self.markers]
        if typing != "normal":
            plain.add_tokens(tokens)
        return plain

    def card(self, typing: Typing = "special", **changed: Any) -> ModelCard:
        """A card of this family."""
        tokenizer = self.tokenizer(typing)
        values: dict[str, Any] = {
            "name": self.name,
            "digest": "0" * 64,
            "revision": "test",
            "created": 0,
            "context_length": 4096,
            "eos_token_ids": [tokenizer.token_to_id(self.eos)],
            "tokenizer_json": tokenizer.to_str().encode(),
            "chat_template": self.template,
            "bos_token": self.bos,
            "eos_token": self.eos,
        }
        return ModelCard(**values | changed)


def _vocabulary(symbols: list[str], words: list[str], markers: tuple[str, ...]) -> tuple[dict[str, int], list[Any]]:
    """Symbols, what merging them to words takes, and the markers, which no merge makes."""
    entries, merges = list(symbols), []
    for word in words:
        for end in range(2, len(word) + 1):
            if word[:end] not in entries:
                entries.append(word[:end])
                merges.append((word[: end - 1], word[end - 1]))
    entries += markers
    return {text: id_ for id_, text in enumerate(entries)}, merges


def _bytes(markers: tuple[str, ...]) -> Tokenizer:
    """Byte-level BPE (GPT-2, Qwen, Llama 3, DeepSeek)."""
    splitter = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words = [splitter.pre_tokenize_str(word)[0][0] for word in WORDS] + ["Ġ" + word for word in ("Hello", "is", "of")]
    vocabulary, merges = _vocabulary(sorted(splitter.alphabet()), words, markers)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentence_pieces(markers: tuple[str, ...]) -> Tokenizer:
    """BPE over characters with bytes for unknown ones, as converted from SentencePiece."""
    bytes_ = [f"<0x{number:02X}>" for number in range(256)]
    symbols = sorted({char for word in WORDS for char in word} | set("▁\n.,:;!?<>|[]/_0123456789INSTS"))
    vocabulary, merges = _vocabulary([*bytes_, *symbols], [*WORDS, *("▁" + word for word in WORDS)], markers)
    return Tokenizer(models.BPE(vocab=vocabulary, merges=merges, byte_fallback=True, fuse_unk=True))


def _metaspace(markers: tuple[str, ...]) -> Tokenizer:
    """A space before the first word of a text only (Mistral, later Llama 2)."""
    tokenizer = _sentence_pieces(markers)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="first")
    return tokenizer


def _spaces(markers: tuple[str, ...]) -> Tokenizer:
    """Spaces are replaced and nothing is put before (Gemma); runs of line ends are tokens of their own."""
    tokenizer = _sentence_pieces(markers)
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_tokens([AddedToken("\n\n", normalized=False, special=False)])
    return tokenizer


FAMILIES = (
    Family(
        "chatml",
        "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>'"
        " + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
        ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
        eos="<|im_end|>",
    ),
    Family(
        "llama3",
        "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + "
        "message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 "
        "%}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}"
        "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
        ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        bos="<|begin_of_text|>",
        eos="<|eot_id|>",
    ),
    Family(
        "mistral",
        "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
        "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
        "{% else %}{{ message['content'] + eos_token }}{% endif %}{% endfor %}",
        ("<s>", "</s>", "[INST]", "[/INST]"),
        bos="<s>",
        eos="</s>",
        kind="metaspace",
        takes_system=False,
    ),
    Family(
        "gemma",
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
        "{% endif %}{% for message in messages %}{% set role = 'model' if message['role'] == 'assistant' else "
        "message['role'] %}{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}",
        ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"),
        bos="<bos>",
        eos="<end_of_turn>",
        kind="spaces",
        takes_system=False,
    ),
    Family(
        "phi",  # no marker stands whole in the template
        "{% for message in messages %}{{ '<|' + message['role'] + '|>' + '\n' + message['content'] + '<|end|>\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}",
        ("<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
        eos="<|endoftext|>",
        kind="metaspace",
    ),
    Family(
        "deepseek",
        "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'system' %}{{ message['content'] }}"
        "{% elif message['role'] == 'user' %}{{ '<｜User｜>' + message['content'] }}{% else %}{% set content = "
        "message['content'] %}{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}"
        "{{ '<｜Assistant｜>' + content + '<｜end▁of▁sentence｜>' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<｜Assistant｜><think>\n' }}{% endif %}",
        ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>", "<think>", "</think>"),
        bos="<｜begin▁of▁sentence｜>",
        eos="<｜end▁of▁sentence｜>",
    ),
    Family(
        "odd",  # names that look like nothing
        "{% for message in messages %}{{ '@@' + message['role'] + '@@ ' + message['content'] + ' FINIS ' }}{% endfor %}"
        "{% if add_generation_prompt %}@@assistant@@ {% endif %}",
        ("@@system@@", "@@user@@", "@@assistant@@", "FINIS"),
        eos="FINIS",
    ),
)


def as_files(family: Family, folder: Any, typing: Typing, settings: dict[str, Any]) -> None:
    """Write ``tokenizer.json`` and ``tokenizer_config.json``."""
    (folder / "tokenizer.json").write_text(family.tokenizer(typing).to_str())
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": family.template} | settings))
