"""Every described architecture against transformers in fp32, imported as an operator would; others are refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="the extra 'torch' is not installed")

import torch
from safetensors.torch import load_file, save_file

from chatsvc.engine.protocol import Sampling
from chatsvc.engine.runners.base import RunnerOptions
from chatsvc.engine.runners.choice import choose, load_runner, missing
from chatsvc.engine.runners.native.filling import fill
from chatsvc.engine.runners.native.library import Capacity, Floats, Model, Rows
from chatsvc.engine.runners.native.weights import open_weights
from chatsvc.errors import OperatorError
from chatsvc.models.formats.architectures import ALL
from chatsvc.models.store import ModelFolder, ModelStore
from tests.engine.families import CONTEXT, MODELS, SHAPE, new_model, write_gguf, write_safetensors

needs_native = pytest.mark.skipif(bool(missing("native")), reason=f"no native runner here: {missing('native')}")

_IDS = [[(seed * number * number + 3 * number + seed) % SHAPE["vocab_size"] for number in range(90)] for seed in (5, 7)]
_NUM_PROMPT = 70  # the rest is decoded, a token a pass
_SPLIT = {"llama": "llama-bpe", "llama3": "llama-bpe", "smollm2": "smollm", "mistral": "tekken", "smollm3": "llama-bpe"}

# A list of layers without rotary position embedding is in no GGUF file: llama.cpp takes every fourth.
IN_GGUF = [(name, "gguf") for name in MODELS if name != "smollm3-listed"]


@dataclass(frozen=True)
class Family:
    """A model in transformers' hands, and imported from both formats."""

    truth: Floats  # [2][90][vocabulary]
    safetensors: ModelFolder
    gguf: ModelFolder


@pytest.fixture(scope="module")
def family_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Family]:
    """``family_of("qwen3")``: made and imported on first use."""
    made: dict[str, Family] = {}

    def get(name: str) -> Family:
        if name not in made:
            home = tmp_path_factory.mktemp(name)
            store = ModelStore(home / "models", home / "keys")
            model = new_model(name)
            with torch.inference_mode():
                truth = model(torch.tensor(_IDS)).logits.numpy()
            folder = write_safetensors(home / "folder", model)
            file = write_gguf(home / "model.gguf", model, pre=_SPLIT.get(name, "qwen2"))
            made[name] = Family(truth, store.import_path(folder, "folder"), store.import_path(file, "file"))
        return made[name]

    return get


def native_logits(weights: Path) -> tuple[Floats, Floats]:
    """Of both sequences: each alone in one pass, and both at once, in chunks and then token by token."""
    opened = open_weights(weights)
    model = Model(opened.shape, Capacity(max_tokens=CONTEXT, max_rows=192, num_pages=8, num_threads=2))
    fill(model, opened)
    pages = [list(range(4)), list(range(4, 8))]
    alone = [
        model.forward([Rows(ids, 0, owned)], range(len(ids))).copy() for ids, owned in zip(_IDS, pages, strict=True)
    ]
    together: list[Floats] = []
    for first, last in [(0, 33), (33, _NUM_PROMPT), *((one, one + 1) for one in range(_NUM_PROMPT, len(_IDS[0])))]:
        batch = [Rows(ids[first:last], first, owned) for ids, owned in zip(_IDS, pages, strict=True)]
        logits = model.forward(batch, range(2 * (last - first)))
        together.append(logits.reshape(2, last - first, -1).copy())
    return np.stack(alone), np.concatenate(together, axis=1)


@needs_native
@pytest.mark.parametrize(("name", "model_format"), [(name, "safetensors") for name in MODELS] + IN_GGUF)
def test_native_logits_are_those_of_transformers_alone_and_in_company(
    family_of: Callable[[str], Family], name: str, model_format: str
) -> None:
    family = family_of(name)
    folder: ModelFolder = getattr(family, model_format)
    with folder.weights() as weights:
        assert choose(weights, model_format, "auto")[0] == "native"
        alone, together = native_logits(weights)
    assert np.array_equal(alone, together)
    assert np.abs(alone - family.truth).mean() < 0.04 * family.truth.std()
    assert np.corrcoef(alone.ravel(), family.truth.ravel())[0, 1] > 0.999


@needs_native
@pytest.mark.parametrize("name", [name for name, _ in IN_GGUF if name != "llama3"])  # whose factors are rounded
def test_both_formats_give_the_same_logits_to_the_last_bit(family_of: Callable[[str], Family], name: str) -> None:
    family = family_of(name)
    with family.safetensors.weights() as folder, family.gguf.weights() as file:
        assert np.array_equal(native_logits(folder)[0], native_logits(file)[0])


@pytest.mark.parametrize("name", MODELS)
def test_the_reference_runner_says_what_transformers_says(family_of: Callable[[str], Family], name: str) -> None:
    family = family_of(name)
    options = RunnerOptions(kind="torch", num_threads=1, max_num_seqs=2)
    with family.safetensors.weights() as weights:
        runner: Any = load_runner(weights, "safetensors", family.safetensors.card(), options)
    model = runner._model
    with torch.inference_mode():
        alone = [decoded(model, [ids])[0] for ids in _IDS]
        together = decoded(model, _IDS)
    assert torch.equal(torch.stack(alone), together)
    difference = np.abs(together.numpy() - family.truth[:, _NUM_PROMPT - 1 :])
    assert difference.max() < 1e-4 * family.truth.std()


def decoded(model: Any, sequences: Sequence[list[int]]) -> torch.Tensor:
    """Logits behind the prompt and behind every token after it, (sequences, tokens, vocabulary)."""
    caches = [model.new_cache() for _ in sequences]
    rows = [
        torch.stack([model.prefill(ids[:_NUM_PROMPT], cache) for ids, cache in zip(sequences, caches, strict=True)])
    ]
    rows += [model.decode([ids[at] for ids in sequences], caches) for at in range(_NUM_PROMPT, len(sequences[0]))]
    return torch.stack(rows, dim=1)


def test_every_entry_of_the_table_is_compared() -> None:
    assert {configuration.model_type for configuration, _, _ in MODELS.values()} == {one.model_type for one in ALL}


@needs_native
@pytest.mark.parametrize("part", ["q_norm", "k_norm"])
def test_the_norms_of_heads_take_part(family_of: Callable[[str], Family], tmp_path: Path, part: str) -> None:
    """What is compared above would notice a norm that is left out."""
    folder = family_of("qwen3").safetensors.path
    tensors = load_file(folder / "model.safetensors")
    changed = {name: torch.ones_like(one) if part in name else one for name, one in tensors.items()}
    save_file(changed, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    difference = native_logits(tmp_path)[0] - family_of("qwen3").truth
    assert np.abs(difference).mean() > 0.1 * family_of("qwen3").truth.std()


@needs_native
def test_a_window_bounds_the_context_that_the_native_runner_serves(family_of: Callable[[str], Family]) -> None:
    folder = family_of("mistral-window").safetensors
    with folder.weights() as weights:
        card = folder.card()
        native = load_runner(weights, "safetensors", card, RunnerOptions(kind="native", num_threads=1))
        torch_ = load_runner(weights, "safetensors", card, RunnerOptions(kind="torch", num_threads=1))
    assert (native.card.context_length, torch_.card.context_length) == (96, CONTEXT)
    with pytest.raises(ValueError, match="do not fit the context"):
        native.add(1, _IDS[0], Sampling(max_tokens=96 - len(_IDS[0]) + 1), "")


def test_openvino_refuses_what_its_gguf_reader_leaves_out(family_of: Callable[[str], Family]) -> None:
    if absent := missing("openvino"):
        pytest.skip(absent)
    for name, reason in {"smollm3": "architecture smollm3", "mistral-window": "sliding windows"}.items():
        with family_of(name).gguf.weights() as weights, pytest.raises(OperatorError, match=reason):
            choose(weights, "gguf", "openvino")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"model_type": "gemma3_text"}, "the architecture gemma3_text"),
        ({"model_type": "phi3"}, "the architecture phi3"),
        ({"model_type": "mixtral", "num_local_experts": 8}, "the architecture mixtral"),
        ({"model_type": "qwen3_moe"}, "the architecture qwen3_moe"),
        ({"rope_scaling": {"type": "longrope", "factor": 4.0}}, "scaled by longrope"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "scaled by dynamic"),
        ({"rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}}, "mrope"),
        ({"rope_scaling": {"type": "default", "mrope_section": [16, 24, 24]}}, "mrope"),
        ({"partial_rotary_factor": 0.5}, "a part of each head"),
        ({"hidden_act": "gelu"}, "the activation gelu"),
        ({"use_sliding_window": True, "layer_types": ["linear_attention"] * 4}, "layers of the type linear_attention"),
    ],
)
def test_what_is_not_described_is_refused_at_import_by_its_name(
    family_of: Callable[[str], Family], tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    source = family_of("qwen3").safetensors.path.parent.parent / "folder"
    for path in source.iterdir():
        (tmp_path / path.name).symlink_to(path)
    config = json.loads((source / "config.json").read_text())
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
    store = ModelStore(tmp_path / "models", tmp_path / "keys")
    with pytest.raises(OperatorError, match=f"{reason} is not served|{reason}.* is not served"):
        store.import_path(tmp_path, "refused")


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("general.architecture", "gemma3", "the architecture gemma3"),
        ("general.architecture", "mistral3", "the architecture mistral3"),
        ("llama.expert_count", 8, "expert_count"),
        ("llama.rope.dimension_count", 32, "a part of each head"),
        ("llama.rope.scaling.type", "longrope", "longrope"),
    ],
)
def test_gguf_files_that_are_not_described_are_refused_at_import_by_name(
    tmp_path: Path, key: str, value: Any, reason: str
) -> None:
    path = write_gguf(tmp_path / "model.gguf", new_model("llama"), extra={key: value})
    with pytest.raises(OperatorError, match=f"{reason}.* is not served"):
        ModelStore(tmp_path / "models", tmp_path / "keys").import_path(path, "refused")
