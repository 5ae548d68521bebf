"""The first sixteen tokens are those of transformers in fp32: every architecture, rotary scaling, format and runner.

YaRN's factor on cosine and sine changes no choice as clear as these are; tests/engine/test_native_parts.py compares the
logits, which it does change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the extra 'torch' is not installed")

import torch

from chatsvc.engine.protocol import Sampling
from chatsvc.engine.runners.base import RunnerOptions
from chatsvc.engine.runners.choice import choose, load_runner, missing
from chatsvc.errors import OperatorError
from tests.engine import trained
from tests.engine.conftest import run
from tests.engine.filemodel import make_card
from tests.engine.trained import ANSWERS, PROMPTS, SCALINGS, Files

pytestmark = pytest.mark.slow

NAMES = ("llama", "llama-biases", "qwen2", "qwen3")
KINDS = {"safetensors": ("native", "torch"), "gguf": ("native", "openvino")}


def serves(name: str, scaling: str, model_format: str, kind: str) -> bool:
    """What docs/reference/models.md promises."""
    if kind == "native":  # of safetensors, biases come with one on the attention's output
        return name in ("llama", "qwen2", "qwen3") or (name == "llama-biases" and model_format == "gguf")
    if kind == "openvino":
        return scaling == "plain" and name != "llama-biases"
    return True


CASES = [
    pytest.param(name, scaling, model_format, kind, id=f"{name}-{scaling}-{model_format}-{kind}")
    for name in NAMES
    for scaling in SCALINGS
    for model_format, kinds in KINDS.items()
    for kind in kinds
]
SERVED = [case for case in CASES if serves(*case.values)]
REFUSED = [case for case in CASES if case not in SERVED]


@dataclass(frozen=True)
class Learnt:
    """A trained model, and what transformers says with its weights after each of the prompts."""

    files: Files
    state: dict[str, torch.Tensor]
    truth: list[list[int]]


Learn = Callable[[str, str], Learnt]


@pytest.fixture(scope="module")
def learn(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Learn]:
    """``learn("qwen2", "yarn")``: trained on first use. Llama with biases computes the same function as Qwen2."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    made: dict[tuple[str, str], Learnt] = {}

    def get(name: str, scaling: str) -> Learnt:
        if (name, scaling) not in made:
            if name == "llama-biases":
                model = trained.with_weights(name, scaling, get("qwen2", scaling).state)
            else:
                model = trained.train(name, scaling)
            files = trained.write(tmp_path_factory.mktemp(f"{name}-{scaling}"), name, scaling, model)
            made[name, scaling] = Learnt(files, model.state_dict(), trained.generated(model))
        return made[name, scaling]

    yield get
    torch.set_num_threads(num_threads)


@pytest.mark.parametrize(("name", "scaling", "model_format", "kind"), SERVED)
def test_the_first_tokens_are_those_of_transformers(
    learn: Learn, name: str, scaling: str, model_format: str, kind: str
) -> None:
    if absent := missing(kind):
        pytest.skip(f"{kind} does not run here: {absent}")
    learnt = learn(name, scaling)
    options = RunnerOptions(kind=kind, num_threads=1, max_num_seqs=4)  # type: ignore[arg-type]
    path: Path = getattr(learnt.files, model_format)
    runner = load_runner(path, model_format, make_card(context_length=128), options)
    greedy = Sampling(max_tokens=len(ANSWERS[0]), temperature=0, ignore_eos=True)
    assert run(runner, [(prompt, greedy) for prompt in PROMPTS]) == learnt.truth


@pytest.mark.parametrize(("name", "scaling", "model_format", "kind"), REFUSED)
def test_what_a_runner_would_say_wrongly_it_does_not_serve(
    learn: Learn, name: str, scaling: str, model_format: str, kind: str
) -> None:
    if absent := missing(kind):
        pytest.skip(f"{kind} does not run here: {absent}")
    path: Path = getattr(learn(name, scaling).files, model_format)
    with pytest.raises(OperatorError, match=r"rotary|bias"):
        choose(path, model_format, kind)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scaling", SCALINGS)
def test_the_tokens_depend_on_what_is_compared(learn: Learn, name: str, scaling: str) -> None:
    """The truth is what was learnt; without the scaling, or the biases, the same weights say something else."""
    learnt = learn(name, scaling)
    assert learnt.truth == ANSWERS
    if scaling != "plain":
        assert trained.generated(trained.with_weights(name, "plain", learnt.state)) != ANSWERS
    without = {key: value for key, value in learnt.state.items() if not key.endswith("bias")}
    if len(without) < len(learnt.state):
        assert trained.generated(trained.with_weights(name, scaling, without)) != ANSWERS
