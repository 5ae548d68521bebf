"""The runners as such, without a loop: the OpenVINO one over the embedded model, the torch one over a tiny Qwen2."""

import json
from pathlib import Path

import pytest

from chatsvc.engine.protocol import Sampling
from chatsvc.engine.runners.base import Runner, RunnerOptions
from chatsvc.engine.runners.choice import choose, load_runner
from chatsvc.engine.runners.openvino.pipeline import serving_properties
from chatsvc.errors import OperatorError
from tests.engine.conftest import run
from tests.engine.filemodel import make_card
from tests.engine.test_process import GREEDY, PARIS, PARIS_ID

STORY = [1, 4093, 198, 34519, 253, 3365, 563, 253, 15489, 2, 198, 1, 520, 9531, 198]


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


def test_openvino_chooses_as_it_is_told_or_says_what_it_cannot(openvino: Runner) -> None:
    greedy = run(openvino, [(STORY, Sampling(max_tokens=16, temperature=0))])
    for values in ({"top_k": 1}, {"min_p": 1.0}):
        assert run(openvino, [(STORY, Sampling(max_tokens=16, temperature=1.3, seed=2, **values))]) == greedy
    repeating = [504, 3575, 282, 4649] * 8
    plain, penalised = (
        run(openvino, [(repeating, Sampling(max_tokens=12, temperature=0, repetition_penalty=value))])[0]
        for value in (1.0, 1.8)
    )
    assert set(plain) <= set(repeating)  # it goes on
    assert len(set(penalised) - set(repeating)) > 6  # the prompt counts too
    for values in ({"min_tokens": 20}, {"ignore_eos": True}):
        assert len(run(openvino, [(PARIS, Sampling(max_tokens=30, temperature=0, **values))])[0]) >= 20
    assert set(openvino.card.unsupported) == {"logit_bias", "logprobs", "response_format"}


def test_openvino_gives_out_an_end_that_is_ignored(openvino: Runner) -> None:
    (ended,) = run(openvino, [(PARIS, GREEDY)])
    more = Sampling(max_tokens=len(ended) + 8, temperature=0, ignore_eos=True)
    (ids,) = run(openvino, [(PARIS, more)])
    assert len(ids) == len(ended) + 8
    assert ids[len(ended)] in openvino.card.eos_token_ids


def test_openvinos_company_changes_little(openvino: Runner) -> None:
    """Its kernels for one row and for several differ in the last bits, so answers may part at near ties; not before."""
    greedy = Sampling(max_tokens=16, temperature=0)
    prompts = [[*STORY[:7], topic, *STORY[8:]] for topic in (253, 1100, 2030, 3365, 4000, 5012, 6400)] + [PARIS]
    alone = [run(openvino, [(prompt, greedy)])[0] for prompt in prompts]
    together = run(openvino, [(prompt, greedy) for prompt in prompts])
    same_first = sum(one[0] == other[0] for one, other in zip(alone, together, strict=True))
    same_ids = sum(
        next(
            (i for i, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), min(len(one), len(other))
        )
        for one, other in zip(alone, together, strict=True)
    )
    assert same_first >= len(prompts) - 1
    assert same_ids >= sum(map(len, alone)) / 2


def test_openvinos_cache_takes_a_byte_a_number_whatever_a_converted_model_asks_for(tmp_path: Path) -> None:
    import openvino  # noqa: PLC0415 - an extra
    from openvino import opset13  # noqa: PLC0415

    number = opset13.parameter([1], name="number")
    model = openvino.Model([opset13.relu(number)], [number])
    model.set_rt_info("f16", ["runtime_options", "KV_CACHE_PRECISION"])
    openvino.save_model(model, tmp_path / "openvino_model.xml")

    def precision(properties: dict[str, object]) -> str:
        compiled = openvino.Core().compile_model(tmp_path / "openvino_model.xml", "CPU", properties)
        return str(compiled.get_property("KV_CACHE_PRECISION").get_type_name())

    assert (precision({}), precision(serving_properties(tmp_path, RunnerOptions()))) == ("f16", "u8")


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


def test_the_choice_of_a_runner_says_why(tmp_path: Path) -> None:
    assert choose(tmp_path, "openvino", "auto") == ("openvino", "it is the fastest that serves")
    assert choose(tmp_path, "safetensors", "torch") == ("torch", "engine.runner says so")
    with pytest.raises(OperatorError, match="convert"):
        choose(tmp_path, "gguf", "torch")
    with pytest.raises(OperatorError, match="No runner"):
        choose(tmp_path, "onnx", "auto")


def test_a_runner_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(OperatorError, match=r"pip install 'chatsvc\[torch\]'"):
        choose(tmp_path, "safetensors", "torch")
