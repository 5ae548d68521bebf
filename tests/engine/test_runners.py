"""The runners as such, without a loop: the OpenVINO one over the embedded model, the torch one over a tiny Qwen2."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM

from chatsvc.engine.protocol import Sampling
from chatsvc.engine.runners.base import Runner, RunnerOptions
from chatsvc.engine.runners.choice import choose, load_runner
from chatsvc.errors import OperatorError
from tests.engine.conftest import run
from tests.engine.filemodel import make_card
from tests.engine.test_process import GREEDY, PARIS, PARIS_ID

STORY = [1, 4093, 198, 34519, 253, 3365, 563, 253, 15489, 2, 198, 1, 520, 9531, 198]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Qwen2 of a few thousand weights, as a safetensors checkpoint."""
    torch.manual_seed(1)
    config = Qwen2Config(
        vocab_size=300,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        initializer_range=0.3,
    )
    path = tmp_path_factory.mktemp("tiny")
    Qwen2ForCausalLM(config).save_pretrained(path)
    return path


@pytest.fixture
def reference(tiny: Path) -> Runner:
    runner = load_runner(tiny, "safetensors", make_card(), RunnerOptions(max_num_seqs=4, prefill_chunk_tokens=16))
    runner.warm_up()
    return runner


def test_openvino_answers(openvino: Runner) -> None:
    assert PARIS_ID in run(openvino, [(PARIS, GREEDY)])[0]


def test_openvino_repeats_itself_with_a_seed_and_not_without(openvino: Runner) -> None:
    seeded = Sampling(max_tokens=20, temperature=1.2, seed=-5)
    free = Sampling(max_tokens=20, temperature=1.2)
    first, second = run(openvino, [(STORY, seeded)]), run(openvino, [(STORY, seeded)])
    assert first == second
    assert run(openvino, [(STORY, free)]) != run(openvino, [(STORY, free)])
    assert run(openvino, [(STORY, Sampling(max_tokens=20, temperature=1.2, seed=6))]) != first


def test_openvino_penalties_and_greedy_limits(openvino: Runner) -> None:
    penalised = Sampling(max_tokens=30, temperature=0, presence_penalty=2.0, frequency_penalty=2.0)
    (ids,) = run(openvino, [(STORY, penalised)])
    assert 0 < len(ids) <= 30
    assert run(openvino, [(STORY, Sampling(max_tokens=3, temperature=0))]) == [run(openvino, [(STORY, GREEDY)])[0][:3]]


def test_openvino_cancel_frees_its_cache(openvino: Runner) -> None:
    openvino.add(1, STORY * 20, Sampling(max_tokens=100, temperature=0), "")
    openvino.step()
    openvino.cancel(1)
    openvino.cancel(1)
    assert openvino.step() == []
    assert openvino.cache_usage() < 0.1
    assert PARIS_ID in run(openvino, [(PARIS, GREEDY)])[0]


def test_openvino_refuses_an_empty_prompt_and_goes_on(openvino: Runner) -> None:
    with pytest.raises((RuntimeError, ValueError)):
        openvino.add(1, [], GREEDY, "")
    assert PARIS_ID in run(openvino, [(PARIS, GREEDY)])[0]


def test_openvino_cannot_load_nonsense(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF but not really")
    with pytest.raises(OperatorError, match="GGUF"):
        load_runner(tmp_path / "model.gguf", "gguf", make_card(), RunnerOptions())
    config = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 8}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "openvino_model.xml").write_text("<net/>")
    (tmp_path / "openvino_model.bin").write_bytes(b"")
    with pytest.raises(OperatorError, match="cannot load"):
        load_runner(tmp_path, "openvino", make_card(), RunnerOptions())


def test_reference_batched_equals_solo_exactly(reference: Runner) -> None:
    work = [([number + 3] * (5 + 9 * number), Sampling(max_tokens=12 + number, temperature=0)) for number in range(4)]
    assert run(reference, work) == [run(reference, [one])[0] for one in work]


def test_reference_equals_transformers_generate(reference: Runner, tiny: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    prompt = list(range(3, 43))
    expected = model.generate(torch.tensor([prompt]), max_new_tokens=20, do_sample=False, eos_token_id=2)
    ids = expected[0, len(prompt) :].tolist()
    assert run(reference, [(prompt, Sampling(max_tokens=20, temperature=0))]) == [[one for one in ids if one != 2]]


def test_reference_samples_reproducibly_with_a_seed(reference: Runner) -> None:
    seeded = Sampling(max_tokens=20, temperature=1.5, top_k=100, top_p=0.95, seed=11, frequency_penalty=0.5)
    work = [([7, 8, 9], seeded)]
    first = run(reference, work)
    assert run(reference, work) == first
    assert run(reference, [*work, ([5], seeded)])[0] == first[0]


def test_reference_refuses_ids_outside_its_vocabulary(reference: Runner) -> None:
    for bad in ([], [300], [-1]):
        with pytest.raises(ValueError, match="vocabulary"):
            reference.add(1, bad, GREEDY, "")
    assert reference.cache_usage() == 0


def test_reference_cancel_forgets(reference: Runner) -> None:
    reference.add(1, [3, 4], GREEDY, "")
    reference.step()
    reference.cancel(1)
    reference.cancel(1)
    assert reference.step() == []


def test_reference_cannot_load_nonsense(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "qwen2"}')
    with pytest.raises(OperatorError):
        load_runner(tmp_path, "safetensors", make_card(), RunnerOptions())


def test_the_choice_of_a_runner_says_why() -> None:
    assert choose("gguf", "auto") == ("openvino", "engine.runner is auto and the weights are gguf")
    assert choose("safetensors", "torch") == ("torch", "engine.runner says so")
    with pytest.raises(OperatorError, match="convert"):
        choose("gguf", "torch")
    with pytest.raises(OperatorError):
        choose("onnx", "auto")
