"""Tokenizers made from GGUF metadata give the ids that OpenVINO's reading of the same file gives."""

from __future__ import annotations

import inspect
from pathlib import Path

import numpy as np
import pytest
import regex
from tokenizers import Tokenizer
from transformers.convert_slow_tokenizer import TikTokenConverter

from chatsvc.models.formats import gguf
from chatsvc.models.formats.gguf import GgufInvalid
from chatsvc.models.store import ModelFolder, ModelStore
from chatsvc.models.supply.telemetry import import_openvino
from chatsvc.models.text import tokenizer
from tests.models.ggufs import tiny_gguf
from tests.shapes import QWEN_SPLIT, trained_tokenizer

TEXTS = [
    "Hello world",
    "What is the capital of France?",
    "你好，世界！法国的首都是哪里？",
    " 12345 67.89 ٣٤٥ Ⅻ ½ x1y22z333",
    "Ünïcödé café naïve",
    "Привет мир, こんにちは世界, 안녕하세요, مرحبا بالعالم, שלום, हिन्दी में, ภาษาไทย",
    "🎉👩‍👩‍👧‍👦 🇫🇷" + "😀" * 5,
    "def f(x):\n\treturn x**2  # ok\n\n\n   end",
    "don't can't WON'T I'm we'LL",
    "  leading and trailing   ",
    "\r\n\r\nx\n \n y\t\t",
    "<|im_start|>user\nhi<|im_end|>\n<|endoftext|>",
    "a\u00a0b\u3000c\u200bd 𝕳𝖊𝖑𝖑𝖔 t̷̢e̸x̵t £$€¥ !!!???...",
    "x" * 300,
]


def _oracle(path: Path):
    _, genai = import_openvino()
    oracle = genai.Tokenizer(str(path))
    return lambda text: oracle.encode(text, add_special_tokens=False).input_ids.data.tolist()[0]


def _from(path: Path) -> Tokenizer:
    return tokenizer.from_gguf(gguf.read_head(path))


@pytest.mark.slow
def test_smollm2_gives_the_ids_that_openvino_gives(embedded_model: ModelFolder):
    ours = Tokenizer.from_buffer(embedded_model.card().tokenizer_json)
    oracle = _oracle(embedded_model.path / "model.gguf")
    for text in TEXTS:
        ids = ours.encode(text, add_special_tokens=False).ids
        assert ids == oracle(text), text
        assert ours.decode(ids, skip_special_tokens=False) == text


@pytest.mark.parametrize(("architecture", "pre"), [("qwen2", "qwen2"), ("llama", "smollm")])
def test_each_split_gives_the_ids_that_openvino_gives(tmp_path: Path, architecture: str, pre: str):
    path = tiny_gguf(tmp_path / "model.gguf", architecture=architecture, pre=pre, with_tensors=False)
    ours, oracle = _from(path), _oracle(path)
    for text in TEXTS:
        assert ours.encode(text, add_special_tokens=False).ids == oracle(text), text


# Name -> what its family's tokenizer.json says: Qwen/Qwen2.5-0.5B, meta-llama/Llama-3.2-1B, and
# mistralai/Mistral-Nemo-Base-2407 (quoted also in llama.cpp's src/llama-vocab.cpp as "original regex from tokenizer.json").
UPSTREAM_SPLITS = {
    "qwen2": QWEN_SPLIT,
    "llama-bpe": inspect.signature(TikTokenConverter).parameters["pattern"].default,
    "tekken": (
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|"
        r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
}
HARD_TEXTS = [
    *TEXTS,
    "HTTPServer McDONALD's ÉCOLE éCole ǅungla",
    "https://a.b/c//d/\n/e",
    "1234567 3.14159 x86_64",
    "\n\n\t /\n/",
]


@pytest.mark.parametrize("pre", ["qwen2", "llama-bpe", "tekken"])
def test_each_split_is_that_of_its_familys_tokenizer_json(tmp_path: Path, pre: str):
    ours = _from(tiny_gguf(tmp_path / "model.gguf", pre=pre, architecture="llama", with_tensors=False))
    for text in HARD_TEXTS:
        pieces = [text[start:end] for _, (start, end) in ours.pre_tokenizer.pre_tokenize_str(text)]
        assert pieces == regex.findall(UPSTREAM_SPLITS[pre], text), text


@pytest.mark.parametrize(("pre", "is_whole"), [("llama-bpe", True), ("tekken", True), ("qwen2", False)])
def test_llama_and_tekken_take_a_known_word_whole_whatever_the_merges_say(tmp_path: Path, pre: str, is_whole: bool):
    head = gguf.read_head(tiny_gguf(tmp_path / "model.gguf", pre=pre, architecture="llama", with_tensors=False))
    head.metadata["tokenizer.ggml.tokens"].append("zyzzyva")
    head.metadata["tokenizer.ggml.token_type"].append(1)
    number = len(head.metadata["tokenizer.ggml.tokens"]) - 1
    assert (tokenizer.from_gguf(head).encode("zyzzyva").ids == [number]) == is_whole


def test_qwen2_from_gguf_is_the_tokenizer_it_was_made_from(tmp_path: Path):
    original = trained_tokenizer(512)
    ours = _from(tiny_gguf(tmp_path / "model.gguf", tokenizer=original, with_tensors=False))
    for text in [*TEXTS, "e\u0301 decomposed"]:
        assert ours.encode(text).ids == original.encode(text).ids, text


@pytest.mark.parametrize("pre", [None, "default"])
def test_a_qwen2_file_from_before_splits_had_names_is_split_as_qwen2(tmp_path: Path, pre: str | None):
    old = _from(tiny_gguf(tmp_path / "old.gguf", pre=pre, with_tensors=False))
    new = _from(tiny_gguf(tmp_path / "new.gguf", with_tensors=False))
    assert old.to_str() == new.to_str()


def test_a_llama_file_without_a_named_split_is_split_as_gpt2(tmp_path: Path):
    unnamed = _from(tiny_gguf(tmp_path / "a.gguf", architecture="llama", pre=None, with_tensors=False))
    named = _from(tiny_gguf(tmp_path / "b.gguf", architecture="llama", pre="gpt-2", with_tensors=False))
    assert unnamed.to_str() == named.to_str()


def test_control_tokens_are_special(tmp_path: Path):
    ours = _from(tiny_gguf(tmp_path / "model.gguf", with_tensors=False))
    ids = ours.encode("<|im_start|>hi<|im_end|>", add_special_tokens=False).ids
    assert ids[0] == ours.token_to_id("<|im_start|>")
    assert ours.decode(ids, skip_special_tokens=True) == "hi"


def test_both_of_chatmls_ends_end_a_completion(embedded_model: ModelFolder):
    assert embedded_model.card().eos_token_ids == [2, 0]


@pytest.mark.parametrize(("field", "message"), [("pre", "splits text as 'unheard-of'"), ("model", "kind 'unheard-of'")])
def test_an_unknown_tokenizer_is_refused(tmp_path: Path, field: str, message: str):
    path = tiny_gguf(tmp_path / "model.gguf", with_tensors=False, **{field: "unheard-of"})
    with pytest.raises(GgufInvalid, match=message):
        _from(path)


def test_a_merge_outside_the_vocabulary_is_refused(tmp_path: Path):
    head = gguf.read_head(tiny_gguf(tmp_path / "model.gguf", with_tensors=False))
    head.metadata["tokenizer.ggml.merges"].append("no such")
    with pytest.raises(GgufInvalid, match="damaged"):
        tokenizer.from_gguf(head)


def test_a_file_from_before_splits_had_names_generates(store: ModelStore, tmp_path: Path):
    path = tiny_gguf(tmp_path / "old.gguf", pre=None)
    folder = store.import_path(path)
    with folder.weights() as weights:
        assert len(generate(weights, [1, 2, 3], 4)) == 4


def generate(weights: Path, prompt_ids: list[int], num_tokens: int) -> list[int]:
    """Greedy ids from OpenVINO GenAI."""

    openvino, genai = import_openvino()
    scheduler = genai.SchedulerConfig()
    scheduler.cache_size = 1
    pipeline = genai.ContinuousBatchingPipeline(str(weights), scheduler, "CPU")
    config = genai.GenerationConfig()
    config.max_new_tokens = num_tokens
    config.ignore_eos = True
    handle = pipeline.add_request(0, openvino.Tensor(np.array([prompt_ids])), config)
    ids: list[int] = []
    while pipeline.has_non_finished_requests():
        pipeline.step()
        while handle.can_read():
            for output in handle.read().values():
                ids += output.generated_ids
    return ids
