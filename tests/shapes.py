"""Models made on the spot: a tiny Qwen2 in seconds, and a random one in Qwen1.5-0.5B-Chat's exact shape.

Both are safetensors folders as ModelScope has them (config, tokenizer with ChatML's special tokens, template). Random
weights say nothing sensible, but take every path that real ones take, at the same speed.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import Qwen2Config, Qwen2ForCausalLM

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_TEXT = [
    "The quick brown fox jumps over the lazy dog. What is the capital of France? Paris is the capital of France.",
    "你好，世界！法国的首都是巴黎。今天天气很好，我们一起学习。",
    "def main(arguments):\n    return [number * 2 for number in arguments]\n\n12345 67890",
]


def tiny_qwen2(path: Path, seed: int = 0, heads: int = 4) -> Path:
    """A Qwen2 of two layers with a small real byte-level BPE tokenizer; with one head the native runner serves it."""
    tokenizer = trained_tokenizer(512)
    write_tokenizer(path, tokenizer)
    config = _config(tokenizer, hidden=64, layers=2, heads=heads, intermediate=128, context=2048)
    _write_weights(path, config, seed, torch.float32)
    return path


def qwen15_05b_shape(path: Path, seed: int = 0) -> Path:
    """Qwen1.5-0.5B-Chat's shape: 24 layers, hidden 1024, 16 heads, vocabulary 151936, context 32768; 930 MB."""
    tokenizer = _padded(trained_tokenizer(2000), 151643)
    write_tokenizer(path, tokenizer)
    config = _config(tokenizer, hidden=1024, layers=24, heads=16, intermediate=2816, context=32768, vocab=151936)
    _write_weights(path, config, seed, torch.bfloat16)
    return path


def _config(
    tokenizer: Tokenizer, *, hidden: int, layers: int, heads: int, intermediate: int, context: int, vocab: int = 0
) -> Qwen2Config:
    return Qwen2Config(
        vocab_size=vocab or tokenizer.get_vocab_size(),
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        intermediate_size=intermediate,
        max_position_embeddings=context,
        rope_theta=1_000_000.0,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.token_to_id("<|endoftext|>"),
        eos_token_id=tokenizer.token_to_id("<|im_end|>"),
    )


def trained_tokenizer(vocab_size: int) -> Tokenizer:
    """A small real byte-level BPE as Qwen2 splits text, with ChatML's special tokens."""
    tokenizer = Tokenizer(BPE())
    _qwen_parts(tokenizer)
    trainer = BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(_TEXT, trainer)
    tokenizer.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in SPECIAL])
    return tokenizer


def _padded(trained: Tokenizer, size: int) -> Tokenizer:
    """The same merges in a vocabulary of ``size``, the rest filled with words no merge makes, then the specials."""
    model = json.loads(trained.to_str())["model"]
    vocabulary = dict(model["vocab"])
    for number in range(len(vocabulary), size):
        vocabulary[f"Ġw{number}"] = number
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=[tuple(merge) for merge in model["merges"]]))
    _qwen_parts(tokenizer)
    tokenizer.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in SPECIAL])
    assert tokenizer.token_to_id("<|im_end|>") == size + 2
    return tokenizer


def _qwen_parts(tokenizer: Tokenizer) -> None:
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)


def write_tokenizer(path: Path, tokenizer: Tokenizer) -> None:
    """The files of a tokenizer with ChatML's template, as a model's folder has them."""
    path.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(path / "tokenizer.json"))
    settings = {
        "tokenizer_class": "Qwen2Tokenizer",
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "model_max_length": 32768,
        "chat_template": TEMPLATE,
    }
    (path / "tokenizer_config.json").write_text(json.dumps(settings))


def _write_weights(path: Path, config: Qwen2Config, seed: int, dtype: torch.dtype) -> None:
    before = torch.get_default_dtype()
    torch.manual_seed(seed)
    torch.set_default_dtype(dtype)
    try:
        model = Qwen2ForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    model.generation_config.eos_token_id = [config.eos_token_id, config.bos_token_id]
    model.save_pretrained(path, safe_serialization=True)
