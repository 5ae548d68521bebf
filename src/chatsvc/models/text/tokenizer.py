"""Builds a Hugging Face ``tokenizer.json`` from a GGUF file's metadata, and parses one.

Byte-level BPE only (``tokenizer.ggml.model`` = gpt2). How text is split before merging is named by
``tokenizer.ggml.pre``. An unknown name is refused: a wrong split would silently give the model tokens it was not
trained on. The tests compare with OpenVINO's reading of the same files, and with each family's ``tokenizer.json``.
Source of the names, and of who looks a whole word up before merging: llama.cpp, ``src/llama-vocab.cpp``.
"""

from __future__ import annotations

from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE

from chatsvc.errors import OperatorError
from chatsvc.models.formats.gguf import GgufHead, GgufInvalid

PRE_KEY = "tokenizer.ggml.pre"
CHATML_START, CHATML_END = "<|im_start|>", "<|im_end|>"

# As in the upstream tokenizer.json of the family.
_QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
_TEKKEN_SPLIT = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_PLAIN = frozenset({"gpt-2", "gpt2", "default"})
_DIGITS = frozenset({"smollm", "starcoder", "refact"})
# Splits that are one regular expression.
_PATTERNS = {
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen"), _QWEN2_SPLIT),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3"), _LLAMA3_SPLIT),
    "tekken": _TEKKEN_SPLIT,
}
# A word that the vocabulary has is one token, whatever the merges say.
_WHOLE_WORDS_FIRST = frozenset({_LLAMA3_SPLIT, _TEKKEN_SPLIT})

_CONTROL, _USER_DEFINED = 3, 4  # values of tokenizer.ggml.token_type

# For files without a template whose vocabulary has ChatML's two tokens.
CHATML_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def from_gguf(head: GgufHead) -> Tokenizer:
    """The tokenizer that the file describes; control tokens become special tokens.

    Raises:
        GgufInvalid: it is of an unsupported kind, or incomplete.
    """
    kind = head.get("tokenizer.ggml.model", str)
    if kind != "gpt2":
        raise GgufInvalid(
            f"the file's tokenizer is of kind {kind!r}; only byte-level BPE ('gpt2') is served: import the model's "
            "safetensors folder instead"
        )
    tokens: list[str] = head.get("tokenizer.ggml.tokens", list)
    merges = [_pair(merge) for merge in head.get("tokenizer.ggml.merges", list)]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    split = family(head)
    whole_words = _PATTERNS.get(split) in _WHOLE_WORDS_FIRST
    try:
        tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=merges, fuse_unk=False, ignore_merges=whole_words))
    except Exception as error:  # tokenizers raises nothing narrower for a merge that is not in the vocabulary
        raise GgufInvalid("the file's tokenizer is damaged: a merge is not in its vocabulary") from error
    _split(tokenizer, split)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    types: list[int] = head.get("tokenizer.ggml.token_type", list)
    tokenizer.add_special_tokens(_added(tokens, types, _CONTROL))
    tokenizer.add_tokens(_added(tokens, types, _USER_DEFINED))
    return tokenizer


def eos_token_ids(tokenizer: Tokenizer, stated: list[int]) -> list[int]:
    """The ids that end a completion: the stated ones, and both of ChatML's where the vocabulary has them."""
    ids = list(stated)
    if tokenizer.token_to_id(CHATML_START) is not None:
        ids += [number for text in (CHATML_END, "<|endoftext|>") if (number := tokenizer.token_to_id(text)) is not None]
    return list(dict.fromkeys(ids))


def default_template(tokenizer: Tokenizer) -> str | None:
    """ChatML for a vocabulary with its tokens, else None."""
    known = all(tokenizer.token_to_id(text) is not None for text in (CHATML_START, CHATML_END))
    return CHATML_TEMPLATE if known else None


def parse(tokenizer_json: bytes) -> Tokenizer:
    """Parse a ``tokenizer.json``.

    Raises:
        OperatorError: it is not one.
    """
    try:
        return Tokenizer.from_buffer(tokenizer_json)
    except Exception as error:  # the library raises nothing narrower
        raise OperatorError("tokenizer.json cannot be read; fetch the model again") from error


def _pair(merge: Any) -> tuple[str, str]:
    left, _, right = str(merge).partition(" ")
    return left, right


def family(head: GgufHead) -> str:
    """``tokenizer.ggml.pre``, or what the architecture implies: files from before early 2024 (Qwen1.5's) lack it."""
    pre = head.metadata.get(PRE_KEY)
    if head.metadata.get("general.architecture") == "qwen2" and pre in (None, "default"):
        return "qwen2"
    return "default" if pre is None else str(pre)


def _split(tokenizer: Tokenizer, name: str) -> None:
    if name in _PLAIN:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    elif name in _DIGITS:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    elif name in _PATTERNS:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(_PATTERNS[name]), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        if _PATTERNS[name] == _QWEN2_SPLIT:
            # As upstream's tokenizer.json. llama.cpp and OpenVINO omit it: decomposed accents differ there.
            tokenizer.normalizer = normalizers.NFC()
    else:
        raise GgufInvalid(
            f"the file's tokenizer splits text as {name!r}, which is not known here: import the model's safetensors "
            "folder instead"
        )


def _added(tokens: list[str], types: list[int], wanted: int) -> list[AddedToken]:
    return [
        AddedToken(token, normalized=False, special=wanted == _CONTROL)
        for token, kind in zip(tokens, types, strict=False)
        if kind == wanted
    ]
