"""The reference runner over tiny random models: equal to transformers, and to itself in any company."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from chatsvc.engine.protocol import Sampling
from chatsvc.engine.runners.base import Runner, RunnerOptions
from chatsvc.engine.runners.choice import load_runner
from chatsvc.errors import OperatorError
from tests.engine.conftest import run
from tests.engine.filemodel import make_card

pytestmark = pytest.mark.slow

GREEDY = Sampling(max_tokens=30, temperature=0)
SHAPE: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "initializer_range": 0.3,
}
MODELS: dict[str, Callable[[], Any]] = {
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SHAPE, tie_word_embeddings=True)),
    "qwen2-sliding": lambda: Qwen2ForCausalLM(Qwen2Config(**SHAPE, use_sliding_window=True, sliding_window=16)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SHAPE, head_dim=32)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE)),
}


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny random model, made on first use."""
    made: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in made:
            torch.manual_seed(1)
            made[name] = tmp_path_factory.mktemp(name)
            MODELS[name]().save_pretrained(made[name])
        return made[name]

    return get


def load(path: Path, num_threads: int = 1) -> Runner:
    options = RunnerOptions(kind="torch", max_num_seqs=5, prefill_chunk_tokens=32, num_threads=num_threads)
    runner = load_runner(path, "safetensors", make_card(), options)
    runner.warm_up()
    return runner


def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(3, 300, (length,), generator=generator).tolist() for length in (1, 31, 32, 70, 300)]


@pytest.mark.parametrize("name", MODELS)
def test_it_says_what_transformers_says(folder_of: Callable[[str], Path], name: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder_of(name), dtype=torch.float32)
    runner = load(folder_of(name))
    for prompt in prompts():
        expected = model.generate(torch.tensor([prompt]), max_new_tokens=30, do_sample=False, eos_token_id=2)
        ids = [token for token in expected[0, len(prompt) :].tolist() if token != 2]
        assert run(runner, [(prompt, GREEDY)]) == [ids]


@pytest.mark.parametrize("name", MODELS)
def test_batched_equals_solo_exactly(folder_of: Callable[[str], Path], name: str) -> None:
    runner = load(folder_of(name))
    seeded = Sampling(max_tokens=25, temperature=1.5, top_k=100, top_p=0.95, seed=11, frequency_penalty=0.5)
    work = [(prompt, GREEDY if number % 2 else seeded) for number, prompt in enumerate(prompts())]
    assert run(runner, work) == [run(runner, [one])[0] for one in work]


def test_company_changes_no_bit_of_the_logits(folder_of: Callable[[str], Path]) -> None:
    runner: Any = load(folder_of("qwen2"), num_threads=2)
    model = runner._model
    with torch.inference_mode():

        def after(prompt: list[int]) -> Any:
            cache = model.new_cache()
            model.prefill(prompt, cache)
            return cache

        alone = [model.decode([7], [after(prompt)])[0] for prompt in prompts()]
        together = model.decode([7] * 5, [after(prompt) for prompt in prompts()])
        reversed_ = model.decode([7] * 5, [after(prompt) for prompt in reversed(prompts())]).flip(0)
    assert torch.equal(torch.stack(alone), together)
    assert torch.equal(together, reversed_)


def test_sequences_join_and_leave_between_steps(folder_of: Callable[[str], Path]) -> None:
    runner = load(folder_of("qwen2"))
    first, second = prompts()[3], prompts()[1]
    alone = [run(runner, [(first, GREEDY)])[0], run(runner, [(second, GREEDY)])[0]]
    runner.add(1, first, GREEDY, "")
    got: dict[int, list[int]] = {1: [], 2: [], 3: []}
    for number in range(200):
        if number == 6:
            runner.add(2, second, GREEDY, "")
            runner.add(3, prompts()[4], GREEDY, "")
        if number == 12:
            runner.cancel(3)
        for output in runner.step():
            got[output.sequence_id] += output.token_ids
    assert [got[1], got[2]] == alone
    assert runner.cache_usage() == 0


def test_a_seed_repeats_and_no_seed_does_not(folder_of: Callable[[str], Path]) -> None:
    runner = load(folder_of("qwen2"))
    seeded = Sampling(max_tokens=20, temperature=1.5, seed=-1)
    free = Sampling(max_tokens=20, temperature=1.5, top_k=0)
    assert run(runner, [([7, 8], seeded)]) == run(runner, [([7, 8], seeded)])
    assert run(runner, [([7, 8], free)]) != run(runner, [([7, 8], free)])


def test_ids_outside_the_vocabulary_are_refused(folder_of: Callable[[str], Path]) -> None:
    runner = load(folder_of("qwen2"))
    for bad in ([], [300], [-1]):
        with pytest.raises(ValueError, match="vocabulary"):
            runner.add(1, bad, GREEDY, "")
    assert runner.step() == []


def test_cancel_forgets(folder_of: Callable[[str], Path]) -> None:
    runner = load(folder_of("qwen2"))
    runner.add(1, prompts()[4], GREEDY, "")
    runner.step()
    assert runner.cache_usage() > 0
    runner.cancel(1)
    runner.cancel(1)
    assert runner.step() == []


def test_nonsense_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "qwen2"}')
    with pytest.raises(OperatorError):
        load_runner(tmp_path, "safetensors", make_card(), RunnerOptions(num_threads=1))


def test_frequencies_that_depend_on_a_prompts_length_are_refused(
    folder_of: Callable[[str], Path], tmp_path: Path
) -> None:
    """A prompt's first chunks would be cached with those of a short one."""
    path = shutil.copytree(folder_of("llama"), tmp_path / "model")
    config = json.loads((path / "config.json").read_text())
    scaling = {"rope_type": "longrope", "factor": 4.0, "short_factor": [1.0] * 8, "long_factor": [4.0] * 8}
    config["rope_parameters"] = {**scaling, "rope_theta": 1e4, "original_max_position_embeddings": 64}
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(OperatorError, match="longrope"):
        load_runner(path, "safetensors", make_card(), RunnerOptions(num_threads=1))


@pytest.mark.parametrize("name", ["model.layers.1.self_attn.q_proj.weight", "lm_head.weight"])
def test_a_model_that_lacks_a_weight_is_refused(folder_of: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    """transformers warns, and fills in random numbers."""
    shutil.copytree(folder_of("llama"), tmp_path / "model")
    weights = load_file(tmp_path / "model" / "model.safetensors")
    del weights[name]
    save_file(weights, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(OperatorError, match=name):
        load_runner(tmp_path / "model", "safetensors", make_card(), RunnerOptions(kind="torch", num_threads=1))
